"""The other figures of evaluation/figures (test_figures.py has accuracy against similarity): files, texts and errors.

Naive references check what is computed for the frontier, the plane of trajectories and the rows of points. How the
figures look is judged by eye.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch import Tensor

from pdiff_hub.evaluation.figures import (
    checkpoints,
    checkpoints_figure,
    ensembles_figure,
    fit_figure,
    frontier,
    frontier_figure,
    heat_maps,
    latents,
    latents_figure,
    parameter_heat_maps,
    requests_figure,
    similarity_figure,
    trajectories,
    trajectories_figure,
)
from pdiff_hub.evaluation.points import MethodPoints
from pdiff_hub.records import EnsembleCurve, FitRequests, Requests

CURVE = EnsembleCurve((1, 2, 5), (0.9, 0.92, 0.93), (0.4, 0.3, 0.25), (0.05, 0.03, 0.02))


def rand(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def points(count: int, seed: int = 0, worst: float = 0.9) -> MethodPoints:
    return MethodPoints.from_similarities(worst + 0.05 * rand(count, seed=seed), 0.7 + 0.3 * rand(count, seed=seed + 1))


def distances(count: int, seed: int = 0, times: float = 1.0) -> MethodPoints:
    nearest_B = times * (0.5 + rand(count, seed=seed + 1))
    return MethodPoints.from_distances(0.9 + 0.05 * rand(count, seed=seed), nearest_B, 1.0)


def with_nan(values_B: Tensor) -> Tensor:
    return torch.cat([values_B, torch.full((2,), torch.nan)])


FIGURES: dict[str, tuple[Callable[[Path], list[Path]], tuple[str, ...]]] = {
    "heat maps": (
        lambda stem: parameter_heat_maps(
            {"conv.weight": rand(3, 4, 2, 3, 3), "bn.bias": torch.zeros(3, 4), "scale": rand(3).half()}, stem
        ),
        ("conv.weight", "4 x 2 x 3 x 3", "4, all 0", "seed 3", "parameter, scaled per tensor (0: lowest, 1: highest)"),
    ),
    "similarity": (
        lambda stem: similarity_figure(
            {"original_generated_max": with_nan(rand(9)), "original_original": torch.ones(36)}, stem
        ),
        (
            "originals with",
            "mean 1.000, n = 36",
            "(2 without errors left out)",
            "similarity (IoU of wrong predictions, 0 to 1)",
        ),
    ),
    "latents": (
        lambda stem: latents_figure({"noise_raw": rand(8, 2, 3, seed=2), "original": rand(9, 2, 3)}, stem),
        ("originals (9)", "noise in raw units (8)", "t-SNE of latents, first dimension (no unit)"),
    ),
    "trajectories": (
        lambda stem: trajectories_figure(rand(6, 5, 2, 4), rand(7, 2, 4, seed=1), stem, unit="scaled latent units"),
        ("noise (step 0), 5 drawn", "generated (step 5)", "mean of originals", "step of the reverse process"),
    ),
    "checkpoints": (
        lambda stem: checkpoints_figure({500: 0.9 * rand(20), 1: with_nan(torch.ones(20))}, stem),
        ("number of checkpoints trained on", "mean 1.000", "2 left out", "n = 20"),
    ),
    "frontier": (
        lambda stem: frontier_figure(
            {"original": points(9), "generated": points(8, 2), "noise_raw": points(7, 4, worst=0.1)}, stem
        ),
        (
            "accuracy on test (%)",
            "novelty (1 - highest IoU to an original, 0 to 1)",
            "originals (9)",
            "all networks",
            "Lines: highest accuracy at that novelty or more",
        ),
    ),
    "frontier by distance": (
        lambda stem: frontier_figure(
            {"fresh": distances(9), "generated": distances(8, 2), "noise_raw": distances(7, 4, times=20)}, stem
        ),
        (
            "distance to the nearest original /",
            "fresh networks (9)",
            "Lines: highest accuracy at that distance or more",
            "Networks beyond 3, not drawn: 7 (up to ",
        ),
    ),
    "requests": (
        lambda stem: requests_figure(
            Requests({"trained": 0.9, "ridge": 0.5}, {"trained": (0.8, 0.95), "ridge": (0.4, 0.6)}, {}, None, 4, 6, ""),
            stem,
        ),
        ("trained on the task (ceiling)", "ridge regression", "mean over 6 tasks never seen (%)"),
    ),
    "fit": (
        lambda stem: fit_figure(
            FitRequests({"20": {"fit": 0.8, "scratch": 0.7}, "100": {"fit": 0.9}}, {}, {}, 3), stem
        ),
        ("fit, one network", "from scratch", "labelled examples", "3 tasks never seen (%)"),
    ),
    "ensembles": (
        lambda stem: ensembles_figure({"generated": CURVE, "original": CURVE}, stem),
        ("accuracy on test (%)", "negative log-likelihood (nats)", "calibration error (ECE, %)", "networks averaged"),
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_png_and_svg_are_the_same_each_time(name: str, tmp_path: Path) -> None:
    draw, texts = FIGURES[name]
    first, second = draw(tmp_path / "new" / "one"), draw(tmp_path / "two")
    assert [path.name for path in first] == ["one.png", "one.svg"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    svg = first[1].read_text(encoding="utf-8")
    assert "<dc:date>" not in svg
    for text in texts:
        assert text in svg  # text is drawn as paths, with a comment that holds it


def test_a_second_panel_only_where_low_accuracies_press_the_others_together(tmp_path: Path) -> None:
    _, svg = frontier_figure({"original": points(9), "generated": points(8, 2)}, tmp_path / "figure")
    assert "accuracies from" not in svg.read_text(encoding="utf-8")
    none = MethodPoints.from_similarities(torch.ones(2), torch.full((2,), torch.nan))
    _, svg = frontier_figure({"original": none}, tmp_path / "figure")
    assert "<!-- 2 without errors not drawn -->" in svg.read_text(encoding="utf-8")


@given(st.lists(st.floats(0, 60), min_size=1, max_size=12), st.floats(0, 60))
def test_far_networks_do_not_press_the_others_together(nearest: list[float], other: float) -> None:
    points = {
        "generated": MethodPoints.from_distances(rand(len(nearest)), torch.tensor(nearest, dtype=torch.float64), 1.0),
        "noise_raw": MethodPoints.from_distances(rand(1), torch.tensor([other], dtype=torch.float64), 1.0),
    }
    farthest = max(*nearest, other)
    for panel in frontier._panels(points, 3.0):
        assert panel.novelty[0] <= 0 < panel.novelty[1] <= 3
    assert frontier._panels(points, 3.0)[0].novelty[1] >= min(farthest, 3)
    beyond = sum(each > 3 for each in (*nearest, other))
    note = f"Networks beyond 3, not drawn: {beyond} (up to {farthest:.3g})" if beyond else None
    assert frontier._beyond_note(points, 3.0) == note


def test_novelties_of_errors_have_no_end_but_their_own(tmp_path: Path) -> None:
    svgs = [frontier_figure({"original": each}, tmp_path / "figure")[1] for each in (points(9), distances(9))]
    assert all("not drawn" not in svg.read_text(encoding="utf-8") for svg in svgs)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_frontier_is_the_highest_accuracy_at_that_novelty_or_more(pairs: list[tuple[int, int]]) -> None:
    novelty_B, accuracy_B = torch.tensor(pairs, dtype=torch.float64).T
    novelty_F, accuracy_F = frontier._frontier(novelty_B, accuracy_B)
    corners = set(zip(novelty_F.tolist(), accuracy_F.tolist(), strict=True))
    assert corners == {  # the points that no different point equals or beats in both
        (float(n), float(a))
        for n, a in pairs
        if not any(n2 >= n and a2 >= a and (n2, a2) != (n, a) for n2, a2 in pairs)
    }
    assert novelty_F.tolist() == sorted(novelty_F.tolist())
    assert len(corners) == len(novelty_F)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_points_of_one_level_stand_apart_and_centred(levels: list[int]) -> None:
    values_B = torch.tensor(levels, dtype=torch.float64)
    offset_B = checkpoints._side_by_side(values_B, 1.0)
    assert float(offset_B.abs().max()) <= 0.4 + 1e-12
    for level in set(levels):
        row = offset_B[values_B == level].sort().values
        assert float(row.sum()) == pytest.approx(0, abs=1e-9)
        assert len(row) == 1 or float(row.diff().min()) > 0


@pytest.mark.parametrize("slice_bytes", [1, 64 << 20])
def test_plane_is_that_of_the_weighted_covariance(slice_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectories, "_SLICE_BYTES", slice_bytes)
    path_TSD, original_KD = 3 + rand(5, 4, 6), 3 + rand(9, 6, seed=1) * torch.arange(6)
    path_TS2, original_K2, shares = trajectories._project(path_TSD, original_KD)
    mean_D = original_KD.double().mean(dim=0)
    ends = torch.cat([path_TSD[0], path_TSD[-1]]).double() - mean_D
    originals = original_KD.double() - mean_D
    values_D, vectors_DD = torch.linalg.eigh(originals.T @ originals / 9 + ends.T @ ends / 8)
    expected = originals @ vectors_DD[:, [-1, -2]]
    sign_2 = (expected[0] * original_K2[0]).sign()  # the sign of an eigenvector is free
    torch.testing.assert_close(original_K2, sign_2 * expected)
    torch.testing.assert_close(path_TS2, sign_2 * ((path_TSD.double() - mean_D) @ vectors_DD[:, [-1, -2]]))
    assert shares == pytest.approx((values_D[[-1, -2]] / values_D.sum()).tolist())


def test_tensors_are_scaled_by_their_extremes_over_all_seeds() -> None:
    scaled_SRC, note = heat_maps._scaled(torch.arange(24).reshape(2, 3, 2, 2))
    assert note == ""
    torch.testing.assert_close(scaled_SRC, torch.linspace(0, 1, 24, dtype=torch.float64).reshape(2, 3, 4))


def test_latents_do_not_depend_on_the_number_of_threads() -> None:
    flat_MD = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).double()
    with threadpool_limits(1):
        expected = latents._embed(flat_MD)
    with threadpool_limits(2):
        torch.testing.assert_close(latents._embed(flat_MD), expected, rtol=0, atol=0)


BAD: dict[str, tuple[Callable[[Path], list[Path]], str]] = {
    "no tensor": (lambda stem: parameter_heat_maps({}, stem), "no tensors"),
    "seeds": (lambda stem: parameter_heat_maps({"a": rand(3, 2), "b": rand(2, 2)}, stem), "b has shape .* 3 seeds"),
    "scalar": (lambda stem: parameter_heat_maps({"a": torch.ones(())}, stem), r"a has shape \[\]"),
    "NaN": (lambda stem: parameter_heat_maps({"a": torch.full((2,), torch.nan)}, stem), "a holds NaN"),
    "comparison": (lambda stem: similarity_figure({"original_origin": rand(3)}, stem), "unknown comparison"),
    "matrix": (lambda stem: similarity_figure({"original_original": rand(3, 3)}, stem), "one per comparison"),
    "no similarity": (lambda stem: similarity_figure({}, stem), "no similarity to draw"),
    "IoU": (lambda stem: similarity_figure({"original_original": 2 + rand(3)}, stem), "outside 0..1"),
    "method": (lambda stem: latents_figure({"originals": rand(9, 3)}, stem), "unknown method"),
    "latent sizes": (lambda stem: latents_figure({"original": rand(9, 3), "generated": rand(9, 4)}, stem), "as many"),
    "few latents": (lambda stem: latents_figure({"original": rand(3, 4)}, stem), "at least 4"),
    "same latents": (lambda stem: latents_figure({"original": torch.ones(9, 4)}, stem), "all latents are the same"),
    "infinite latents": (lambda stem: latents_figure({"original": rand(9, 4) / 0}, stem), "NaN or Inf"),
    "few originals": (lambda stem: trajectories_figure(rand(3, 2, 5), rand(2, 5), stem, unit=""), "3 originals"),
    "other size": (lambda stem: trajectories_figure(rand(3, 2, 5), rand(9, 4), stem, unit=""), "as many numbers"),
    "no noise axis": (lambda stem: trajectories_figure(rand(3, 5), rand(9, 5), stem, unit=""), "noises, ..."),
    "a line": (
        lambda stem: trajectories_figure(rand(3, 2, 1).expand(3, 2, 5), rand(9, 1).expand(9, 5), stem, unit=""),
        "one line",
    ),
    "K": (lambda stem: checkpoints_figure({0: rand(3)}, stem), "all positive"),
    "undefined": (lambda stem: checkpoints_figure({1: torch.full((3,), torch.nan)}, stem), "no similarity to draw"),
    "K's shape": (lambda stem: checkpoints_figure({1: rand(3, 1)}, stem), r"K = 1: .*\[B\]"),
    "accuracies": (
        lambda stem: frontier_figure({"original": MethodPoints.from_similarities(rand(2), rand(3))}, stem),
        "one of each",
    ),
    "two kinds": (
        lambda stem: frontier_figure({"original": points(3), "generated": distances(3)}, stem),
        "different kinds: distance and errors",
    ),
    "curves": (lambda stem: ensembles_figure({}, stem), "no curves"),
    "sizes": (lambda stem: ensembles_figure({"original": EnsembleCurve((), (), (), ())}, stem), "positive numbers"),
    "too few": (lambda stem: ensembles_figure({"original": EnsembleCurve((1,), (0.9,), (), (0.1,))}, stem), "nll is"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tmp_path: Path) -> None:
    draw, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "figure")
    assert not list(tmp_path.iterdir())
