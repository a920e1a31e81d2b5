"""Accuracy against novelty: is a generator better than simple baselines at being different *and* good?

Novelty of a network is 1 - its highest IoU of wrong predictions to any training checkpoint (arXiv 2506.07998). A
method's step frontier at novelty v is the accuracy of its best network that is at least so novel. A frontier is a
maximum, so it rises with the number of networks: two methods are compared at equal numbers only, by `compare`.

Accuracies are those on test; nothing is chosen here, so nothing is chosen by them.
Shapes: B networks of a method, R bootstrap resamples, n networks in each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError

_RESAMPLES = 1000
_QUANTILES = (0.025, 0.5, 0.975)  # the ends of a 95 % interval, and the median


@dataclass(frozen=True, eq=False)
class NoveltyPoints:
    """A point a network. accuracy_B: on test, fractions 0..1. novelty_B: 1 - max IoU, 0..1; NaN where no IoU exists.

    Raises ValueError for shapes other than two equal [B], for no network, and for numbers outside 0..1.
    """

    accuracy_B: Tensor
    novelty_B: Tensor

    def __post_init__(self) -> None:
        shapes = [list(self.accuracy_B.shape), list(self.novelty_B.shape)]
        if shapes[0] != shapes[1] or self.accuracy_B.ndim != 1 or len(self.accuracy_B) == 0:
            raise PdiffError(
                f"accuracies have shape {shapes[0]}, novelties {shapes[1]}; expected one of each a network, [B]."
            )
        for name, values in (("accuracies", self.accuracy_B), ("novelties", self.novelty_B[~self.novelty_B.isnan()])):
            if not bool(((values >= 0) & (values <= 1)).all()):
                raise PdiffError(f"{name} run outside 0..1; expected fractions, and NaN for undefined novelties only.")

    @property
    def num_undefined(self) -> int:
        """Networks without a novelty, which have no place on a frontier: neither they nor any original err."""
        return int(self.novelty_B.isnan().sum())

    @property
    def defined(self) -> NoveltyPoints | None:
        """The networks that have a novelty, the most novel first, in float64 on the CPU; None if there is none."""
        has = ~self.novelty_B.isnan()
        if not bool(has.any()):
            return None
        novelty_B, order_B = self.novelty_B[has].cpu().double().sort(descending=True, stable=True)
        return NoveltyPoints(self.accuracy_B[has].cpu().double()[order_B], novelty_B)


@dataclass(frozen=True)
class Comparison:
    """Generated against baseline networks at the same novelty, as `compare` finds it; NaN where it is undefined.

    difference, low, high: median and ends of the 95 % interval of (generated - baseline) accuracy, a fraction.
    shared_novelty: the end of the range 0..shared_novelty that both reach, the median over the resamples.
    verdict: are the generated ones better? "yes", "no", "within the interval", or "undefined".
    """

    difference: float
    low: float
    high: float
    shared_novelty: float
    verdict: str


def dominated_area(accuracy_B: Tensor, novelty_B: Tensor, floor: float) -> float:
    """The area of the union of the rectangles between (accuracy `floor`, novelty 0) and each network: 0..1 - floor.

    floor: the accuracy of guessing, 1 / number of classes; a network at or below it covers nothing. Networks without
    a novelty are left out; NaN if there is no other. Raises ValueError as `NoveltyPoints`, and for a floor not in 0..1.
    """
    _check_floor(floor)
    points = NoveltyPoints(accuracy_B, novelty_B).defined
    return math.nan if points is None else float(_area_R(points.accuracy_B[None], points.novelty_B[None], floor))


def area_interval(
    accuracy_B: Tensor, novelty_B: Tensor, floor: float, generator: torch.Generator
) -> tuple[float, float]:
    """95 % bootstrap interval of `dominated_area` over networks, from 1,000 resamples of B; NaN where that is NaN.

    A resample has no network that the set lacks, so its area is at most that of the set: the interval ends there.
    """
    _check_floor(floor)
    points = NoveltyPoints(accuracy_B, novelty_B).defined
    if points is None:
        return math.nan, math.nan
    low, _, high = _quantiles(_area_R(*_resample(points, len(points.novelty_B), generator), floor))
    return low, high


def compare(generated: NoveltyPoints, baseline: NoveltyPoints, generator: torch.Generator) -> Comparison:
    """Mean difference of the two frontiers over the novelties that both reach, 0..min(highest of each).

    Each of 1,000 bootstrap resamples draws n = min(B generated, B baseline) networks of either, because the frontier
    of more networks is higher. Where both reach nothing above 0 it is the difference of the best accuracies.
    """
    left, right = generated.defined, baseline.defined
    if left is None or right is None:
        return Comparison(math.nan, math.nan, math.nan, math.nan, "undefined")
    count = min(len(left.novelty_B), len(right.novelty_B))
    accuracy_Rn, novelty_Rn = _resample(left, count, generator)
    other_accuracy_Rn, other_novelty_Rn = _resample(right, count, generator)
    shared_R = torch.minimum(novelty_Rn[:, 0], other_novelty_Rn[:, 0])
    difference_R = _mean_R(accuracy_Rn, novelty_Rn, shared_R) - _mean_R(other_accuracy_Rn, other_novelty_Rn, shared_R)
    # Equal frontiers with steps at different places differ by rounding, which must not decide a verdict.
    low, difference, high = _quantiles(difference_R.round(decimals=12))
    verdict = "yes" if low > 0 else "no" if high < 0 else "within the interval"
    return Comparison(difference, low, high, _quantiles(shared_R)[1], verdict)


def frontier_report(
    points: Mapping[str, NoveltyPoints],
    generator: torch.Generator,
    *,
    floor: float,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Every method's area, "generated" against every other method, and what follows, JSON-able.

    Args:
        points: by variant; "generated" and at least one other.
        floor: the accuracy of guessing, 1 / number of classes.
        labels: how the sentence calls the variants; by default by their names.

    Returns:
        {"area": {name: {"area", "low", "high", "undefined"}}, "versus": {name: {"difference", "low", "high",
        "shared_novelty", "verdict"}}, "verdict": a sentence}. "undefined" counts the networks without a novelty;
        numbers of a method that has no other are None. An area rises with the number of networks; "versus" does not.

    Raises ValueError without "generated", without another method, and for a floor outside 0..1.
    """
    if "generated" not in points or len(points) < 2:
        raise PdiffError(f"there are points of {sorted(points)}; expected 'generated' and at least one method beside.")
    area = {}
    for name, each in points.items():
        low, high = area_interval(each.accuracy_B, each.novelty_B, floor, generator)
        area[name] = {
            "area": _number(dominated_area(each.accuracy_B, each.novelty_B, floor)),
            "low": _number(low),
            "high": _number(high),
            "undefined": each.num_undefined,
        }
    versus = {
        name: compare(points["generated"], each, generator) for name, each in points.items() if name != "generated"
    }
    return {
        "area": area,
        "versus": {
            name: {
                "difference": _number(each.difference),
                "low": _number(each.low),
                "high": _number(each.high),
                "shared_novelty": _number(each.shared_novelty),
                "verdict": each.verdict,
            }
            for name, each in versus.items()
        },
        "verdict": _sentence({(labels or {}).get(name, name): each.verdict for name, each in versus.items()}),
    }


