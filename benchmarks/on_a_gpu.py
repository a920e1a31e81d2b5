"""What a GPU does with this package: whole recipes, how busy it is while judging, training steps, sampling, the tests.

One run of less than five minutes that prints a table for docs/many-devices.md. Fashion-MNIST must be on the machine.
With `--device cpu --quick` the same code runs without a GPU, at sizes that say nothing about speed.

    python benchmarks/on_a_gpu.py --json on_a_gpu.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

PARTS = ("runs", "judging", "steps", "sampling", "tests")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="some of them; judging goes with runs")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    began = time.perf_counter()
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"torch sees no GPU for --device {options.device}; give --device cpu --quick to see that it runs")
    from on_a_gpu_parts import machine, rows  # here, so that the first import on a machine is timed

    found = [("device", machine(options.device))]
    found.append(("imports of this script, the first on this machine", f"{time.perf_counter() - began:.1f} s"))
    for row in rows(options):
        found.append(row)
        print(f"{row[0]}: {row[1]}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n")
    found.append(("all of this", f"{time.perf_counter() - began:.0f} s"))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print("\n| what | measured |\n| --- | --- |", *(f"| {name} | {value} |" for name, value in found), sep="\n")


if __name__ == "__main__":
    main()
