"""Accuracy against novelty: are generated networks both more different and better than those of simple baselines?

Novelty is that of errors or that by distance (`points`). The step frontier (arXiv 2506.07998) of a method at novelty v
is the highest accuracy among its networks of novelty v or more. A frontier is a maximum, so it rises with the number of
networks; `compare` therefore compares two methods at equal numbers.

Accuracies are those on test. This is sound because no network is chosen here.
Shapes: B networks of a method, R bootstrap resamples of n networks each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.points import MethodPoints, Novelty, shared_kind
from pdiff_hub.records import Area, Comparison, Frontier
from pdiff_hub.records.results import Verdict, defined

_RESAMPLES = 1000
_QUANTILES = (0.025, 0.5, 0.975)  # lower end of the 95 % interval, median, upper end
_AT_THE_SAME: Mapping[Novelty, str] = {"errors": "novelty of errors", "distance": "distance"}


def dominated_area(points: MethodPoints, floor: float) -> float:
    """The area that the networks dominate, 0..(1 - floor) * the highest novelty; novelty of errors is 1 at most.

    Each network spans a rectangle with the corner (accuracy `floor`, novelty 0); the area is that of their union.

    floor: the accuracy of guessing, 1 / number of classes; a network at or below it covers nothing. Networks without
    a novelty are left out; the area is NaN if no network has one. Raises ValueError for a floor not in 0..1.
    """
    _check_floor(floor)
    if (sorted_points := points.by_novelty()) is None:
        return math.nan
    accuracy_B, novelty_B = sorted_points
    return float(_area_R(accuracy_B[None], novelty_B[None], floor))


def area_interval(points: MethodPoints, floor: float, generator: torch.Generator) -> tuple[float, float]:
    """95 % bootstrap interval of `dominated_area`, from 1,000 resamples of B networks; NaN where the area is NaN.

    A resample only holds networks of the set, so its area is at most that of the set, and so is the upper end.
    """
    _check_floor(floor)
    if (sorted_points := points.by_novelty()) is None:
        return math.nan, math.nan
    low, _, high = _quantiles(_area_R(*_resample(*sorted_points, len(sorted_points[0]), generator), floor))
    return low, high


def compare(generated: MethodPoints, baseline: MethodPoints, generator: torch.Generator) -> Comparison:
    """Mean difference of the two frontiers over the novelties that both reach, 0..min(highest of each).

    Each of 1,000 bootstrap resamples draws n = min(B generated, B baseline) networks from each set, because the
    frontier of more networks is higher. If one of the two draws has no novelty above 0, the difference is that of the
    best accuracies. The result holds the median and the 95 % interval over the resamples; of one network against one
    there is no interval, and no verdict. Raises ValueError for two kinds of novelty.
    """
    shared_kind((generated, baseline))
    left, right = generated.by_novelty(), baseline.by_novelty()
    if left is None or right is None:
        return Comparison(None, None, None, None, "undefined")
    count = min(len(left[0]), len(right[0]))
    accuracy_Rn, novelty_Rn = _resample(*left, count, generator)
    other_accuracy_Rn, other_novelty_Rn = _resample(*right, count, generator)
    shared_R = torch.minimum(novelty_Rn[:, 0], other_novelty_Rn[:, 0])
    difference_R = _mean_R(accuracy_Rn, novelty_Rn, shared_R) - _mean_R(other_accuracy_Rn, other_novelty_Rn, shared_R)
    # Rounding errors make equal frontiers with steps at different places differ; they must not decide a verdict.
    low, difference, high = _quantiles(difference_R.round(decimals=12))
    if len(left[0]) == len(right[0]) == 1:  # every resample is the same pair
        return Comparison(difference, None, None, _quantiles(shared_R)[1], "undefined")
    verdict: Verdict = "yes" if low > 0 else "no" if high < 0 else "within the interval"
    return Comparison(difference, low, high, _quantiles(shared_R)[1], verdict)


def measure_frontier(
    points: Mapping[str, MethodPoints],
    generator: torch.Generator,
    *,
    floor: float,
    labels: Mapping[str, str] | None = None,
) -> Frontier:
    """The area of every method, the comparison of "generated" with every other method, and a sentence on the outcome.

    An area rises with the number of networks; the comparisons ("versus") do not.

    Args:
        points: by method; "generated" and at least one other.
        floor: the accuracy of guessing, 1 / number of classes.
        labels: names of the methods in the sentence; by default their keys.

    Raises ValueError without "generated", without another method, for different kinds of novelty, and for a floor
    outside 0..1.
    """
    if "generated" not in points or len(points) < 2:
        raise PdiffError(f"there are points of {sorted(points)}; expected 'generated' and at least one method beside.")
    kind = shared_kind(points.values())
    area = {}
    for name, each in points.items():
        low, high = area_interval(each, floor, generator)
        area[name] = Area(defined(dominated_area(each, floor)), defined(low), defined(high), each.num_undefined)
    versus = {
        name: compare(points["generated"], each, generator) for name, each in points.items() if name != "generated"
    }
    named = {(labels or {}).get(name, name).replace("_", " "): each for name, each in versus.items()}
    sentence = _sentence(kind, named, len(points["generated"].accuracy_B))
    return Frontier(area, versus, sentence)


def _area_R(accuracy_Rn: Tensor, novelty_Rn: Tensor, floor: float) -> Tensor:
    """Areas between `floor` and the step frontiers. Each row is sorted by novelty, the highest first."""
    best_Rn = accuracy_Rn.cummax(dim=1).values  # height of the frontier from the next lower novelty up to this one
    width_Rn = -novelty_Rn.diff(dim=1, append=novelty_Rn.new_zeros(len(novelty_Rn), 1))
    return (width_Rn * (best_Rn - floor).clamp_min(0)).sum(dim=1)


def _mean_R(accuracy_Rn: Tensor, novelty_Rn: Tensor, end_R: Tensor) -> Tensor:
    """Mean heights of step frontiers over novelties 0..end_R. Rows are sorted as in `_area_R`, and must reach end_R."""
    area_R = _area_R(accuracy_Rn, torch.minimum(novelty_Rn, end_R[:, None]), 0.0)
    return torch.where(end_R > 0, area_R / end_R, accuracy_Rn.amax(dim=1))


def _resample(accuracy_B: Tensor, novelty_B: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """1,000 draws of `count` points with replacement: accuracies and novelties, [R,n], in the order of the points."""
    drawn_Rn = torch.randint(len(novelty_B), (_RESAMPLES, count), generator=generator).sort(dim=1).values
    return accuracy_B[drawn_Rn], novelty_B[drawn_Rn]


def _quantiles(values_R: Tensor) -> tuple[float, float, float]:
    low, middle, high = values_R.quantile(torch.tensor(_QUANTILES, dtype=values_R.dtype)).tolist()
    return low, middle, high


def _sentence(kind: Novelty, versus: Mapping[str, Comparison], num_generated: int) -> str:
    """versus: by what the other methods are called."""
    groups = [
        ("yes", "beats"),
        ("no", "loses to"),
        ("within the interval", "is within the 95 % interval of"),
        ("undefined", "cannot be compared (no novelty is defined) with"),
    ]
    pairs = {name: each.difference for name, each in versus.items() if each.low is None and each.difference is not None}
    clauses = []
    for verdict, verb in groups:
        of_verdict = [name for name, each in versus.items() if each.verdict == verdict and name not in pairs]
        *others, last = of_verdict or [""]
        if last:
            clauses.append(f"{verb} {', '.join(others)} and {last}" if others else f"{verb} {last}")
    for name, difference in pairs.items():
        better = "better" if difference > 0 else "worse"
        how = f"{100 * abs(difference):.2f} points {better} than" if difference else "as good as"
        clauses.append(f"is {how} {name} (one network against one, which decides nothing)")
    who = "p-diff" if num_generated > 1 else "the one generated network"
    return f"At the same {_AT_THE_SAME[kind]}, {who} {'; '.join(clauses)}."


def _check_floor(floor: float) -> None:
    if not 0 <= floor <= 1:
        raise PdiffError(f"floor is {floor}; expected the accuracy of guessing, a fraction 0..1.")
