"""evaluation/frontier.py gives the same as naively drawn rectangles and steps; its verdicts mean what they say."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdiff_hub.evaluation.frontier import area_interval, compare, dominated_area, measure_frontier
from pdiff_hub.evaluation.points import MethodPoints

GRID = 20  # novelties and accuracies are multiples of 1 / 20, so ties and duplicates are common


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points_of(accuracy_B: Tensor, novelty_B: Tensor) -> MethodPoints:
    return MethodPoints.from_similarities(accuracy_B, 1 - novelty_B.double())


@st.composite
def clouds(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Accuracy and novelty of 1 to 12 networks on a grid. Some networks have no novelty, but at least one has."""
    place = st.integers(0, GRID)
    pairs = [*draw(st.lists(st.tuples(place, place | st.none()), max_size=11)), (draw(place), draw(place))]
    accuracy, novelty = zip(*draw(st.permutations(pairs)), strict=True)
    return (
        torch.tensor(accuracy, dtype=torch.float64) / GRID,
        torch.tensor([math.nan if v is None else v / GRID for v in novelty], dtype=torch.float64),
    )


def naive_area(accuracy_B: Tensor, novelty_B: Tensor, floor: int) -> float:
    """The area of all grid cells that the rectangle of some network covers. `floor` is in cells."""
    covered = np.zeros((GRID, GRID), dtype=bool)
    for accuracy, novelty in zip(accuracy_B.tolist(), novelty_B.tolist(), strict=True):
        if not math.isnan(novelty):
            covered[floor : round(accuracy * GRID), : round(novelty * GRID)] = True
    return float(covered.sum()) / GRID**2


def naive_mean(accuracy_B: Tensor, novelty_B: Tensor, end: float) -> float:
    """Mean over the cells in 0..end of the best accuracy among networks at least as novel as the cell's middle."""
    cells = max(1, round(end * GRID))
    ends = [0.0] if end == 0 else [(cell + 0.5) / GRID for cell in range(cells)]
    return float(np.mean([float(accuracy_B[novelty_B >= v].max()) for v in ends]))


@settings(max_examples=150, deadline=None)
@given(clouds(), st.integers(0, GRID))
def test_area_equals_counted_cells(cloud: tuple[Tensor, Tensor], floor: int) -> None:
    assert dominated_area(points_of(*cloud), floor / GRID) == pytest.approx(naive_area(*cloud, floor), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(clouds())
def test_area_interval_lies_below_the_area(cloud: tuple[Tensor, Tensor]) -> None:
    low, high = area_interval(points_of(*cloud), 0.1, rng())
    assert 0 <= low <= high <= dominated_area(points_of(*cloud), 0.1) + 1e-12
    assert (low, high) == area_interval(points_of(*cloud), 0.1, rng())


def test_area_interval_equals_one_resample_after_another() -> None:
    accuracy_B, novelty_B = torch.rand(2, 9, generator=rng(5), dtype=torch.float64)
    order = novelty_B.argsort(descending=True)
    accuracy_B, novelty_B = accuracy_B[order], novelty_B[order]
    drawn = torch.randint(9, (1000, 9), generator=rng())
    areas = [dominated_area(points_of(accuracy_B[row], novelty_B[row]), 0.1) for row in drawn]
    assert area_interval(points_of(accuracy_B, novelty_B), 0.1, rng()) == pytest.approx(
        np.quantile(areas, [0.025, 0.975])
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, GRID), st.integers(0, GRID)), min_size=2, max_size=2))
def test_single_networks_differ_by_their_accuracies(pairs: list[tuple[int, int]]) -> None:
    left, right = (points_of(torch.tensor([a / GRID]), torch.tensor([v / GRID])) for a, v in pairs)
    found = compare(left, right, rng())
    expected = (pairs[0][0] - pairs[1][0]) / GRID
    assert found.difference == pytest.approx(expected, abs=1e-6) and found.low is None and found.high is None
    assert found.shared_novelty == pytest.approx(min(pairs[0][1], pairs[1][1]) / GRID)
    assert found.verdict == "undefined"  # one pair has no interval


