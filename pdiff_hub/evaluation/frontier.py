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

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.points import MethodPoints
from pdiff_hub.records import Area, Comparison, Frontier
from pdiff_hub.records.results import Verdict, defined

_RESAMPLES = 1000
_QUANTILES = (0.025, 0.5, 0.975)  # the ends of a 95 % interval, and the median


def dominated_area(points: MethodPoints, floor: float) -> float:
    """The area of the union of the rectangles between (accuracy `floor`, novelty 0) and each network: 0..1 - floor.

    floor: the accuracy of guessing, 1 / number of classes; a network at or below it covers nothing. Networks without
    a novelty are left out; NaN if there is no other. Raises ValueError for a floor not in 0..1.
    """
    _check_floor(floor)
    if (sorted_points := points.by_novelty()) is None:
        return math.nan
    accuracy_B, novelty_B = sorted_points
    return float(_area_R(accuracy_B[None], novelty_B[None], floor))


def area_interval(points: MethodPoints, floor: float, generator: torch.Generator) -> tuple[float, float]:
    """95 % bootstrap interval of `dominated_area` over networks, from 1,000 resamples of B; NaN where that is NaN.

    A resample has no network that the set lacks, so its area is at most that of the set: the interval ends there.
    """
    _check_floor(floor)
    if (sorted_points := points.by_novelty()) is None:
        return math.nan, math.nan
    low, _, high = _quantiles(_area_R(*_resample(*sorted_points, len(sorted_points[0]), generator), floor))
    return low, high


def compare(generated: MethodPoints, baseline: MethodPoints, generator: torch.Generator) -> Comparison:
    """Mean difference of the two frontiers over the novelties that both reach, 0..min(highest of each).

    Each of 1,000 bootstrap resamples draws n = min(B generated, B baseline) networks of either, because the frontier
    of more networks is higher. Where both reach nothing above 0 it is the difference of the best accuracies.
    """
    left, right = generated.by_novelty(), baseline.by_novelty()
    if left is None or right is None:
        return Comparison(None, None, None, None, "undefined")
    count = min(len(left[0]), len(right[0]))
    accuracy_Rn, novelty_Rn = _resample(*left, count, generator)
    other_accuracy_Rn, other_novelty_Rn = _resample(*right, count, generator)
    shared_R = torch.minimum(novelty_Rn[:, 0], other_novelty_Rn[:, 0])
    difference_R = _mean_R(accuracy_Rn, novelty_Rn, shared_R) - _mean_R(other_accuracy_Rn, other_novelty_Rn, shared_R)
    # Equal frontiers with steps at different places differ by rounding, which must not decide a verdict.
    low, difference, high = _quantiles(difference_R.round(decimals=12))
    verdict: Verdict = "yes" if low > 0 else "no" if high < 0 else "within the interval"
    return Comparison(difference, low, high, _quantiles(shared_R)[1], verdict)


def measure_frontier(
    points: Mapping[str, MethodPoints],
    generator: torch.Generator,
    *,
    floor: float,
    labels: Mapping[str, str] | None = None,
) -> Frontier:
    """Every method's area, "generated" against every other method, and what follows in a sentence.

    An area rises with the number of networks; "versus" does not.

    Args:
        points: by variant; "generated" and at least one other.
        floor: the accuracy of guessing, 1 / number of classes.
        labels: how the sentence calls the variants; by default by their names.

    Raises ValueError without "generated", without another method, and for a floor outside 0..1.
    """
    if "generated" not in points or len(points) < 2:
        raise PdiffError(f"there are points of {sorted(points)}; expected 'generated' and at least one method beside.")
    area = {}
    for name, each in points.items():
        low, high = area_interval(each, floor, generator)
        area[name] = Area(defined(dominated_area(each, floor)), defined(low), defined(high), each.num_undefined)
    versus = {
        name: compare(points["generated"], each, generator) for name, each in points.items() if name != "generated"
    }
    sentence = _sentence({(labels or {}).get(name, name): each.verdict for name, each in versus.items()})
    return Frontier(area, versus, sentence)


def _area_R(accuracy_Rn: Tensor, novelty_Rn: Tensor, floor: float) -> Tensor:
    """Areas under step frontiers, above `floor`; each row sorted by novelty, the highest first."""
    best_Rn = accuracy_Rn.cummax(dim=1).values  # the frontier between a point's novelty and the next lower one
    width_Rn = -novelty_Rn.diff(dim=1, append=novelty_Rn.new_zeros(len(novelty_Rn), 1))
    return (width_Rn * (best_Rn - floor).clamp_min(0)).sum(dim=1)


def _mean_R(accuracy_Rn: Tensor, novelty_Rn: Tensor, end_R: Tensor) -> Tensor:
    """Mean heights of step frontiers over novelties 0..end_R, which each row, sorted as above, must reach."""
    area_R = _area_R(accuracy_Rn, torch.minimum(novelty_Rn, end_R[:, None]), 0.0)
    return torch.where(end_R > 0, area_R / end_R, accuracy_Rn.amax(dim=1))


def _resample(accuracy_B: Tensor, novelty_B: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Accuracies and novelties of 1,000 draws of `count` points with replacement, [R,n], in the order of the points."""
    drawn_Rn = torch.randint(len(novelty_B), (_RESAMPLES, count), generator=generator).sort(dim=1).values
    return accuracy_B[drawn_Rn], novelty_B[drawn_Rn]


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


def _check_floor(floor: float) -> None:
    if not 0 <= floor <= 1:
        raise PdiffError(f"floor is {floor}; expected the accuracy of guessing, a fraction 0..1.")
