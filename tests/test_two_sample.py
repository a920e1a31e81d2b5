"""Generated networks are told from fresh ones if, and only if, they differ; traits equal naive measures."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from pdiff_hub.checkpoints.rows import TensorRows
from pdiff_hub.evaluation import traits, two_sample
from pdiff_hub.evaluation.traits import network_traits
from pdiff_hub.evaluation.two_sample import tell_apart
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.prediction.predictions import Predictions, SplitImages, evaluate, predict_logits
from pdiff_hub.records import Telling
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.travelling.param_autoencoder import ParamLayout

SPEC = resolve_network({"name": "mlp3", "hidden": [6, 6]}, in_channels=1, image_size=8, num_classes=10)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def told(traits_BF: Tensor, traits_HF: Tensor, seed: int = 0) -> Telling:
    telling = tell_apart(traits_BF, traits_HF, seed)
    assert telling is not None and 0 <= telling.low <= telling.auc <= telling.high <= 1
    return telling


def test_nobody_can_tell_two_samples_of_one_distribution() -> None:
    found = [told(each[:20], each[20:], seed) for seed, each in enumerate(normal(10, 220, 30))]
    assert sum(each.low <= 0.5 <= each.high for each in found) >= 9
    assert 0.45 < sum(each.auc for each in found) / len(found) < 0.55
    assert all(each.high - each.low < 0.6 for each in found)


def test_other_means_and_other_spreads_are_told() -> None:
    fresh_HF, other_BF = normal(200, 30), normal(20, 30, seed=1)
    shifted = told(other_BF + 0.6, fresh_HF)
    assert shifted.auc > 0.9 and shifted.low > 0.5
    narrow = told(other_BF / 2, fresh_HF)
    assert narrow.auc > 0.75 and narrow.low > 0.5
    unit_F = 10.0 ** torch.arange(-15, 15)  # units of traits do not matter
    assert told((other_BF + 0.6) * unit_F, fresh_HF * unit_F).auc == pytest.approx(shifted.auc, abs=1e-3)


def test_more_traits_than_networks() -> None:
    fresh_HF, generated_BF = normal(20, 150), normal(10, 150, seed=1)
    assert told(generated_BF, fresh_HF).low < 0.5
    assert told(generated_BF + 1, fresh_HF).auc > 0.9


def test_traits_that_are_all_the_same() -> None:
    constant = told(torch.full((6, 3), 0.1), torch.full((9, 3), 0.1))
    assert constant == Telling(0.5, 0.5, 0.5)
    fresh_HF, copies_BF = normal(9, 4), normal(1, 4, seed=1).expand(6, -1)
    assert told(copies_BF, copies_BF).auc == 0.5
    beside = torch.full((15, 1), 1e6)
    with_constant = told(torch.cat([copies_BF, beside[:6]], 1), torch.cat([fresh_HF, beside[6:]], 1))
    assert with_constant == told(copies_BF, fresh_HF) and with_constant.auc > 0.9


def test_the_same_seed_gives_the_same_numbers() -> None:
    generated_BF, fresh_HF = normal(8, 3), normal(7, 3, seed=1)
    assert told(generated_BF, fresh_HF) == told(generated_BF, fresh_HF) != told(generated_BF, fresh_HF, seed=1)


def test_few_networks_and_bad_traits() -> None:
    assert tell_apart(normal(4, 3), normal(50, 3), 0) is None and tell_apart(normal(50, 3), normal(4, 3), 0) is None
    assert told(normal(5, 3), normal(5, 3, seed=1))
    for bad in (torch.nan, torch.inf):
        broken_HF = normal(9, 3)
        broken_HF[4, 2] = bad
        with pytest.raises(ValueError, match="trait column 2 holds NaN or Inf"):
            tell_apart(normal(9, 3), broken_HF, 0)
    for other_HF in (normal(9, 2), normal(9)):
        with pytest.raises(ValueError, match="the same traits in both"):
            tell_apart(normal(9, 3), other_HF, 0)


@cache
def digits() -> Task:
    return load_task("digits")


def judged(num: int) -> tuple[ParamLayout, Tensor, Predictions]:
    layout = ParamLayout.from_module(build_network(SPEC))
    params_BP = 0.3 * normal(num, layout.num_params).float()
    for entry in layout.entries:
        if len(entry.shape) == 2:  # one direction stands out, so that power iteration ends early
            outer = normal(num, entry.shape[0], 1, seed=1) @ normal(num, 1, entry.shape[1], seed=2)
            params_BP[:, entry.start : entry.stop] += outer.float().flatten(1)
    params_BP[-1, layout.entries[0].start : layout.entries[0].stop] = 0
    return layout, params_BP, predictions_of(layout, params_BP)


def predictions_of(layout: ParamLayout, params_BP: Tensor) -> Predictions:
    task, network = digits(), build_network(SPEC)
    images = SplitImages(task, task.validation)
    return evaluate(network, layout, {}, params_BP, images, task.validation.labels_N, with_loss=True)


@pytest.mark.parametrize("slice_bytes", [1, 5_000, 1 << 30])
def test_traits_equal_naive_measures(slice_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traits, "_SLICE_BYTES", slice_bytes)
    layout, params_BP, predictions = judged(7)
    majority_N, distances_BD = predictions.wrong_BN[:5].sum(dim=0) > 2, normal(7, 2)
    found_BF = network_traits(layout, TensorRows(params_BP), predictions, majority_N, distances_BD)
    assert found_BF.dtype == torch.float64 and found_BF.shape == (7, 4 + 6 + 3 + 2)
    assert torch.equal(found_BF[:, 0], predictions.accuracy_B)
    assert torch.equal(found_BF[:, 1], predictions.loss_B)
    logits_BNc = predict_logits(build_network(SPEC), layout, {}, params_BP, SplitImages(digits(), digits().validation))
    assert torch.allclose(found_BF[:, 2], logits_BNc.double().softmax(-1).amax(-1).mean(-1), atol=1e-6)
    assert torch.allclose(found_BF[:, 3], 1 - (predictions.wrong_BN ^ majority_N).double().mean(1))
    assert torch.equal(found_BF[:, 13:], distances_BD)
    tensors = layout.stack(params_BP)
    for column, tensor in zip(found_BF[:-1, 4:10].T, tensors.values(), strict=True):
        assert torch.allclose(column.exp(), tensor[:-1].flatten(1).norm(dim=1).double(), rtol=1e-5)
    matrices = [tensor for tensor in tensors.values() if tensor.ndim == 3]
    for column, matrix in zip(found_BF[:-1, 10:13].T, matrices, strict=True):
        ratio = torch.linalg.matrix_norm(matrix[:-1], 2) / torch.linalg.matrix_norm(matrix[:-1])
        assert torch.allclose(column, ratio.double(), rtol=1e-2)
    assert found_BF.isfinite().all() and found_BF[-1, 4] < -80 and found_BF[-1, 10] == 0  # the tensor of zeros


def test_a_convolution_is_a_matrix_and_a_row_is_not() -> None:
    convolution = torch.nn.Conv2d(3, 4, 3)
    layout = ParamLayout.from_module(torch.nn.Sequential(convolution, torch.nn.Conv2d(4, 1, 2)))
    params_BP = layout.flatten([torch.nn.Sequential(convolution, torch.nn.Conv2d(4, 1, 2)).state_dict()])
    answers = Predictions(torch.ones(1), torch.zeros(1, 9, dtype=torch.bool), torch.zeros(1), torch.ones(1))
    found_BF = network_traits(layout, TensorRows(params_BP), answers, torch.zeros(9).bool(), torch.empty(1, 0))
    assert found_BF.shape == (1, 4 + 4 + 1) and found_BF[0, :4].tolist() == [1, 0, 1, 1]
    matrix = convolution.weight.detach().flatten(1)
    assert float(found_BF[0, -1]) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2) / matrix.norm()), rel=0.05)


def test_what_does_not_fit_is_refused() -> None:
    layout, params_BP, predictions = judged(3)
    majority_N, none = predictions.wrong_BN[0], torch.empty(3, 0)
    rows = TensorRows(params_BP)
    with pytest.raises(ValueError, match="with_loss=True"):
        network_traits(layout, rows, Predictions(predictions.accuracy_B, predictions.wrong_BN), majority_N, none)
    with pytest.raises(ValueError, match="the images of the majority"):
        network_traits(layout, rows, predictions, majority_N[1:], none)
    with pytest.raises(ValueError, match=r"other traits have shape \[2, 0\]"):
        network_traits(layout, rows, predictions, majority_N, none[1:])
    with pytest.raises(ValueError, match="the layout"):
        network_traits(layout, TensorRows(params_BP[:, 1:]), predictions, majority_N, none)


def test_scores_are_those_of_scikit_learn() -> None:
    linear, steps = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.preprocessing")
    traits, is_generated = normal(60, 9).numpy(), np.arange(60) < 40
    traits[is_generated, :3] += 0.4
    traits[:, 8] = 0.1  # constant: it stays unscaled
    learned, asked = np.arange(60) % 5 != 0, np.arange(60) % 5 == 0
    first = steps.StandardScaler().fit(traits[learned])
    scaled, scaled_asked = first.transform(traits[learned]), first.transform(traits[asked])
    both = np.concatenate([scaled, np.abs(scaled)], axis=1)
    second = steps.StandardScaler().fit(both)
    model = linear.LogisticRegression(class_weight="balanced", max_iter=10_000).fit(
        second.transform(both), is_generated[learned]
    )
    wanted = model.decision_function(second.transform(np.concatenate([scaled_asked, np.abs(scaled_asked)], axis=1)))
    found = two_sample._scores(traits[learned], is_generated[learned], traits[asked])
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("num_generated", "num_fresh"), [(5, 5), (7, 23), (200, 21), (6, 5)])
def test_the_folds_are_those_of_scikit_learn(num_generated: int, num_fresh: int) -> None:
    kinds = np.arange(num_generated + num_fresh) < num_generated
    selection = pytest.importorskip("sklearn.model_selection")
    folds = selection.RepeatedStratifiedKFold(n_splits=5, n_repeats=10, random_state=3).split(kinds[:, None], kinds)
    expected = [np.isin(np.arange(len(kinds)), asked) for _, asked in folds]
    assert np.array_equal(expected, list(two_sample._folds(num_generated, num_fresh, 3)))


def test_threads_are_as_they_were_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    scores = two_sample._scores
    monkeypatch.setattr(two_sample, "_scores", lambda *given: (seen.append(torch.get_num_threads()), scores(*given))[1])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        told(normal(10, 3), normal(10, 3, seed=1))
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
