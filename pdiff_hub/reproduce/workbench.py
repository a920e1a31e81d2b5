"""Where a reproduction works: checkpoints and trained pipelines, each made once.

Tables and figures share runs (figure 4 shows the run of table 2a with K = 200), so the folder of a run is named after a
hash of its recipe. A stopped reproduction that is called again skips what is done and resumes what is not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub import runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import SHARD_TENSOR
from pdiff_hub.collect.finetune import FinetuneConfig
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.recipes import Recipe
from pdiff_hub.records import AuditSummary, Measurements, Results, RunFolder
from pdiff_hub.safe_files import remove_unfinished
from pdiff_hub.safe_files.lock import remove_stale_lock

_COPIES, _COPY_NOISE = 20, 1e-3  # input noise of p-diff, arXiv 2402.13144, sec. 3.2: sigma 0.001


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its results, and the checkpoints that it was trained on."""

    folder: RunFolder
    results: Results
    dataset: CheckpointDataset

    @property
    def measured(self) -> Measurements:
        """What was measured; every finished run has it."""
        assert self.results.measured is not None
        return self.results.measured

    @property
    def audit(self) -> AuditSummary:
        assert self.measured.audit is not None
        return self.measured.audit

    @property
    def num_params(self) -> int:
        """P, the number of generated parameters per network."""
        return self.results.facts.num_params

    def summary(self, *keys: str) -> dict[str, Any]:
        """Some of what was measured, by `keys`, as JSON."""
        measured = asdict(self.measured)
        return {key: measured[key] for key in keys}

    def pipeline(self) -> PDiffPipeline:
        """The trained pipeline, with its progress bar off."""
        pipe = PDiffPipeline.from_pretrained(self.folder.path)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def generated(self) -> Tensor:
        """float32 [B,P]: the generated networks that were judged."""
        return load_file(self.folder.generated)[SHARD_TENSOR]

    def networks(self) -> dict[str, dict[str, Tensor]]:
        """By variant and measure, one number per network, float64 [B]; NaN if it is undefined."""
        return {
            variant: {
                measure: torch.tensor([math.nan if each is None else each for each in numbers], dtype=torch.float64)
                for measure, numbers in measures.items()
            }
            for variant, measures in self.folder.read_networks().items()
        }


@dataclass
class Workbench:
    """say: called with a line of text whenever work starts."""

    directory: Path
    device: str = "cpu"
    say: Callable[[str], None] = lambda text: None
    _collected: dict[Path, CheckpointDataset] = field(default_factory=dict)

    def checkpoints(self, label: str, recipe: Recipe) -> CheckpointDataset:
        """The checkpoints that `recipe` collects. Recipes that collect the same share one data set."""
        whole = recipe.to_dict()
        wanted = {key: whole[key] for key in ("task", "network", "select", "collect", "seed")}
        folder = self.directory / "checkpoints" / f"{label}-{_digest(wanted)}"
        if folder not in self._collected:
            self.say(f"collect {label}")
            trained = self.directory / "trained"
            remove_unfinished(trained)  # of a reproduction that was killed: nobody else writes there
            self._collected[folder] = runs.collect(recipe, folder, device=self.device, trained=trained)
        return self._collected[folder]

    def run(self, label: str, recipe: Recipe, dataset: CheckpointDataset | None = None) -> Run:
        """Train, generate and judge by `recipe`, on `dataset` or else on what the recipe collects."""
        dataset = dataset or self.checkpoints(label, recipe)
        name = f"{label}-{_digest({**recipe.to_dict(), 'rows': len(dataset)})}"
        folder = RunFolder(self.directory / "runs" / name)
        results = folder.read_results()
        if results is None:
            self.say(f"train and judge {label}")
            results = runs.run(recipe, folder.path, device=self.device, dataset=dataset)
        else:
            remove_stale_lock(folder.path)
        return Run(folder, results, dataset)


def noisy_copies(dataset: CheckpointDataset, index: int, seed: int) -> CheckpointDataset:
    """Checkpoint `index` as a set: itself and copies with the paper's input noise.

    A single point has no distribution to learn. The noise that the paper adds in training its autoencoder gives it one.
    """
    params_P = dataset.select_rows([index]).params_KP[0]
    noise_KP = torch.randn(_COPIES, len(params_P), generator=torch.Generator().manual_seed(seed))
    noise_KP[0] = 0
    return CheckpointDataset(
        params_P + _COPY_NOISE * noise_KP,
        dataset.layout,
        network=dataset.network,
        task=dataset.task,
        frozen=dataset.frozen,
        metadata=[dataset.metadata[index]] * _COPIES,
        collect=dataset.collect,
    )


def with_checkpoints(recipe: Recipe, num_checkpoints: int) -> Recipe:
    """The recipe with another number of checkpoints. It must collect by fine-tuning."""
    assert isinstance(recipe.collect, FinetuneConfig)
    return replace(recipe, collect=replace(recipe.collect, num_checkpoints=num_checkpoints))


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
