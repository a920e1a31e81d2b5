"""`RunFolder`: the paths of a run, a pipeline and a report. No other file of the package spells their names.

A run's folder is its pipeline's folder, shaped as the repository on the Hub:

    model_index.json, autoencoder/, unet/, scheduler/      the pipeline
    README.md, recipe.yaml                                 its card, and how it was made
    network_source/                                        the user's functions that it names, to be read
    results.json, networks.json, report.html, *.png, *.svg what was measured
    checkpoints/, generated/, training/                    what the run keeps for itself
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdiff_hub.records.results import Results
from pdiff_hub.records.training_summary import TrainingSummary
from pdiff_hub.records.yaml_files import read_yaml
from pdiff_hub.safe_files import read_json
from pdiff_hub.safe_files.checking import checked

REQUEST_FIGURES = ("requests", "fit")
"""Stems of the pictures of a family's report."""
FIGURES = (
    *REQUEST_FIGURES,
    "copies",
    "accuracy-similarity",
    "frontier",
    "frontier-distance",
    "similarity",
    "ensembles",
    "training",
)
"""Stems of a report's pictures, in the order shown. A picture is missing if what it shows was not measured."""
_PICTURES = ("png", "svg")
SOURCES = "network_source"
"""The folder of the source files of functions."""


@dataclass(frozen=True)
class RunFolder:
    """The folder `path` of a run, a pipeline or a report; any of its files may be missing."""

    path: Path

    @property
    def index(self) -> Path:
        """The file that makes the folder a pipeline."""
        return self.path / "model_index.json"  # as in `travelling.pipeline_pdiff`, which would load diffusers

    @property
    def card(self) -> Path:
        return self.path / "README.md"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def networks(self) -> Path:
        """The numbers measured for each network that was judged."""
        return self.path / "networks.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """The data set that the pipeline was trained on."""
        return self.path / "checkpoints"

    @property
    def generated(self) -> Path:
        """The networks that were generated and judged: float32 `params` [N,P]."""
        return self.path / "generated" / "params.safetensors"

    @property
    def made_here(self) -> Path:
        """The note that the user made on this machine what is here, and which functions were called for it."""
        return self.path / ".made-here.json"

    @property
    def training(self) -> TrainingFolder:
        return TrainingFolder(self.path / "training")

    def pictures(self) -> list[Path]:
        """Where the pictures of `FIGURES` are, or would be."""
        return [self.path / f"{stem}.{suffix}" for stem in FIGURES for suffix in _PICTURES]

    def picture(self, stem: str) -> Path:
        """The PNG file of a picture."""
        return self.path / f"{stem}.png"

    def source(self, function: str) -> Path:
        """The source of the module of a function ("module:function"), to be read; nothing is imported from here."""
        from pdiff_hub.networks.factory import module_of  # with torch, which `pdiff list` can spare

        module = module_of(function) or ""
        return self.path / SOURCES / f"{module.replace('.', '/')}.py"

    def sources(self) -> list[Path]:
        """The source files of functions that are here."""
        return [file for file in sorted(self.path.glob(f"{SOURCES}/**/*.py")) if file.is_file()]

    def companions(self) -> list[Path]:
        """The files here that describe this pipeline: card, recipe, results, numbers per network, report, pictures,
        sources of functions."""
        found = (file for pattern in companion_patterns() for file in sorted(self.path.glob(pattern)))
        return [*(file for file in found if file.is_file()), *self.sources()]

    def read_results(self) -> Results | None:
        """The content of `results.json`, None if there is none. PdiffError names the file and what is wrong with it."""
        if not self.results.is_file():
            return None
        return Results.from_dict(read_json(self.results), str(self.results))

    def read_recipe(self) -> dict[str, Any] | None:
        """The content of `recipe.yaml`, None if there is none. PdiffError if it is not a mapping."""
        return read_yaml(self.recipe) if self.recipe.is_file() else None

    def read_networks(self) -> dict[str, dict[str, list[float | None]]]:
        """For each variant and measure, one number per network; None where it is undefined."""
        kind = dict[str, dict[str, list[float | None]]]
        return checked(
            kind, read_json(self.networks), str(self.networks), "remove the file, then evaluate the pipeline again."
        )


def companion_patterns() -> list[str]:
    """The names of a pipeline's companions that are downloaded, and globs for pictures: all but code."""
    folder = RunFolder(Path())
    named = (folder.card, folder.recipe, folder.results, folder.networks, folder.report)
    return [*map(str, named), *(f"*.{suffix}" for suffix in _PICTURES)]