@settings(max_examples=6, deadline=None)
@given(clouds(), clouds())
def test_comparison_equals_one_resample_after_another(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> None:
    left, right = points_of(*first), points_of(*second)
    assume(sum(each.num_undefined + 1 < len(each.accuracy_B) for each in (left, right)))  # not one against one
    sets = []
    for accuracy_B, novelty_B in (first, second):
        defined = ~novelty_B.isnan()
        order = novelty_B[defined].argsort(descending=True, stable=True)
        sets.append((accuracy_B[defined][order], novelty_B[defined][order]))
    count = min(len(accuracy_B) for accuracy_B, _ in sets)
    generator = rng()
    draws = [torch.randint(len(accuracy_B), (1000, count), generator=generator) for accuracy_B, _ in sets]
    differences, ends = [], []
    for rows in zip(*draws, strict=True):
        (a, v), (b, w) = ((each[0][row], each[1][row]) for each, row in zip(sets, rows, strict=True))
        ends.append(min(float(v.max()), float(w.max())))
        differences.append(naive_mean(a, v, ends[-1]) - naive_mean(b, w, ends[-1]))
    found = compare(left, right, rng())
    assert (found.low, found.difference, found.high) == pytest.approx(
        np.quantile(differences, [0.025, 0.5, 0.975]), abs=1e-9
    )
    assert found.shared_novelty == pytest.approx(np.median(ends))


def cloud(centre: float, count: int, seed: int) -> MethodPoints:
    """Networks that trade accuracy for novelty along one line, which begins at accuracy `centre`."""
    novelty_B, noise_B = 0.5 * torch.rand(count, generator=rng(seed)), torch.randn(count, generator=rng(seed + 1))
    return points_of((centre - 0.2 * novelty_B + 0.01 * noise_B).clamp(0, 1), novelty_B)


def test_more_networks_of_one_kind_do_not_win() -> None:
    """Eight times as many networks from one distribution raise the plain frontier, but do not win the comparison."""
    many, few = cloud(0.8, 400, 0), cloud(0.8, 50, 7)
    assert dominated_area(many, 0.1) > dominated_area(few, 0.1)
    assert compare(many, few, rng()).verdict == compare(few, many, rng()).verdict == "within the interval"
    better = compare(cloud(0.85, 400, 0), few, rng())
    assert better.verdict == "yes" and better.difference == pytest.approx(0.05, abs=0.01)
    assert compare(few, cloud(0.85, 400, 0), rng()).verdict == "no"


def test_steps_at_other_places_decide_nothing() -> None:
    generated = points_of(torch.full((7,), 0.7), torch.linspace(0.1, 0.7, 7))
    baseline = points_of(torch.full((3,), 0.7), torch.tensor([0.3, 0.7, 0.7]))
    found = compare(generated, baseline, rng())
    assert (found.low, found.high, found.verdict) == (0.0, 0.0, "within the interval")


def test_networks_without_a_novelty_are_dropped_and_counted() -> None:
    nan = math.nan
    points = points_of(torch.tensor([0.9, 1.0, 0.7]), torch.tensor([0.2, nan, 0.4]))
    assert points.num_undefined == 1
    assert dominated_area(points, 0.0) == pytest.approx(0.2 * 0.9 + 0.2 * 0.7)
    perfect = points_of(torch.ones(2), torch.full((2,), nan))
    assert math.isnan(dominated_area(perfect, 0.1))
    for pair in ((points, perfect), (perfect, points)):
        found = compare(*pair, rng())
        assert found.verdict == "undefined" and found.difference is None and found.shared_novelty is None


def test_report() -> None:
    points = {
        "original": cloud(0.8, 60, 3),
        "generated": cloud(0.8, 50, 0),
        "noise_raw_0.12": cloud(0.6, 50, 5),
        "gaussian": cloud(0.5, 50, 9),
        "fine_tuned": cloud(0.95, 50, 11),
        "ensemble": points_of(torch.ones(1), torch.tensor([math.nan])),
    }
    measured = measure_frontier(points, rng(), floor=0.1)
    report = asdict(measured)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report["area"]) == list(points)
    assert list(report["versus"]) == [name for name in points if name != "generated"]
    assert report["area"]["ensemble"] == {"area": None, "low": None, "high": None, "undefined": 1}
    for name, each in points.items():
        if name != "ensemble":
            area = report["area"][name]
            assert area["area"] == dominated_area(each, 0.1) and area["undefined"] == 0
            assert area["low"] < area["high"] <= area["area"]
    assert report["versus"]["ensemble"] == {
        "difference": None,
        "low": None,
        "high": None,
        "shared_novelty": None,
        "verdict": "undefined",
    }
    assert report["versus"]["gaussian"]["difference"] == pytest.approx(0.3, abs=0.02)
    assert report["verdict"] == (
        "At the same novelty of errors, p-diff beats noise raw 0.12 and gaussian; loses to fine tuned; is within the "
        "95 % interval of original; cannot be compared (no novelty is defined) with ensemble."
    )
    assert measure_frontier(points, rng(), floor=0.1) == measured


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, GRID), st.floats(0, 1e6)), min_size=1, max_size=12),
    st.floats(1e-3, 1e3),
)
def test_distances_are_in_units_of_the_originals_own(pairs: list[tuple[int, float]], own: float) -> None:
    accuracy_B, nearest_B = torch.tensor(pairs, dtype=torch.float64).T
    points = MethodPoints.from_distances(accuracy_B / GRID, nearest_B, own)
    assert points.kind == "distance" and points.num_undefined == 0
    torch.testing.assert_close(points.novelty_B * own, nearest_B, rtol=1e-12, atol=1e-12)
    farthest = float(nearest_B.max()) / own
    area = dominated_area(points, 0.1)
    assert 0 <= area <= 0.9 * farthest * (1 + 1e-12)
    # Other units of the weights change nothing: the area is the same.
    assert dominated_area(MethodPoints.from_distances(accuracy_B / GRID, 4 * nearest_B, 4 * own), 0.1) == area
    assert area == pytest.approx(
        farthest * dominated_area(points_of(accuracy_B / GRID, points.novelty_B / farthest), 0.1) if farthest else 0.0
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.floats(2, 100), st.integers(5, 30))
def test_noise_that_is_far_and_bad_does_not_win(seed: int, far: float, count: int) -> None:
    """Only distances that both reach are compared, so noise gains nothing by lying farther out."""
    accuracy_B, nearest_B = torch.rand(2, count, generator=rng(seed), dtype=torch.float64)
    good = MethodPoints.from_distances(0.9 + 0.05 * accuracy_B, 0.1 + nearest_B, 1.0)
    noise = MethodPoints.from_distances(0.3 + 0.5 * accuracy_B, far * (1.1 + nearest_B), 1.0)
    found = compare(good, noise, rng())
    assert found.verdict == "yes" and found.shared_novelty is not None and found.shared_novelty <= 1.1
    assert found.difference is not None and 0.1 <= found.difference <= 0.65
    measured = measure_frontier({"generated": good, "noise_raw": noise}, rng(), floor=0.1)
    assert measured.verdict == "At the same distance, p-diff beats noise raw."
    assert measure_frontier({"generated": noise, "good": good}, rng(), floor=0.1).verdict == (
        "At the same distance, p-diff loses to good."
    )


