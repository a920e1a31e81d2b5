"""The process of the peer p-diff: runs its authors' training and sampling on our checkpoints, with their settings.

Their training script is imported from the folder that the user gave, and its own functions train: `train_vae` and
`train`. Its settings stay as they are, but for the number of steps where time is limited. What differs: checkpoints
come from memory instead of files read by four processes, nothing is generated during training, and bfloat16, which
their launcher asks of a GPU, is asked of the CPU.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peers_job import Job, Made, Stage, serve, steps_within
from torch import Tensor

_NAME = "Neural-Network-Diffusion"  # their scripts find their root by this name
_TIMED = 2  # steps of each stage that are timed before the rest, after one that does not count
_TIMED_TIMES = 20  # time steps of sampling, where no network is wanted


class Batches:
    """Exactly `steps` random batches, in the form that their loops read: (rows, indices)."""

    def __init__(self, rows_KS: Tensor, size: int, steps: int) -> None:
        self.rows_KS, self.size, self.steps = rows_KS, size, steps

    def __iter__(self) -> Iterator[tuple[Tensor, None]]:
        for _ in range(self.steps):
            yield self.rows_KS[torch.randint(len(self.rows_KS), (self.size,))], None


class Script:
    """Their training script, ready to train on the checkpoints in `folder`."""

    def __init__(self, settings: str, folder: Path) -> None:
        self._name = f"workspace.{settings}"
        importlib.import_module(self._name)
        self._folder = folder
        self.begin()

    def begin(self) -> None:
        """Everything anew: weights, optimisers, seeds."""
        script: Any = importlib.reload(sys.modules[self._name])
        script.config["checkpoint_save_path"] = str(self._folder / "saved")
        script.generate = lambda *_, **__: None
        script.accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        script.vae, script.model, script.vae_optimizer, script.optimizer = script.accelerator.prepare(
            script.vae, script.model, script.vae_optimizer, script.optimizer
        )
        self.script = script
        self.rows_KS = torch.stack([script.train_set[row][0].flatten() for row in range(script.train_set.real_length)])

    @property
    def steps(self) -> dict[str, int]:
        """The steps of both stages that the settings ask for."""
        return {"autoencoder": self.script.config["vae_steps"], "denoiser": self.script.config["total_steps"]}

    def train(self, stage: str, steps: int) -> float:
        """Does so many steps of a stage, the learning rate's schedule over all of them; -> seconds per step."""
        script = self.script
        script.train_loader = Batches(self.rows_KS, script.config["batch_size"], steps)
        schedule = script.vae_scheduler if stage == "autoencoder" else script.scheduler
        schedule.T_max = steps
        began = time.perf_counter()
        if stage == "autoencoder":
            script.train_vae()
            script.vae = script.accelerator.unwrap_model(script.vae)
        else:
            script.train()
        return (time.perf_counter() - began) / steps

    @torch.no_grad()
    def sample(self, networks: int) -> Tensor:
        """So many networks as rows: latents in one batch, then each decoded by itself, as they do it."""
        script = self.script
        script.model.eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            noise_BD = torch.randn(networks, script.config["model_config"]["model_dim"])
            latent_BD = script.model(x=noise_BD, sample=True)
            decoded = [script.vae.decode(latent_D[None]) for latent_D in latent_BD]
        tensors = [script.train_set.postprocess(row_1S.float()) for row_1S in decoded]
        script.model.train()
        return torch.stack([torch.cat([each.flatten() for each in named.values()]) for named in tensors])

    def network_seconds(self, times: int | None) -> float:
        """Seconds of one network, as they sample: batch 1. times: do so many time steps, and scale up; None: all."""
        sampler = self.script.accelerator.unwrap_model(self.script.model).diffusion_sampler
        all_times = sampler.T
        sampler.T = times or all_times
        began = time.perf_counter()
        self.sample(1)
        seconds = (time.perf_counter() - began) * all_times / sampler.T
        sampler.T = all_times
        return seconds


def _write_checkpoints(job: Job, params_KP: Tensor, folder: Path) -> None:
    """As their data set reads them: a file of named tensors per network."""
    folder.mkdir()
    sizes = [torch.Size(shape).numel() for _, shape in job.tensors]
    for number, row_P in enumerate(params_KP):
        parts = zip(job.tensors, row_P.split(sizes), strict=True)
        torch.save({name: part.reshape(shape).clone() for (name, shape), part in parts}, folder / f"{number:05}.pth")


def work(job: Job, params_KP: Tensor, folder: Path) -> tuple[Made, Tensor | None]:
    root = folder / _NAME
    root.symlink_to(job.source)
    sys.path.insert(0, str(root))
    os.chdir(root)
    checkpoints = folder / "checkpoints"
    _write_checkpoints(job, params_KP, checkpoints)
    data: Any = importlib.import_module("dataset")
    data.BaseDataset.data_path = str(checkpoints)
    data.BaseDataset.generated_path, data.BaseDataset.test_command = str(folder / "generated" / "one.pth"), ""
    script = Script(job.settings, folder)
    step_seconds = {}
    for stage in script.steps:
        script.train(stage, 1)
        step_seconds[stage] = script.train(stage, _TIMED)
    own = script.steps
    done = dict.fromkeys(own, _TIMED)
    if job.networks:
        script.begin()
        done = steps_within(job.seconds, {stage: (steps, step_seconds[stage]) for stage, steps in own.items()})
        step_seconds = {stage: script.train(stage, steps) for stage, steps in done.items()}
    network_seconds = script.network_seconds(None if job.networks else _TIMED_TIMES)
    params_BP = script.sample(job.networks) if job.networks else None
    stages = [Stage(stage, steps, done[stage], step_seconds[stage]) for stage, steps in own.items()]
    times = script.script.config["model_config"]["T"]
    timed = "" if job.networks else f", of which {_TIMED_TIMES} were timed"
    how = f"its {job.settings}, bfloat16; a network: {times:,} time steps{timed}, batch 1"
    return Made(stages, network_seconds, how), params_BP


if __name__ == "__main__":
    serve(work)
