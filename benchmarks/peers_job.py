"""What a peer is asked to do, what it did, and the process in which its code runs.

Job and answer are files in one folder, so that a peer's process needs nothing of this package, and its modules, whose
names are as common as `model` and `utils`, meet none of ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Job:
    """The checkpoints are in `rows.safetensors` as "params_KP"; the networks are wanted as "params_BP".

    Attributes:
        source: the folder with the peer's code.
        settings: which of the peer's own settings, in the peer's words.
        tensors: name and shape of each tensor in a row of parameters, in their order.
        networks: how many to make. 0 makes none: a few steps are timed, and nothing is learned.
        seconds: of training, into which as many steps are put as fit; None does all that the settings ask for.
        threads: that torch may use.
    """

    source: str
    settings: str
    tensors: list[tuple[str, list[int]]]
    networks: int
    seconds: float | None
    threads: int


@dataclass(frozen=True)
class Stage:
    """One stage of training: steps that the settings ask for, steps done, and seconds per step."""

    name: str
    steps: int
    done: int
    step_seconds: float

    @property
    def whole_seconds(self) -> float:
        """Seconds of all steps that the settings ask for."""
        return self.steps * self.step_seconds


@dataclass(frozen=True)
class Made:
    """What a peer did. network_seconds: of making one network as the peer does it. how: notes for the reader."""

    stages: list[Stage]
    network_seconds: float
    how: str

    @property
    def train_seconds(self) -> float:
        """Seconds of training with the peer's own number of steps."""
        return sum(stage.whole_seconds for stage in self.stages)

    @property
    def trained_seconds(self) -> float:
        """Seconds of the steps that were done."""
        return sum(stage.done * stage.step_seconds for stage in self.stages)


def steps_within(seconds: float | None, stages: dict[str, tuple[int, float]]) -> dict[str, int]:
    """How many steps of each stage fit, each stage shortened alike. stages: own steps, and seconds per step."""
    whole = sum(steps * each for steps, each in stages.values())
    share = 1.0 if seconds is None else min(1.0, seconds / whole)
    return {name: max(1, round(share * steps)) for name, (steps, _) in stages.items()}


def read_job(folder: Path) -> tuple[Job, Tensor]:
    """The job in that folder, and its checkpoints [K,P]."""
    job = Job(**json.loads((folder / "job.json").read_text()))
    return job, load_file(folder / "rows.safetensors")["params_KP"]


def write_made(folder: Path, made: Made, params_BP: Tensor | None) -> None:
    if params_BP is not None:
        save_file({"params_BP": params_BP.float().contiguous()}, folder / "made.safetensors")
    (folder / "made.json").write_text(json.dumps(asdict(made)))


def serve(work: Callable[[Job, Tensor, Path], tuple[Made, Tensor | None]]) -> None:
    """The main function of a peer's process: does the job in the folder that its one argument names."""
    folder = Path(sys.argv[1]).resolve()
    job, params_KP = read_job(folder)
    torch.set_num_threads(job.threads)
    write_made(folder, *work(job, params_KP, folder))


def run_peer(script: Path, job: Job, params_KP: Tensor, folder: Path) -> tuple[Made, Tensor | None]:
    """Runs the peer's `script` in a process of its own; -> what it did, and the networks [B,P] that it made.

    RuntimeError with the last line that it wrote, if it failed.
    """
    save_file({"params_KP": params_KP.contiguous()}, folder / "rows.safetensors")
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    with (folder / "log.txt").open("w+", encoding="utf-8", errors="replace") as log:
        ended = subprocess.run(
            [sys.executable, str(script), str(folder)],
            check=False,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # nothing is written into the peer's folder
        )
        if ended.returncode != 0:
            log.seek(0)
            said = [line.strip() for line in log if line.strip()]
            raise RuntimeError(f"exit code {ended.returncode}: {said[-1] if said else 'it said nothing'}")
    answer = json.loads((folder / "made.json").read_text())
    made = Made([Stage(**each) for each in answer.pop("stages")], **answer)
    if job.networks == 0:
        return made, None
    return made, load_file(folder / "made.safetensors")["params_BP"]
