"""Whole commands on a GPU, each in a process of its own: how long their stages take, and how busy the GPU is meanwhile.

It belongs to on_a_gpu.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from harness import ROOT

Row = tuple[str, str]
_POLL_SECONDS = 0.1
_PDIFF = "import sys; from pdiff_hub.cli import main; sys.argv[0] = 'pdiff'; main()"
_STAGES = ("collect", "train_autoencoder", "train_diffusion", "generate", "evaluate")


@contextmanager
def polled() -> Iterator[list[tuple[float, int]]]:
    """How busy the GPU is, in percent of the last moments, at times of `time.time`; empty without a GPU."""
    found: list[tuple[float, int]] = []
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(_POLL_SECONDS):
            found.append((time.time(), torch.cuda.utilization()))

    thread = threading.Thread(target=poll)
    if torch.cuda.is_available():
        thread.start()
    try:
        yield found
    finally:
        ended.set()
        if torch.cuda.is_available():
            thread.join()


def whole_command(name: str, arguments: Sequence[str], folder: Path, device: str) -> Iterator[Row]:
    """A `pdiff` command that judges networks in `folder`, from start to report: rows named after it."""
    command = [sys.executable, "-c", _PDIFF, *arguments, "--output-dir", str(folder), "--device", device]
    began = time.time()
    with polled() as busy:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    total = time.time() - began
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        yield f"{name}, from start to report", f"failed with exit code {done.returncode}"
        return
    results = folder / "results.json"
    known = json.loads(results.read_text())["seconds"]
    # Of an evaluation alone, the seconds of collecting and training are those of the run before it.
    seconds = {stage: known[stage] for stage in _STAGES if arguments[0] == "run" or stage == "evaluate"}
    rest = total - sum(seconds.values())
    stages = ", ".join(f"{stage.replace('_', ' ')} {value:.1f}" for stage, value in seconds.items())
    yield f"{name}, from start to report", f"{total:.1f} s ({stages}, imports and the rest {rest:.1f})"
    ended = results.stat().st_mtime
    began_judging = ended - seconds["evaluate"]
    drawn = min((picture.stat().st_mtime for picture in folder.glob("*.png")), default=ended)  # they need no GPU
    if found := busy_shares(busy, began_judging, (ended, drawn)):
        whole, until_drawn = found
        until = f"{until_drawn:.0f} % of the {drawn - began_judging:.1f} s to the first picture"
        yield f"{name}, GPU busy while judging", f"{whole:.0f} %, and {until}"


def busy_shares(busy: Sequence[tuple[float, int]], began: float, ends: Sequence[float]) -> list[float] | None:
    """The mean of what `polled` found from `began` to each of the ends; None if it found nothing before one of them."""
    parts = [[percent for moment, percent in busy if began < moment <= end] for end in ends]
    return [sum(part) / len(part) for part in parts] if all(parts) else None


def run_tests(marker: str, *more: str) -> Iterator[Row]:
    """The tests with a marker, as pytest counts them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "-p", "no:cacheprovider", *more]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "nothing was said")
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    counts = re.sub(r"=+| in [\d.:s ()]+$", "", last).strip()
    yield f"pytest -m {marker}", f"{counts}, {time.perf_counter() - began:.0f} s, exit code {done.returncode}"