@dataclass(frozen=True)
class AutoencoderFacts:
    """What stage one measured: the held-out deviation R2 (None if there is none), its time, the numbers of a latent.

    seconds: None if it was stopped and resumed.
    """

    deviation_r2: float | None
    seconds: float | None
    num_components: int


@dataclass(frozen=True)
class TrainingFolder:
    """`training/` of a run: what a killed run needs to go on."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe that the run was begun with."""
        return self.path / "recipe.json"

    @property
    def network(self) -> Path:
        """The weights that the run's network had first, if it was given as a module."""
        return self.path / "network.safetensors"

    @property
    def seconds(self) -> Path:
        """How long each stage took."""
        return self.path / "seconds.json"

    @property
    def settings(self) -> Path:
        """The settings that training was begun with."""
        return self.path / "settings.json"

    @property
    def autoencoder(self) -> Path:
        return self.path / "autoencoder"

    @property
    def autoencoder_facts(self) -> Path:
        """What stage one measured."""
        return self.path / "autoencoder.json"

    @property
    def latents(self) -> Path:
        """Latents of the training checkpoints. Written last: its presence says that stage one is done."""
        return self.path / "latents.safetensors"

    @property
    def autoencoder_steps(self) -> Path:
        return self.path / "autoencoder-steps"

    @property
    def diffusion_steps(self) -> Path:
        return self.path / "diffusion"

    @property
    def summary(self) -> Path:
        """Its presence says that training is done."""
        return self.path / "summary.json"

    @property
    def logs(self) -> Path:
        """Where a tracker logs."""
        return self.path / "logs"

    @property
    def unfinished_pipeline(self) -> Path:
        return self.path / "unfinished-pipeline"

    def components(self, process: int) -> Path:
        """Where a process keeps the principal components while it fits them."""
        return self.path / f"components-{process}"

    def all_components(self) -> list[Path]:
        """The folders of components that are here."""
        return sorted(self.path.glob("components-*"))

    def read_autoencoder_facts(self) -> AutoencoderFacts:
        """What stage one measured. PdiffError names the file and what is wrong with it."""
        file = self.autoencoder_facts
        return checked(AutoencoderFacts, read_json(file), str(file), f"remove {self.path} to train anew.")

    def read_summary(self) -> TrainingSummary | None:
        """What training found, None if it has not ended. PdiffError names the file and what is wrong with it."""
        if not self.summary.is_file():
            return None
        return checked(TrainingSummary, read_json(self.summary), str(self.summary), "train the pipeline again.")


@dataclass(frozen=True)
class NetworksFolder:
    """The folder `path` of generated networks, each whole network in a file of its own, or all in one."""

    path: Path

    @property
    def origin(self) -> Path:
        """How the networks can be made again."""
        return self.path / "generated.json"

    def network(self, index: int, suffix: str = ".safetensors") -> Path:
        """The file of network `index`, counted from 0."""
        return self.path / f"model-{index:05d}{suffix}"

    def ensemble(self, suffix: str) -> Path:
        """The file of all networks as one."""
        return self.path / f"ensemble{suffix}"

    def networks(self, suffix: str = ".safetensors") -> Iterator[Path]:
        """The files of networks, and of networks as one, that are here."""
        return iter([*sorted(self.path.glob(f"model-*{suffix}")), *self.path.glob(f"ensemble{suffix}")])