def test_one_network_against_one_wins_and_loses_nothing() -> None:
    better, worse = (
        points_of(torch.tensor([0.9]), torch.tensor([0.1])),
        points_of(torch.tensor([0.8]), torch.tensor([0.1])),
    )
    found = compare(worse, better, rng())
    assert found.verdict == "undefined" and found.low is None and found.high is None
    assert found.difference == pytest.approx(-0.1)
    many = points_of(torch.full((5,), 0.95), torch.full((5,), 0.1))
    measured = measure_frontier(
        {"generated": worse, "ensemble": better, "same": worse, "original": many}, rng(), floor=0.1
    )
    assert measured.verdict == (
        "At the same novelty of errors, the one generated network loses to original; is 10.00 points worse than "
        "ensemble (one network against one, which decides nothing); is as good as same (one network against one, which "
        "decides nothing)."
    )


def test_bad_input() -> None:
    half = torch.tensor([0.5])
    for accuracy, similarity, message in (
        (half, torch.tensor([0.5, 0.5]), "one of each per network"),
        (half[:0], half[:0], "one of each per network"),
        (half[None], half[None], "one of each per network"),
        (half * 100, half, "accuracies run outside"),
        (half * math.nan, half, "accuracies run outside"),
        (half, -half, "similarities run outside"),
        (half, half * math.inf, "similarities run outside"),
    ):
        with pytest.raises(ValueError, match=message):
            MethodPoints.from_similarities(accuracy, similarity)
    for nearest, own, message in (
        (torch.ones(2), 1.0, "one of each per network"),
        (-half, 1.0, "distances hold"),
        (half * math.nan, 1.0, "distances hold"),
        (half / 0, 1.0, "distances hold"),
        (half, 0.0, "own distance is 0.0; expected a finite number above 0"),
        (half, math.nan, "own distance is nan"),
        (half, math.inf, "own distance is inf"),
    ):
        with pytest.raises(ValueError, match=message):
            MethodPoints.from_distances(half, nearest, own)
    point, far = MethodPoints.from_similarities(half, half), MethodPoints.from_distances(half, half, 1.0)
    with pytest.raises(ValueError, match="different kinds: distance and errors"):
        compare(point, far, rng())
    with pytest.raises(ValueError, match="different kinds: distance and errors"):
        measure_frontier({"generated": far, "original": point}, rng(), floor=0.1)
    for floor in (-0.1, 10.0, math.nan):
        with pytest.raises(ValueError, match="floor is"):
            dominated_area(point, floor)
        with pytest.raises(ValueError, match="floor is"):
            area_interval(point, floor, rng())
    for points in ({"generated": point}, {"gaussian": point, "original": point}):
        with pytest.raises(ValueError, match="expected 'generated' and"):
            measure_frontier(points, rng(), floor=0.1)
