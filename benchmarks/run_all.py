"""What `make bench` runs: every benchmark in its own process. The results go to benchmarks/RESULTS.md.

If a benchmark fails, the page names it and the exit code is 1. A run of only some benchmarks (--only), or at tiny sizes
that only show that they run (--quick), never replaces that page: --output says where to write its page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import ROOT, Result, digits, machine
from peers_source import add_source_options, source_options
from peers_table import Side, table

from pdiff_hub.safe_files import replacing

PAGE = ROOT / "benchmarks" / "RESULTS.md"
_PEERS = "peers"  # the one script that takes options of this one: where the code of peers is
_SHIPPED_SET = "pipelines/digits-mlp3/checkpoints"
# Every benchmark, with options that make it take only seconds. `growth.py` has its own page (`make bench-scale`).
SCRIPTS: Mapping[str, Sequence[str]] = {
    "starting": (),
    "similarity": ("--networks", "20", "--images", "1000"),
    "saving": ("--checkpoints", "4"),
    "evaluation": ("--networks", "8"),
    "prefix_cache": ("--networks", "4", "--images", "16", "--plain-networks", "1"),
    "population": ("--networks", "4", "--plain-networks", "1", "--epochs", "1"),
    "training": ("--steps", "10", "--plain-steps", "5", "--hidden", "16", "8", "--checkpoints", "20", "--lengths", "4"),
    "sampling_speed": ("--networks", "4", "--plain-networks", "1", "--lengths", "4"),
    "authors": ("--networks", "4", "--steps", "20", "--subset", _SHIPPED_SET, "--mlp", _SHIPPED_SET),
    _PEERS: ("--networks", "4", "--steps", "20", "--subset", _SHIPPED_SET),
}
_COLUMNS = (
    "part",
    "case",
    "plain way",
    "seconds, plain",
    "seconds, ours",
    "times as fast",
    "of the matrix-product rate",
)


def run(script: str, options: Sequence[str]) -> list[Result] | None:
    """The results of one benchmark, or None if it failed. Its output goes to the terminal."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--json", str(file), *options]
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            return None
        return [Result(**each) for each in json.loads(file.read_text())["results"]]


def page(
    results: Sequence[Result],
    failed: Sequence[str],
    about: Mapping[str, Any],
    minutes: float,
    command: str = "make bench",
) -> str:
    """The text of RESULTS.md. failed: names of scripts. about: from `harness.machine`. command: what wrote the page."""
    versions = ", ".join(
        f"{name} {about[name]}" for name in ("python", "torch", "diffusers", "transformers") if about[name] is not None
    )
    parts = [
        "# Benchmarks",
        f"Written by `{command}` on {about['date']}, in {minutes:.0f} minutes: {about['cpu']}, {about['cores']} "
        f"cores, {about['threads']} threads, {about['memory_gib']} GiB; {versions}.",
        "Seconds are medians over the rounds, in each of which both ways were timed by turns in one process, after one "
        "that does not count, where a note does not say otherwise. A plain way that is too slow for that did a part of "
        "the work, and its seconds are scaled up, as the table says. Times as fast: the median of the rounds' ratios, "
        "with the least and the most. The last column is the float32 rate that ours reached over that of a matrix "
        "product, measured in the same process.",
    ]
    if failed:
        parts.append(f"**Failed, and not in the table: {', '.join(f'{name}.py' for name in failed)}.**")
    noted = [each for each in results if each.note]
    rows: list[tuple[str, ...]] = [_COLUMNS, ("---",) * 3 + ("---:",) * 4]
    rows += [_row(each, noted.index(each) + 1 if each.note else None) for each in results]
    parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if sides := [Side.from_dict(side) for each in results for side in each.sides]:
        parts.append(table(sides))
    if noted:
        parts += [
            "## Notes",
            "\n".join(f"{number}. {each.part}, {each.case}: {each.note}" for number, each in enumerate(noted, start=1)),
        ]
    return "\n\n".join(parts) + "\n"


def _row(each: Result, note: int | None) -> tuple[str, ...]:
    case = each.case + (f" (note {note})" if note else "")
    ratio = f"{digits(each.ratio)} ({digits(each.ratio_least)} to {digits(each.ratio_most)})" if each.plain else ""
    fraction = ""
    if each.fraction is not None and each.gflops is not None:
        fraction = f"{100 * each.fraction:.0f} % ({each.gflops:.3g} of {each.gflops / each.fraction:.3g} GFLOP/s)"
    row = (each.part, case, each.plain or "", digits(each.seconds_plain), digits(each.seconds_ours), ratio, fraction)
    return tuple(cell.replace("|", "\\|") for cell in row)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, metavar="NAME", help=f"of {', '.join(SCRIPTS)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--output", type=Path, help="the page; default: benchmarks/RESULTS.md")
    add_source_options(parser)
    options = parser.parse_args(arguments)
    if options.output is None and (options.only or options.quick):
        parser.error("--only and --quick do not replace benchmarks/RESULTS.md: say with --output where to write")
    results: list[Result] = []
    failed = []
    began = time.perf_counter()
    for script in options.only or SCRIPTS:
        print(f"== {script}", flush=True)
        given = source_options(options) if script == _PEERS else []
        found = run(script, [*given, *SCRIPTS[script], "--rounds", "1"] if options.quick else given)
        results += found or []
        if found is None:
            failed.append(script)
    output = options.output or PAGE
    command = "make bench"
    if options.only or options.quick:
        command = " ".join(["run_all.py", *(["--quick"] if options.quick else []), *(options.only or [])])
    with replacing(output) as temporary:
        temporary.write_text(
            page(results, failed, machine(), (time.perf_counter() - began) / 60, command), encoding="utf-8"
        )
    print(f"{output} is written." + (f" Failed: {', '.join(failed)}." if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
