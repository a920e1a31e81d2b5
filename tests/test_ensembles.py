"""evaluation/ensembles.py gives the same as a naive loop over groups, images and bins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pdiff_hub.evaluation.ensembles import Ensembles
from pdiff_hub.prediction import predictions
from pdiff_hub.prediction.predictions import SplitImages, evaluate
from pdiff_hub.records import EnsembleCurve
from pdiff_hub.tasks import load_task
from pdiff_hub.travelling.param_autoencoder import ParamLayout


class Table(nn.Module):
    """Answers image i (one pixel that holds i) with row i of its weight, so a test can choose any logits."""

    def __init__(self, num_images: int, num_classes: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(num_images, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        rows: Tensor = self.rows(images.flatten().long())
        return rows


def curve(logits_BNc: Tensor, labels_N: Tensor, sizes: Sequence[int] = (1, 2, 5, 10, 20)) -> EnsembleCurve:
    network = Table(*logits_BNc.shape[1:])
    layout = ParamLayout.from_module(network)
    pixels = torch.arange(float(logits_BNc.shape[1])).view(-1, 1, 1, 1)
    heard = Ensembles(range(len(logits_BNc)), sizes)
    evaluate(network, layout, {}, logits_BNc.flatten(1), pixels, labels_N, listener=heard)
    return heard.curve()


def naive(logits_BNc: Tensor, labels_N: Tensor, size: int, most: int = 20) -> tuple[float, float, float]:
    probabilities = np.exp(logits_BNc.double().numpy())
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    networks = probabilities[:most]
    figures = []
    for g in range(len(networks) // size):
        answer_Nc = networks[g * size : (g + 1) * size].mean(axis=0)
        right, confidence = answer_Nc.argmax(axis=1) == labels_N.numpy(), answer_Nc.max(axis=1)
        nll = -np.log(answer_Nc[np.arange(len(labels_N)), labels_N.numpy()]).mean()
        ece = 0.0
        for low in np.arange(15) / 15:
            inside = (confidence > low) & (confidence <= low + 1 / 15)
            if inside.any():
                ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        figures.append((right.mean(), nll, ece))
    accuracy, nll, ece = np.mean(figures, axis=0)
    return float(accuracy), float(nll), float(ece)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 23), st.integers(1, 40), st.integers(2, 6), st.floats(0.1, 5), st.integers(0, 2**31))
def test_equals_naive(num_networks: int, num_images: int, num_classes: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BNc = scale * torch.randn(num_networks, num_images, num_classes, generator=generator)
    labels_N = torch.randint(num_classes, (num_images,), generator=generator)
    found = curve(logits_BNc, labels_N)
    assert found.sizes == tuple(size for size in (1, 2, 5, 10, 20) if size <= num_networks)
    for row in zip(found.sizes, found.accuracy, found.nll, found.calibration_error, strict=True):
        assert row[1:] == pytest.approx(naive(logits_BNc, labels_N, row[0]), abs=1e-6), row[0]
    assert all(type(value) is float for value in (*found.accuracy, *found.nll, *found.calibration_error))


def test_known_values() -> None:
    """Two networks with opposite answers know nothing together, and each wrong answer costs what its logits say."""
    logits_BNc = torch.tensor([[[1000.0, 0.0]] * 4, [[0.0, 1000.0]] * 4])
    found = curve(logits_BNc, torch.zeros(4, dtype=torch.int64), sizes=(1, 2))
    assert found.nll == pytest.approx((500.0, math.log(2)))  # exp(-1000) is 0 in any float, but its logarithm is finite
    assert found.accuracy[0] == 0.5 and found.calibration_error == pytest.approx((0.5, 0.5))
    same = curve(logits_BNc[:1].expand(20, -1, -1), torch.zeros(4, dtype=torch.int64))
    assert same.accuracy == (1.0,) * 5 and same.calibration_error == pytest.approx((0.0,) * 5)
    assert same.nll == pytest.approx((0.0,) * 5)


def test_calibrated_answers_have_a_small_error_and_ensembles_a_lower_nll() -> None:
    generator = torch.Generator().manual_seed(0)
    truth_Nc = torch.randn(8_000, 4, generator=generator)
    labels_N = truth_Nc.softmax(dim=1).multinomial(1, generator=generator)[:, 0]
    calibrated = curve(truth_Nc[None], labels_N)
    assert calibrated.sizes == (1,) and calibrated.calibration_error[0] < 0.03
    assert curve(3 * truth_Nc[None], labels_N).calibration_error[0] > 0.1  # overconfident
    noisy = curve(truth_Nc + torch.randn(20, 8_000, 4, generator=generator), labels_N)
    assert list(noisy.nll) == sorted(noisy.nll, reverse=True) and list(noisy.accuracy) == sorted(noisy.accuracy)


def test_chunks_of_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("digits")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    layout = ParamLayout.from_module(network, ["3.weight", "3.bias"])
    params_BP = layout.flatten(network.state_dict()) + 0.5 * torch.randn(11, layout.num_params)
    frozen = layout.frozen_state(network.state_dict())
    images, labels_N = SplitImages(task, task.validation), task.validation.labels_N

    def figures() -> Tensor:
        heard = Ensembles(range(len(params_BP)))
        evaluate(network, layout, frozen, params_BP, images, labels_N, listener=heard)
        found = heard.curve()
        assert found.sizes == (1, 2, 5, 10)
        return torch.tensor([found.accuracy, found.nll, found.calibration_error])

    whole = figures()
    for chunks in ((True, 4, 50), (False, 1, 25), (True, 11, 200)):
        monkeypatch.setattr(predictions, "_chunk_sizes", lambda *_, chunks=chunks: chunks)
        torch.testing.assert_close(figures(), whole)


def test_networks_that_are_not_listed_are_not_heard() -> None:
    logits_BNc = torch.randn(9, 12, 3, generator=torch.Generator().manual_seed(0))
    labels_N, rows = torch.arange(12) % 3, [1, 2, 5, 8]
    network = Table(12, 3)
    heard = Ensembles(rows, sizes=(2,))
    layout, pixels = ParamLayout.from_module(network), torch.arange(12.0).view(-1, 1, 1, 1)
    evaluate(network, layout, {}, logits_BNc.flatten(1), pixels, labels_N, listener=heard)
    assert heard.curve() == curve(logits_BNc[rows], labels_N, sizes=(2,))


def test_only_the_first_networks_count() -> None:
    logits_BNc = torch.randn(30, 12, 3, generator=torch.Generator().manual_seed(0))
    labels_N = torch.arange(12) % 3
    assert curve(logits_BNc, labels_N) == curve(logits_BNc[:20], labels_N)
    few = curve(logits_BNc, labels_N, sizes=(3, 7))
    assert few.accuracy[0] == pytest.approx(naive(logits_BNc, labels_N, 3, most=7)[0])
    assert few.accuracy[1] == pytest.approx(naive(logits_BNc, labels_N, 7, most=7)[0])


def test_bad_input() -> None:
    logits_BNc, labels_N = torch.randn(3, 6, 4), torch.zeros(6, dtype=torch.int64)
    for sizes in ((), (0, 1), (-2,)):
        with pytest.raises(ValueError, match="numbers of networks, from 1"):
            curve(logits_BNc, labels_N, sizes=sizes)
    with pytest.raises(ValueError, match="3 networks, fewer than the smallest"):
        curve(logits_BNc, labels_N, sizes=(4, 9))
    with pytest.raises(ValueError, match=r"labels have shape \[5\]"):
        curve(logits_BNc, labels_N[1:])
    for label in (-1, 4):
        with pytest.raises(ValueError, match="labels run from"):
            curve(logits_BNc, labels_N.index_fill(0, torch.tensor([2]), label))
    for value in (math.nan, math.inf):
        broken = logits_BNc.clone()
        broken[1, 3, 2] = value
        with pytest.raises(ValueError, match="network 1 answers NaN or Inf"):
            curve(broken, labels_N)
