"""The process of the peer DeepWeightFlow: principal components and flow matching, with its authors' settings.

Its modules come from the folder that the user gave, its settings from the constants.json there. Its way from one to the
other is a function that also loads its own networks and data sets, so that way is gone anew here. What differs:
checkpoints of one fine-tune need no alignment and get none, and the components are fitted in one batch, since theirs
of 10 checkpoints holds too few for 99 components.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from peers_job import Job, Made, Stage, serve, steps_within
from sklearn.decomposition import IncrementalPCA
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

_TIMED = 50  # steps that are timed before the rest, after ten that do not count
_LEAST_RATE = 1e-6  # where its cosine of the learning rate ends


class Flow:
    """The flow's training and sampling on latents [K,C]."""

    def __init__(self, modules: Any, settings: dict[str, Any], t_dist: str, latent_KC: Tensor) -> None:
        self.settings = settings
        source_KC = torch.randn_like(latent_KC) * settings["source_std"]
        loaders = [
            DataLoader(TensorDataset(each), batch_size=settings["batch_size"], shuffle=True, drop_last=True)
            for each in (source_KC, latent_KC)
        ]
        self.model = modules.WeightSpaceFlowModel(
            latent_KC.shape[1],
            settings["flow_hidden_dims"][0],
            time_embed_dim=settings["time_embed_dim"],
            dropout=settings["dropout"],
        )
        self.matching = modules.FlowMatching(
            *loaders, model=self.model, mode="velocity", t_dist=t_dist, device=torch.device("cpu")
        )

    def train(self, steps: int) -> float:
        """Does so many steps, the learning rate's schedule over all of them; -> seconds per step."""
        settings, began = self.settings, time.perf_counter()
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"], betas=(0.9, 0.95)
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=_LEAST_RATE)
        self.matching.train(
            n_iters=steps,
            optimizer=optimizer,
            scheduler=schedule,
            sigma=settings["sigma"],
            patience=settings["patience"],
            log_freq=10,
        )
        return (time.perf_counter() - began) / steps

    def sample(self, networks: int) -> Tensor:
        """So many latents, in one batch."""
        noise_BC = torch.randn(networks, self.model.input_dim) * self.settings["source_std"]
        return self.matching.map(
            noise_BC, n_steps=self.settings["integration_steps"], method=self.settings["integration_method"]
        )


def _modules(source: str) -> Any:
    """Its flow_matching. Of its utils that needs one name, and the rest would import torchvision."""
    folder = str(Path(source, "flowmatching"))
    stand_in = ModuleType("utils")
    vars(stand_in)["Bunch"] = SimpleNamespace
    sys.modules["utils"] = stand_in
    sys.path.insert(0, folder)
    return importlib.import_module("flow_matching")


def work(job: Job, params_KP: Tensor, folder: Path) -> tuple[Made, Tensor | None]:
    modules = _modules(job.source)
    constants = json.loads(Path(job.source, "flowmatching", "constants.json").read_text())
    settings = constants["models"][job.settings]
    torch.manual_seed(0)
    components = min(settings["pca_components"], len(params_KP) - 1)
    pca = IncrementalPCA(n_components=components, batch_size=len(params_KP))
    began = time.perf_counter()
    latent_KC = torch.tensor(pca.fit_transform(params_KP.numpy()), dtype=torch.float32)
    fit_seconds = time.perf_counter() - began
    flow = Flow(modules, settings, constants["t_dist"], latent_KC)
    flow.train(10)
    step_seconds, own = flow.train(_TIMED), settings["n_iters"]
    done, params_BP = _TIMED, None
    if job.networks:
        flow = Flow(modules, settings, constants["t_dist"], latent_KC)
        done = steps_within(job.seconds, {"flow": (own, step_seconds)})["flow"]
        step_seconds = flow.train(done)
    began = time.perf_counter()
    params_BP = torch.from_numpy(pca.inverse_transform(flow.sample(max(1, job.networks)).numpy())).float()
    network_seconds = (time.perf_counter() - began) / len(params_BP)
    stages = [Stage("components", 1, 1, fit_seconds), Stage("flow", own, done, step_seconds)]
    how = (
        f"its {job.settings}, {components} components; a network: {settings['integration_steps']} steps of "
        f"{settings['integration_method']}, {len(params_BP)} in a batch"
    )
    return Made(stages, network_seconds, how), params_BP if job.networks else None


if __name__ == "__main__":
    serve(work)
