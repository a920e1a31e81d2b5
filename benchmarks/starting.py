"""What a user waits for before any work: importing the package, the command's help, opening a shipped pipeline.

Each is timed in fresh processes, one after another. Nothing is compared. Each has a limit that it should stay under.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness import SHIPPED, Result, main, result, timed

_IMPORT = """
import time
began = time.perf_counter()
import pdiff_hub
print(time.perf_counter() - began)
"""
_OPEN = f"""
import time
from pdiff_hub import PDiffPipeline
began = time.perf_counter()
PDiffPipeline.from_pretrained({str(SHIPPED)!r})
print(time.perf_counter() - began)
"""


def seconds_of(program: str) -> float:
    """Runs a Python program in its own process, and returns the seconds that it prints."""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def show_help() -> None:
    """Runs `pdiff --help`, including the start of Python."""
    subprocess.run([Path(sys.executable).with_name("pdiff"), "--help"], check=True, capture_output=True)


def measure(options: argparse.Namespace) -> Iterator[Result]:
    cases = (
        ("import pdiff_hub, after Python's own start", partial(seconds_of, _IMPORT), 0.2),
        ("pdiff --help, the whole process", show_help, 0.5),
        ("open pipelines/digits-mlp3, after imports", partial(seconds_of, _OPEN), 1.5),
    )
    for case, work, limit in cases:
        seconds = timed(work, options.rounds)
        yield result(
            "start-up", case, seconds, note=f"The limit is {limit} s; the slowest round took {max(seconds):.3f} s."
        )


if __name__ == "__main__":
    main("starting", measure)
