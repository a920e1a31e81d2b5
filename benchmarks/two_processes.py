"""How much faster two processes generate and judge the same networks than one, and whether they find the same.

Both are whole commands by turns, from start to report, with one thread a process; `pdiff evaluate` generates the
networks that it judges. Results and the numbers of all networks are compared; the script fails if they differ by more
than rounding. Run this on a machine with two idle cores.

The set of checkpoints should be large enough: at a minute and less, Python's start and the pictures count.
python benchmarks/two_processes.py --dataset runs/fashion-mnist-mlp3/checkpoints
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import ROOT, Result, main, result
from safetensors.torch import load_file

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline

_LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
_OF_THE_RUN = ("seconds", "environment", "name", "date")  # of results.json: not of the networks


def command(processes: int, *arguments: str) -> float:
    """Seconds of a whole `pdiff` command in so many processes, one thread each."""
    launcher = [] if processes == 1 else [*_LAUNCHER, str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "pdiff_hub.cli", *arguments],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 or (processes > 1) != (f"{processes} processes share the work" in done.stdout):
        raise SystemExit(f"{' '.join(arguments)} in {processes} processes failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def found(place: Path) -> dict[str, Any]:
    """What a command left in its folder, by file: the contents of JSON files, and all tensors."""
    contents: dict[str, Any] = {file.name: json.loads(file.read_text()) for file in sorted(place.glob("*.json"))}
    return contents | {file.name: load_file(file) for file in sorted(place.glob("*.safetensors"))}


def largest_difference(one: Any, other: Any, place: str = "") -> tuple[float, str]:
    """The largest difference of two numbers in contents of JSON files, and where it is; infinite if more differs.

    Differences of numbers above 1 are relative.
    """
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(value, other[key], f"{place}/{key}") for key, value in one.items() if key not in _OF_THE_RUN]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(value, other[number], f"{place}/{number}") for number, value in enumerate(one)]
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.shape == other.shape:
        return float((one.double() - other.double()).abs().max()), place
    elif isinstance(one, float) and isinstance(other, float):
        return abs(one - other) / max(1.0, abs(one)), place
    else:
        return 0.0 if one == other else math.inf, place
    return max((largest_difference(*pair) for pair in pairs), default=(0.0, place))


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Judging, generating included; and generating networks as files."""
    with TemporaryDirectory() as temporary:
        folder, dataset = Path(temporary), CheckpointDataset.from_pretrained(options.dataset)
        train_pipeline(dataset, folder / "pipeline", diffusion=DiffusionConfig(steps=options.steps))
        pipeline = str(folder / "pipeline")
        num_params = f"{dataset.layout.num_params:,} numbers"
        judging = ["evaluate", pipeline, "--dataset", options.dataset]
        judging += ["--num-models", str(options.judged), "--baselines", str(options.baselines)]
        generating = ["generate", pipeline, "--num-models", str(options.generated)]
        for part, arguments, case in (
            ("generating", generating, f"{options.generated} networks of {num_params} as files"),
            (
                "judging",
                judging,
                f"{options.judged} generated networks and {options.baselines} a baseline, of {num_params}",
            ),
        ):
            seconds: dict[int, list[float]] = {1: [], 2: []}
            places = {processes: folder / f"{part}-{processes}" for processes in seconds}
            for _ in range(options.rounds):
                for processes, kept in seconds.items():
                    shutil.rmtree(places[processes], ignore_errors=True)
                    kept.append(command(processes, *arguments, "--output-dir", str(places[processes])))
            difference, where = largest_difference(found(places[1]), found(places[2]))
            for place in places.values():
                shutil.rmtree(place)
            if not difference <= options.tolerance:
                raise SystemExit(f"one and two processes differ by {difference:.3g} at {where}")
            note = f"Largest difference {difference:.2g} ({where})."
            yield result(
                part, f"{case}, two processes", seconds[2], plain="one process", seconds_plain=seconds[1], note=note
            )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The set, and how much is done with it."""
    parser.add_argument("--dataset", required=True, help="folder of a CheckpointDataset")
    parser.add_argument("--steps", type=int, default=100, help="of the U-Net's training, which is not measured")
    parser.add_argument("--generated", type=int, default=200, help="networks that are generated as files")
    parser.add_argument("--judged", type=int, default=1000, help="networks that are generated and judged")
    parser.add_argument("--baselines", type=int, default=300, help="networks of each baseline")
    parser.add_argument("--tolerance", type=float, default=2e-3, help="largest difference; some images lie on an edge")


if __name__ == "__main__":
    main("two_processes", measure, add_options)
