"""evaluation/distances.py gives the same as naive formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdiff_hub.evaluation import distances
from pdiff_hub.evaluation.distances import NearestL2, nearest_l2, spread_ratio
from pdiff_hub.evaluation.judging import summarise_accuracy


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_SLICE_BYTES", 400)
    monkeypatch.setattr(distances, "_PRODUCT_BYTES", 80)


@st.composite
def populations(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two sets of at least two networks, with some duplicates. They share a centre; centre and spread vary in size."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_params = draw(st.integers(1, 23))
    centre = draw(st.sampled_from([0.0, 1.0, 1e4])) * torch.randn(num_params, generator=generator)
    spread = draw(st.sampled_from([1e-2, 1.0, 1e3]))
    pool = centre + spread * torch.randn(8, num_params, generator=generator)
    rows = st.lists(st.integers(0, 7), min_size=2, max_size=6)
    return pool[draw(rows)], pool[draw(rows)]


@settings(max_examples=60, deadline=None)
@given(populations())
def test_nearest_l2_equals_naive(sets: tuple[Tensor, Tensor]) -> None:
    query, reference = sets
    distances = np.linalg.norm(query.double().numpy()[:, None] - reference.double().numpy()[None], axis=2)
    found = nearest_l2(query, reference, leave_one_out=False)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), distances.min(axis=1), rtol=1e-6, atol=1e-12)
    own = np.linalg.norm(query.double().numpy()[:, None] - query.double().numpy()[None], axis=2)
    np.fill_diagonal(own, np.inf)
    np.testing.assert_allclose(nearest_l2(query, query, leave_one_out=True).numpy(), own.min(axis=1), rtol=1e-6)


def test_duplicates_far_from_the_origin_are_at_distance_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = 1e3 + torch.randn(5, 1000, generator=generator)
    reference[4] = reference[1]
    assert nearest_l2(reference[2:3], reference, leave_one_out=False).tolist() == [0.0]
    found = nearest_l2(reference, reference, leave_one_out=True)
    assert found[1] == 0.0 and found[4] == 0.0 and (found[[0, 2, 3]] > 10).all()


@settings(max_examples=30, deadline=None)
@given(populations(), st.floats(1e3, 1e6))
def test_many_sets_are_compared_with_the_same_references(sets: tuple[Tensor, Tensor], far: float) -> None:
    query, reference = sets
    reference = torch.cat([reference[:1] + far, reference])  # the first one, which all are taken from, is an outlier
    nearest = NearestL2(reference)
    for _ in range(2):
        for queries, own in ((query, False), (reference, True), (query[:1], False)):
            found = nearest(queries, leave_one_out=own)
            expected = torch.cdist(queries.double(), reference.double(), compute_mode="donot_use_mm_for_euclid_dist")
            if own:
                expected.fill_diagonal_(torch.inf)
            expected = expected.amin(dim=1)
            # Among references whose squared distances differ by this little, rounding chooses.
            scale = torch.linalg.vector_norm(queries.double() - reference[0].double(), dim=1)
            scale += torch.linalg.vector_norm(reference.double(), dim=1).max()
            assert (found >= expected * (1 - 1e-6)).all()
            assert (found.square() <= expected.square() * (1 + 1e-6) + 2e-15 * scale.square()).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 1])
def test_references_that_are_no_numbers_are_refused(value: float, row: int) -> None:
    reference = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    reference[row, 7] = value
    with pytest.raises(ValueError, match="hold NaN or Inf"):
        NearestL2(reference)


@settings(max_examples=30, deadline=None)
@given(populations())
def test_spread_ratio_equals_naive(sets: tuple[Tensor, Tensor]) -> None:
    generated, original = (params.double().numpy() for params in sets)
    if np.ptp(original, axis=0).max() == 0:
        with pytest.raises(ValueError, match="all original networks are the same"):
            spread_ratio(*sets)
        return
    expected = np.sqrt(generated.var(axis=0, ddof=1).sum() / original.var(axis=0, ddof=1).sum())
    assert spread_ratio(*sets) == pytest.approx(expected, rel=1e-6)


def test_spread_ratio_means_what_it_says() -> None:
    original = torch.randn(300, 50, generator=torch.Generator().manual_seed(0))
    assert spread_ratio(original, original) == 1.0
    assert spread_ratio(7 + 0.5 * original, original) == pytest.approx(0.5, rel=1e-6)
    assert spread_ratio(original[:1].expand(4, -1), original) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=9))
def test_best_is_chosen_on_validation(pairs: list[tuple[int, int]]) -> None:
    validation, test = (torch.tensor(column, dtype=torch.float64) / 20 for column in zip(*pairs, strict=True))
    summary = summarise_accuracy(validation, test)
    values = test.numpy()
    assert summary.best == values[int(np.argmax(validation.numpy()))]
    assert summary.mean == pytest.approx(values.mean())
    assert summary.median == pytest.approx(np.median(values))
    assert summary.std == pytest.approx(values.std(ddof=1) if len(values) > 1 else 0.0)


def test_the_best_on_test_is_not_reported_as_best() -> None:
    assert summarise_accuracy(torch.tensor([0.9, 0.8]), torch.tensor([0.5, 1.0])).best == 0.5


def test_bad_input() -> None:
    params = torch.randn(3, 5)
    for measure in (lambda a, b: nearest_l2(a, b, leave_one_out=False), spread_ratio):
        with pytest.raises(ValueError, match="5 and 4 parameters"):
            measure(params, params[:, :4])
        with pytest.raises(ValueError, match="at least one of each"):
            measure(params, params[:0])
        with pytest.raises(ValueError, match="NaN or Inf"):
            measure(params, params.log())
    with pytest.raises(ValueError, match="at least two"):
        nearest_l2(params[:1], params[:1], leave_one_out=True)
    with pytest.raises(ValueError, match="leave_one_out"):
        nearest_l2(params[:2], params, leave_one_out=True)
    with pytest.raises(ValueError, match="least two of each"):
        spread_ratio(params[:1], params)
    with pytest.raises(ValueError, match="one of each per network"):
        summarise_accuracy(torch.rand(3), torch.rand(2))
    with pytest.raises(ValueError, match="at least one network"):
        summarise_accuracy(torch.rand(0), torch.rand(0))
    with pytest.raises(ValueError, match="fractions, not percent"):
        summarise_accuracy(torch.tensor([0.5]), torch.tensor([97.7]))
    with pytest.raises(ValueError, match="no NaN"):
        summarise_accuracy(torch.tensor([torch.nan]), torch.tensor([0.9]))
