"""What is known of an ensemble beside its weights, as `config.json` keeps it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdiff_hub.ensembles.figures import Report
from pdiff_hub.errors import PdiffError, shortened
from pdiff_hub.safe_files import read_json, write_json
from pdiff_hub.safe_files.checking import checked, require_version
from pdiff_hub.tasks.normalization import checked_normalize

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT_VERSION = 1
KIND = "ensemble"
_MOST_NETWORKS = 100_000
_MOST = {"in_channels": 64, "image_size": 2048, "num_classes": 1_000_000}


@dataclass(frozen=True)
class Origin:
    """Where the networks come from: enough to make them again.

    Attributes:
        pipeline, revision: its Hub id and commit; None if it is not on the Hub.
        weights: if it is not on the Hub, the sha256 (hex) of each of its weight files, by path.
        seed: of all candidates; None if they were not drawn from a fresh generator.
        num_inference_steps, num_candidates, condition: what the pipeline was called with.
        select, calibrate: how networks were chosen, and whether a temperature was asked for.
        chosen: their numbers, counted from 0.
        environment: versions and machine, as in `results.json`.
    """

    pipeline: str | None
    revision: str | None
    weights: dict[str, str]
    seed: int | None
    num_inference_steps: int
    num_candidates: int
    select: str | None
    calibrate: bool
    chosen: list[int]
    condition: dict[str, str] | None
    environment: dict[str, str | int | None]


@dataclass(frozen=True)
class Description:
    """Of an ensemble.

    Attributes:
        network: the spec that `build_network` takes.
        num_networks: how many there are.
        temperature: that the logarithms of the mean probabilities are divided by.
        mean, std: of each channel, for pixels scaled to [0, 1]; None if unknown.
        classes: in the order of the answers; None if unknown.
        task, task_hub_id: the short name of the data, and its Hub id if it is there.
        origin: None if it is not known; report: None if nothing was measured.
    """

    network: dict[str, Any]
    num_networks: int
    temperature: float = 1.0
    mean: list[float] | None = None
    std: list[float] | None = None
    classes: list[str] | None = None
    task: str | None = None
    task_hub_id: str | None = None
    origin: Origin | None = None
    report: Report | None = None

    def write(self, file: Path) -> None:
        """As `read` reads it."""
        write_json(file, {"format_version": FORMAT_VERSION, "kind": KIND, KIND: asdict(self)})

    @classmethod
    def read(cls, file: Path, name: str) -> Description:
        """Of the ensemble `name`, which may be anybody's: every field is checked. ValueError if it is none."""
        if not file.is_file():
            raise FileNotFoundError(f"{name} is no ensemble: it has no {CONFIG}. `pdiff ensemble` makes one.")
        try:
            config = read_json(file)
        except PdiffError as error:
            raise PdiffError(f"{name} is no ensemble: {error}") from error
        if config.get("kind") != KIND:
            raise PdiffError(
                f"{name} is no ensemble: its {CONFIG} says nothing of one. A single network is opened with "
                "pdiff_hub.hub.GeneratedNetwork, a pipeline with PDiffPipeline."
            )
        require_version(config.get("format_version"), FORMAT_VERSION, name)
        where = f"{name}: its {CONFIG}"
        found = checked(cls, config.get(KIND), where, "restore the file, or ask its author for one that is whole.")
        found._require_sound(where)
        return found

    def _require_sound(self, where: str) -> None:
        if not isinstance(self.network.get("name"), str):
            raise PdiffError(f"{where} names no network; expected the spec of one.")
        for size, most in _MOST.items():  # an image of this size is made when the ensemble is opened
            value = self.network.get(size)
            if type(value) is not int or not 1 <= value <= most:
                raise PdiffError(f"{where}: {size} is {shortened(value)}, expected an integer from 1 to {most:,}.")
        if not 1 <= self.num_networks <= _MOST_NETWORKS:
            raise PdiffError(f"{where} is of {self.num_networks} networks, expected 1 to {_MOST_NETWORKS:,}.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise PdiffError(f"{where} has the temperature {self.temperature}, expected a finite number above 0.")
        if (self.mean is None) != (self.std is None):
            raise PdiffError(f"{where} has a mean without a std, or a std without a mean; expected both.")
        if self.mean is not None:
            checked_normalize({"mean": self.mean, "std": self.std})
            channels = self.network.get("in_channels")
            if not len(self.mean) == len(self.std or []) == channels:
                raise PdiffError(f"{where} has {len(self.mean)} means for {channels} channels; expected one of each.")
        if self.classes is not None and len(self.classes) != self.network.get("num_classes"):
            raise PdiffError(
                f"{where} has {len(self.classes)} class names for {self.network.get('num_classes')} classes."
            )
