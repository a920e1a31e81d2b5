"""How good an ensemble is on the test images, beside what else one could use: a typed report with its verdict.

Shapes: G answerers, N images, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import torch
from torch import Tensor

from pdiff_hub.ensembles.choosing import tempered
from pdiff_hub.evaluation.ensembles import EnsembleTotals

_WIDTH = 80  # of a terminal
_SURE = 2.0  # standard errors that a difference must have to be called one
COLUMNS = ("networks", "accuracy %", "NLL", "ECE", "T")
NOTE = (
    "All on the test split. NLL: in nats. ECE: calibration error of 15 bins. T: temperature. Networks are chosen, and "
    "temperatures set, on the validation split only, so a single one that is best there may lie below the mean here."
)


@dataclass(frozen=True)
class Figures:
    """Of one ensemble or network; of several, the means.

    Attributes:
        accuracy: 0 to 1. nll: in nats. calibration_error: 0 to 1, of 15 bins.
        temperature: that the answers were divided by.
    """

    accuracy: float
    nll: float
    calibration_error: float
    temperature: float


@dataclass(frozen=True)
class Beside:
    """Something else that one could use, and by how much the ensemble is better, with standard errors over images.

    Attributes:
        more_accuracy, less_nll: above 0 if the ensemble is better.
    """

    figures: Figures
    more_accuracy: float
    accuracy_error: float
    less_nll: float
    nll_error: float


@dataclass(frozen=True)
class Report:
    """What was measured of an ensemble.

    Attributes:
        num_networks, num_validation, num_test: networks in the ensemble, images of the splits.
        validation: the ensemble on the images that it was chosen by, where it looks better than it is.
        test, uncalibrated: the ensemble on the test images; with temperature 1.
        beside: by name, on the same images.
        notes: what was not measured, and why.
    """

    num_networks: int
    num_validation: int
    num_test: int
    validation: Figures
    test: Figures
    uncalibrated: Figures
    beside: dict[str, Beside]
    notes: list[str]

    @property
    def verdict(self) -> str:
        """What the ensemble brings and what not, in a few sentences."""
        names = list(self.beside)
        compared = {
            "accuracy": {name: _sign(each.more_accuracy, each.accuracy_error) for name, each in self.beside.items()},
            "NLL": {name: _sign(each.less_nll, each.nll_error) for name, each in self.beside.items()},
        }
        better = {what: [name for name in names if signs[name] > 0] for what, signs in compared.items()}
        worse = {what: [name for name in names if signs[name] < 0] for what, signs in compared.items()}
        images = f"{self.num_test:,} test images"
        sentences = []
        if not names:
            sentences.append("It was compared with nothing.")
        elif not any(better.values()):
            sentences.append(f"This ensemble gains nothing that {images} can show: no better than {_joined(names)}.")
        for what, others in better.items():
            if others:
                rest = [name for name in names if name not in others and name not in worse[what]]
                than = f", and within chance of {_joined(rest)}" if rest else ""
                sentences.append(f"Its {what} is better than that of {_joined(others)}{than}.")
        for what, others in better.items():
            if not others and any(better.values()):
                sentences.append(f"In {what} it gains nothing that {images} can show.")
        sentences += [
            f"Its {what} is worse than that of {_joined(others)}." for what, others in worse.items() if others
        ]
        return " ".join(sentences)

    def rows(self) -> list[tuple[str, ...]]:
        """The table, a row each, under `COLUMNS`."""
        rows = {f"this ensemble of {self.num_networks}": self.test}
        if self.test.temperature != 1:
            rows["the same, not calibrated"] = self.uncalibrated
        rows |= {name: each.figures for name, each in self.beside.items()}
        return [
            (name, f"{100 * e.accuracy:.2f}", f"{e.nll:.4f}", f"{e.calibration_error:.4f}", f"{e.temperature:.2f}")
            for name, e in rows.items()
        ]

    def __str__(self) -> str:
        table = [COLUMNS, *self.rows()]
        first, *others = (max(len(row[column]) for row in table) for column in range(len(COLUMNS)))
        lines = []
        for name, *cells in table:
            numbers = [cell.rjust(width) for cell, width in zip(cells, others, strict=True)]
            lines.append("  ".join([name.ljust(first), *numbers]))
        return "\n".join([fill(self.verdict, _WIDTH), "", *lines, "", fill(" ".join([NOTE, *self.notes]), _WIDTH)])


@dataclass(frozen=True, eq=False)
class Judged:
    """Figures, and what they come from, to compare image by image: right answers and loss, [N]."""

    figures: Figures
    right_N: Tensor
    loss_N: Tensor

    @classmethod
    def of(cls, log_GNc: Tensor, labels_N: Tensor, temperature: float) -> Judged:
        """Of the answers of one, or as the mean of several. log_GNc: logarithms of probabilities, not yet tempered."""
        log_GNc = tempered(log_GNc.double(), temperature)
        totals = EnsembleTotals(len(log_GNc))
        totals.add(log_GNc[:, None], labels_N)
        return cls(
            Figures(*totals.means(len(labels_N)), temperature),
            (log_GNc.argmax(dim=2) == labels_N).double().mean(dim=0),
            -log_GNc[:, torch.arange(len(labels_N)), labels_N].mean(dim=0),
        )

    @classmethod
    def mean(cls, parts: Sequence[tuple[int, Judged]]) -> Judged:
        """Of several, each the mean of as many answerers as stands before it."""
        total = sum(number for number, _ in parts)

        def mean(name: str) -> float:
            return float(sum(number * getattr(part.figures, name) for number, part in parts) / total)

        return cls(
            Figures(mean("accuracy"), mean("nll"), mean("calibration_error"), parts[0][1].figures.temperature),
            torch.stack([number * part.right_N for number, part in parts]).sum(dim=0) / total,
            torch.stack([number * part.loss_N for number, part in parts]).sum(dim=0) / total,
        )

    def beside(self, other: Judged) -> Beside:
        """`other` as what this one is compared with."""
        accuracy, loss = self.right_N - other.right_N, other.loss_N - self.loss_N
        return Beside(other.figures, float(accuracy.mean()), _error(accuracy), float(loss.mean()), _error(loss))


def _error(values_N: Tensor) -> float:
    return float(values_N.std()) / math.sqrt(len(values_N)) if len(values_N) > 1 else 0.0


def _sign(difference: float, error: float) -> int:
    """1 for better, -1 for worse, 0 if the images do not show a difference."""
    return 0 if abs(difference) <= _SURE * error or difference == 0 else int(math.copysign(1, difference))


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
