"""Memory and time against the size of the network: a ladder of ViTs from 10 thousand to 100 million parameters.

Run: python benchmarks/ladder.py [--sizes 1e4 1e6 1e7 1e8] [--checkpoints 10]
The checkpoints are random perturbations of one random network: they do for memory and time, and say nothing about
quality. Saving, training and sampling each run in a process of their own, whose peak of resident memory is read at its
end; the smallest network's peak stands for interpreter and libraries.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from growth_process import run
from growth_stages import sample, save_vits, train, vit_params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e4, 1e6, 1e7, 1e8])
    parser.add_argument("--checkpoints", type=int, default=10)
    args = parser.parse_args()
    print(f"{'parameters':>12} {'stage':>7} {'seconds':>8} {'peak MiB':>9} {'working MiB':>12} {'less a network':>17}")
    floor: dict[str, float] = {}
    for size in args.sizes:
        num_params = vit_params(size)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            stages = (("save", save_vits, (folder, size, args.checkpoints)), ("train", train, (folder,)),
                      ("sample", sample, (folder,)))
            for stage, work, arguments in stages:
                cost = run(work, *arguments)
                floor.setdefault(stage, cost.peak)
                working = cost.peak - floor[stage]
                print(f"{num_params:>12,} {stage:>7} {cost.total:>8.1f} {cost.peak / 2**20:>9.0f} "
                      f"{working / 2**20:>12.0f} {(working - 4 * num_params) / 2**20:>17.0f}", flush=True)


if __name__ == "__main__":
    main()
