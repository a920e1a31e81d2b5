"""evaluation/similarity.py gives the same as a naive implementation with Python sets."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdiff_hub.evaluation import similarity
from pdiff_hub.evaluation.similarity import iou_matrix, max_to_any, mean_between, mean_pairwise, similarity_summary
from pdiff_hub.records import SimilaritySummary


@st.composite
def masks(draw: st.DrawFn, least: int = 1) -> tuple[Tensor, Tensor]:
    """Two sets of wrong predictions on the same images. Some masks are empty, and some are duplicates."""
    num_images = draw(st.integers(1, 40))
    row = st.one_of(
        st.just([False] * num_images),
        st.just([True] * num_images),
        st.lists(st.booleans(), min_size=num_images, max_size=num_images),
    )
    pool = draw(st.lists(row, min_size=1, max_size=4))
    choose = st.lists(st.sampled_from(pool), min_size=least, max_size=7)
    return torch.tensor(draw(choose)), torch.tensor(draw(choose))


def naive(first: Tensor, second: Tensor) -> float:
    one, two = set(first.nonzero().flatten().tolist()), set(second.nonzero().flatten().tolist())
    return len(one & two) / len(one | two) if one | two else math.nan


def same(found: float, expected: float) -> bool:
    return (math.isnan(found) and math.isnan(expected)) or abs(found - expected) < 1e-12


def mean(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "_ROWS", 3)
    monkeypatch.setattr(similarity, "_IMAGES", 7)


@settings(max_examples=60, deadline=None)
@given(masks())
def test_iou_equals_naive(sets: tuple[Tensor, Tensor]) -> None:
    a, b = sets
    found = iou_matrix(a, b)
    assert found.shape == (len(a), len(b)) and found.dtype == torch.float64
    for i, first in enumerate(a):
        for j, second in enumerate(b):
            assert same(float(found[i, j]), naive(first, second))
            if torch.equal(first, second) and first.any():
                assert found[i, j] == 1.0  # equal masks give exactly 1


@settings(max_examples=60, deadline=None)
@given(masks(least=2))
def test_means_and_maxima_equal_naive(sets: tuple[Tensor, Tensor]) -> None:
    a, b = sets
    own = [[naive(first, second) for j, second in enumerate(a) if j != i] for i, first in enumerate(a)]
    cross = [[naive(first, second) for second in b] for first in a]
    assert same(mean_pairwise(a), mean([value for row in own for value in row]))
    assert same(mean_between(a, b), mean([value for row in cross for value in row]))
    for found, rows in ((max_to_any(a, a, exclude_self=True), own), (max_to_any(a, b, exclude_self=False), cross)):
        for value, row in zip(found.tolist(), rows, strict=True):
            assert same(value, max((each for each in row if not math.isnan(each)), default=math.nan))


def test_a_network_is_never_compared_with_itself_but_is_with_its_duplicate() -> None:
    wrong = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    assert max_to_any(wrong, wrong, exclude_self=True).tolist() == [1.0, 0.5, 1.0]
    assert max_to_any(wrong[:2], wrong[:2], exclude_self=True).tolist() == [0.5, 0.5]
    assert max_to_any(wrong[:1], wrong[:1], exclude_self=False).tolist() == [1.0]


def test_no_errors_at_all_is_nan_not_an_exception() -> None:
    clean = torch.zeros(3, 5, dtype=torch.bool)
    assert iou_matrix(clean, clean).isnan().all()
    assert math.isnan(mean_pairwise(clean)) and max_to_any(clean, clean, exclude_self=True).isnan().all()
    assert similarity_summary(clean, clean) == SimilaritySummary()


def test_summary() -> None:
    original = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    generated = torch.tensor([[1, 1, 0]]).bool()
    # There is only one generated network, so it cannot be compared with another one.
    assert similarity_summary(original, generated) == SimilaritySummary(0.5, None, 0.75, 1.0)


def test_large_sets_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    wrong = torch.rand(200, 10_000, generator=torch.Generator().manual_seed(0)) < 0.1
    iou_matrix(wrong[:2], wrong)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        found = iou_matrix(wrong, wrong)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0
    assert torch.equal(found.diagonal(), torch.ones(200, dtype=torch.float64))
    assert torch.equal(found, found.T)


def test_bad_input() -> None:
    wrong = torch.zeros(3, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected bool"):
        iou_matrix(wrong.float(), wrong)
    with pytest.raises(ValueError, match="at least one of each"):
        iou_matrix(wrong[:0], wrong)
    with pytest.raises(ValueError, match="over 5 and 4 images"):
        iou_matrix(wrong, wrong[:, :4])
    with pytest.raises(ValueError, match="at least two"):
        mean_pairwise(wrong[:1])
    with pytest.raises(ValueError, match="exclude_self"):
        max_to_any(wrong, wrong[:2], exclude_self=True)
    with pytest.raises(ValueError, match="exclude_self"):
        max_to_any(wrong[:1], wrong[:1], exclude_self=True)
