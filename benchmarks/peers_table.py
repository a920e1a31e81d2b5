"""The table of peers on the page of `make bench`: each of them and ours on the same checkpoints, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness import digits

_COLUMNS = (
    "checkpoints",
    "made by",
    "trained for",
    "seconds to train",
    "seconds to sample",
    "judged",
    "accuracy, mean",
    "accuracy, best",
    "copies",
    "nearest, latents",
    "nearest, weights",
    "spread",
)


@dataclass(frozen=True)
class Quality:
    """What networks are worth. Accuracies are fractions of the test split.

    Attributes:
        judged: how many were judged. copies: of them; None where no network was held out.
        latent_ratio, weight_ratio: their mean distance to the nearest checkpoint over that of held-out networks, in the
            latents of our autoencoder and in raw weights.
        spread: standard deviation over that of the checkpoints.
    """

    judged: int
    mean: float
    best: float
    copies: int | None
    latent_ratio: float | None
    weight_ratio: float | None
    spread: float | None


@dataclass(frozen=True)
class Side:
    """One system on one set, or networks to compare with, for which nothing is trained.

    Attributes:
        dataset, system: their names. networks: for which `sample_seconds` are.
        trained: how long the judged networks' generator was trained, in words.
        train_seconds: of all steps that the settings ask for. quality: None if nothing was made.
    """

    dataset: str
    system: str
    trained: str
    networks: int
    train_seconds: float | None
    sample_seconds: float | None
    quality: Quality | None

    def words(self) -> str:
        """What its networks are worth, in a sentence."""
        each = self.quality
        if each is None:
            return f"No network was made ({self.trained})."
        copies = "an unknown number of" if each.copies is None else str(each.copies)
        return (
            f"{each.judged} networks after {self.trained}: test accuracy {100 * each.mean:.2f} % mean, "
            f"{100 * each.best:.2f} % best; {copies} copies; nearest checkpoint at {digits(each.latent_ratio)} "
            f"(latents) and {digits(each.weight_ratio)} (weights) of held-out networks' distance; spread "
            f"{digits(each.spread)}."
        )

    def row(self) -> tuple[str, ...]:
        cells = (self.dataset, self.system, self.trained, digits(self.train_seconds), digits(self.sample_seconds))
        each = self.quality
        if each is None:
            return (*cells, "0", *[""] * 6)
        return (
            *cells,
            str(each.judged),
            f"{100 * each.mean:.2f} %",
            f"{100 * each.best:.2f} %",
            "" if each.copies is None else f"{each.copies} of {each.judged}",
            digits(each.latent_ratio),
            digits(each.weight_ratio),
            digits(each.spread),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Side:
        quality = values["quality"]
        return cls(**{**values, "quality": None if quality is None else Quality(**quality)})


def table(sides: Sequence[Side]) -> str:
    """The section of the page."""
    rows = [_COLUMNS, ("---",) * 3 + ("---:",) * 9, *(side.row() for side in sides)]
    networks = max(side.networks for side in sides)
    return "\n\n".join(
        [
            "## Peers",
            "Each system trains on the same checkpoints and is judged by the same code, one after another on this "
            "machine. *Seconds to train* are those of all steps that its own settings ask for, *seconds to sample* "
            f"those of {networks} networks made as its code makes them; both are scaled up where a note of the first "
            "table says so. Accuracy and what follows are of networks after the training that *trained for* names. "
            "*Best* is chosen on validation. *Copies* and *nearest* are as in the audit: distances to the nearest "
            "training checkpoint over those of held-out networks (1: as far as new networks), in the latents of our "
            "autoencoder and in raw weights. *Spread* is over that of the checkpoints. Two rows of each set are to "
            "compare with: checkpoints that were held out, and the network in which every number is the mean of its "
            "tensor, whose accuracy says how little the set asks for.",
            "\n".join(f"| {' | '.join(row)} |" for row in rows),
        ]
    )