def _area_R(accuracy_Rn: Tensor, novelty_Rn: Tensor, floor: float) -> Tensor:
    """Areas under step frontiers, above `floor`; each row sorted by novelty, the highest first."""
    best_Rn = accuracy_Rn.cummax(dim=1).values  # the frontier between a point's novelty and the next lower one
    width_Rn = -novelty_Rn.diff(dim=1, append=novelty_Rn.new_zeros(len(novelty_Rn), 1))
    return (width_Rn * (best_Rn - floor).clamp_min(0)).sum(dim=1)


def _mean_R(accuracy_Rn: Tensor, novelty_Rn: Tensor, end_R: Tensor) -> Tensor:
    """Mean heights of step frontiers over novelties 0..end_R, which each row, sorted as above, must reach."""
    area_R = _area_R(accuracy_Rn, torch.minimum(novelty_Rn, end_R[:, None]), 0.0)
    return torch.where(end_R > 0, area_R / end_R, accuracy_Rn.amax(dim=1))


def _resample(points: NoveltyPoints, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Accuracies and novelties of 1,000 draws of `count` points with replacement, [R,n], in the order of the points."""
    size = (_RESAMPLES, count)
    drawn_Rn = torch.randint(len(points.novelty_B), size, generator=generator).sort(dim=1).values
    return points.accuracy_B[drawn_Rn], points.novelty_B[drawn_Rn]


def _quantiles(values_R: Tensor) -> tuple[float, float, float]:
    low, middle, high = values_R.quantile(torch.tensor(_QUANTILES, dtype=values_R.dtype)).tolist()
    return low, middle, high


def _sentence(verdicts: Mapping[str, str]) -> str:
    groups = [
        ("yes", "beats"),
        ("no", "loses to"),
        ("within the interval", "is within the 95 % interval of"),
        ("undefined", "cannot be compared (no novelty is defined) with"),
    ]
    clauses = []
    for verdict, verb in groups:
        *others, last = [name.replace("_", " ") for name, found in verdicts.items() if found == verdict] or [""]
        if last:
            clauses.append(f"{verb} {', '.join(others)} and {last}" if others else f"{verb} {last}")
    return f"At the same novelty, p-diff {'; '.join(clauses)}."


def _number(value: float) -> float | None:
    """JSON knows no NaN: what is undefined becomes None."""
    return None if math.isnan(value) else value


def _check_floor(floor: float) -> None:
    if not 0 <= floor <= 1:
        raise PdiffError(f"floor is {floor}; expected the accuracy of guessing, a fraction 0..1.")
