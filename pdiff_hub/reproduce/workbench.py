"""Where a reproduction works: checkpoints and trained pipelines, each made once, named by what made them.

Tables share runs (K = 200 of table 2a is the run that figure 4 is drawn from), so a run's folder is named after a hash
of its recipe; a stopped reproduction finds what is done, and goes on inside what is not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub import runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import SHARD_TENSOR
from pdiff_hub.collect.finetune import FinetuneConfig
from pdiff_hub.recipes import Recipe
from pdiff_hub.travelling.pipeline_pdiff import PDiffPipeline

_COPIES, _COPY_NOISE = 20, 1e-3  # p-diff, arXiv 2402.13144, sec. 3.2: noise on the input, sigma 0.001


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its `results.json`, the checkpoints that it was trained on."""

    folder: Path
    results: dict[str, Any]
    dataset: CheckpointDataset

    def pipeline(self) -> PDiffPipeline:
        """The trained pipeline, its progress bar off."""
        pipe = PDiffPipeline.from_pretrained(self.folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def generated(self) -> Tensor:
        """float32 [B,P]: the generated networks that were judged."""
        return load_file(self.folder / runs.GENERATED)[SHARD_TENSOR]

    def networks(self) -> dict[str, dict[str, Tensor]]:
        """By variant and measure, a number a network (`networks.json`), float64 [B]; NaN where it is undefined."""
        values = json.loads((self.folder / "networks.json").read_text(encoding="utf-8"))
        return {
            variant: {
                measure: torch.tensor([math.nan if each is None else each for each in numbers], dtype=torch.float64)
                for measure, numbers in measures.items()
            }
            for variant, measures in values.items()
        }


@dataclass
class Workbench:
    """say: called with a line of progress at each start."""

    directory: Path
    device: str = "cpu"
    say: Callable[[str], None] = lambda text: None
    _collected: dict[Path, CheckpointDataset] = field(default_factory=dict)

    def checkpoints(self, label: str, recipe: Recipe) -> CheckpointDataset:
        """What `recipe` collects; recipes that collect the same share one data set."""
        whole = recipe.to_dict()
        wanted = {key: whole[key] for key in ("task", "network", "select", "collect", "seed")}
        folder = self.directory / "checkpoints" / f"{label}-{_digest(wanted)}"
        if folder not in self._collected:
            self.say(f"collect {label}")
            self._collected[folder] = runs.collect(
                recipe, folder, device=self.device, trained=self.directory / "trained"
            )
        return self._collected[folder]

    def run(self, label: str, recipe: Recipe, dataset: CheckpointDataset | None = None) -> Run:
        """Train, generate and judge as `recipe` says, on `dataset` or on what the recipe collects."""
        dataset = dataset or self.checkpoints(label, recipe)
        folder = self.directory / "runs" / f"{label}-{_digest({**recipe.to_dict(), 'rows': len(dataset)})}"
        results = folder / "results.json"
        if not results.exists():
            self.say(f"train and judge {label}")
            runs.run(recipe, folder, device=self.device, dataset=dataset)
        return Run(folder, json.loads(results.read_text(encoding="utf-8")), dataset)


def evenly(dataset: CheckpointDataset, num_checkpoints: int) -> CheckpointDataset:
    """`num_checkpoints` of the set, evenly spaced, so that their number alone differs between two such sets."""
    step = len(dataset) / num_checkpoints
    return dataset.select_rows([int((index + 0.5) * step) for index in range(num_checkpoints)])


def noisy_copies(dataset: CheckpointDataset, index: int, seed: int) -> CheckpointDataset:
    """Checkpoint `index` as a set: itself and copies under the paper's input noise.

    One point has no distribution to learn; with the noise that the paper trains its autoencoder on, it has.
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
    """The recipe, which collects by fine-tuning, with another number of checkpoints."""
    assert isinstance(recipe.collect, FinetuneConfig)
    return replace(recipe, collect=replace(recipe.collect, num_checkpoints=num_checkpoints))


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
