"""`evaluate_networks` agrees with naive measures and handles edge cases; its baselines do not affect each other."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.evaluation.baselines import Variant, gaussian, noise_raw
from pdiff_hub.evaluation.evaluate import evaluate_networks, similarity_pairs
from pdiff_hub.evaluation.results_page import result_sections
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.records import FIGURES, REQUEST_FIGURES, Facts, Measurements, Results, RunFolder
from pdiff_hub.tasks import Split, Task, load_task
from pdiff_hub.travelling.param_autoencoder import ParamLayout

SPEC = resolve_network({"name": "mlp3", "hidden": [6, 6]}, in_channels=1, image_size=8, num_classes=10)
VARIANTS = [
    Variant("gaussian", "gaussian", gaussian),
    *(Variant(f"noise_raw_{sigma:g}", "noise_raw", partial(noise_raw, sigma=sigma)) for sigma in (0.06, 0.12)),
]


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


def checkpoints(num: int, seed: int = 0) -> CheckpointDataset:
    module = build_network(SPEC)
    layout = ParamLayout.from_module(module)
    params_KP = 0.3 * torch.randn(num, layout.num_params, generator=torch.Generator().manual_seed(seed))
    return CheckpointDataset(params_KP, layout, network=SPEC)


def judge(task: Task, originals: CheckpointDataset, generated_BP: Tensor, **options: Any) -> Measurements:
    return evaluate_networks(build_network(SPEC), task, originals, generated_BP, deviation_r2=0.5, **options)


def wrong(task: Task, originals: CheckpointDataset, params_BP: Tensor) -> Tensor:
    network, rows = build_network(SPEC).eval(), []
    for params_P in params_BP:
        state = originals.layout.unflatten(params_P)
        assert isinstance(state, dict)
        network.load_state_dict(state)
        with torch.no_grad():
            rows.append(network(task.inputs(task.test)).argmax(1) != task.test.labels_N)
    return torch.stack(rows)


def naive_iou(first_N: Tensor, second_N: Tensor) -> float:
    return int((first_N & second_N).sum()) / int((first_N | second_N).sum())


def test_results_agree_with_naive_measures(task: Task, tmp_path: Path) -> None:
    originals, generated_BP = checkpoints(5), checkpoints(4, seed=1).params_KP
    generated_BP[3] = originals.params_KP[2]  # a copy of an original
    results = judge(task, originals, generated_BP, variants=VARIANTS, num_models=6, folder=RunFolder(tmp_path))
    wrong_KN, wrong_BN = wrong(task, originals, originals.params_KP), wrong(task, originals, generated_BP)
    highest = [max(naive_iou(one, other) for other in wrong_KN) for one in wrong_BN]
    assert highest[3] == 1.0
    assert results.similarity.original_generated_max == pytest.approx(sum(highest) / 4, abs=1e-6)
    assert results.methods["generated"].max_iou == pytest.approx(sum(highest) / 4, abs=1e-6)
    own = [max(naive_iou(wrong_KN[i], wrong_KN[j]) for j in range(5) if j != i) for i in range(5)]
    assert results.audit.max_iou_original == pytest.approx(sum(own) / 5, abs=1e-6)
    accuracies = 1 - wrong_BN.double().mean(dim=1)
    assert results.accuracy["generated"].mean == pytest.approx(float(accuracies.mean()), abs=1e-9)
    assert results.accuracy["generated"].median == pytest.approx(float(accuracies.quantile(0.5)), abs=1e-9)
    assert [(name, row.method, row.count) for name, row in results.methods.items()] == [
        ("original", "original", 5),
        ("generated", "generated", 4),
        ("ensemble", "ensemble", 1),
        ("gaussian", "gaussian", 6),
        ("noise_raw_0.06", "noise_raw", 6),
        ("noise_raw_0.12", "noise_raw", 6),
    ]
    assert set(results.frontier.versus) == {"original", "ensemble", "gaussian", "noise_raw"}
    assert set(results.distance_frontier.versus) == set(results.frontier.versus)
    distance = torch.cdist(originals.params_KP.double(), originals.params_KP.double()).fill_diagonal_(torch.inf)
    nearest_B = torch.cdist(generated_BP.double(), originals.params_KP.double()).amin(dim=1)
    farthest = float(nearest_B.max() / distance.amin(dim=1).mean())
    area = results.distance_frontier.area["generated"]
    assert area.undefined == 0 and area.area <= (float(accuracies.max()) - 0.1) * farthest + 1e-9
    assert results.distance_frontier.versus["gaussian"].shared_novelty <= farthest + 1e-9
    assert results.ensembles["generated"].sizes == (1, 2)
    single = json.loads((tmp_path / "networks.json").read_text())
    assert single["generated"]["max_similarity"] == pytest.approx(highest) and len(single["noise_raw_0.06"]) == 4
    assert single["generated"]["nearest_l2"][3] == 0.0
    drawn = set(FIGURES) - {"copies", "training", *REQUEST_FIGURES}  # without an autoencoder and its training
    assert {path.stem for path in tmp_path.glob("*.png")} == {path.stem for path in tmp_path.glob("*.svg")} == drawn
    facts = Facts("it", None, None, None, None, "all", 1, 1, None, [], None)
    (section,) = (
        each for each in result_sections(Results(facts, results), RunFolder(tmp_path)) if len(each.blocks) > 2
    )
    assert [each.png.name for each in section.blocks[1:]] == ["frontier.png", "frontier-distance.png"]
    both = f"{results.frontier.verdict}\n\n{results.distance_frontier.verdict}"
    assert (
        section.text == both and both.startswith("At the same novelty of errors, ") and "At the same distance, " in both
    )


def test_originals_that_are_copies_have_no_distance_of_their_own(task: Task, tmp_path: Path) -> None:
    originals = checkpoints(4)
    originals.params_KP[2:] = originals.params_KP[:2]
    results = judge(
        task,
        originals,
        checkpoints(3, seed=1).params_KP,
        variants=VARIANTS[:1],
        num_models=3,
        folder=RunFolder(tmp_path),
    )
    assert results.frontier is not None and results.distance_frontier is None
    assert "has an exact copy among them" in results.notes[-1] and not (tmp_path / "frontier-distance.png").exists()


def test_what_a_baseline_makes_does_not_depend_on_the_others(task: Task) -> None:
    originals = checkpoints(4)
    both = judge(task, originals, originals.params_KP, variants=VARIANTS, num_models=5)
    one = judge(task, originals, originals.params_KP, variants=VARIANTS[1:2], num_models=5)
    assert both.methods["noise_raw_0.06"] == one.methods["noise_raw_0.06"]
    other = judge(task, originals, originals.params_KP, variants=VARIANTS[1:2], num_models=5, seed=1)
    assert other.methods["noise_raw_0.06"] != one.methods["noise_raw_0.06"]


def test_a_test_set_without_errors_is_said_not_divided_by(task: Task, tmp_path: Path) -> None:
    originals = checkpoints(3)
    faultless = Split(task.test.images_NCHW, torch.zeros_like(task.test.labels_N))
    for row_P in originals.params_KP:
        row_P[originals.layout.entries[-1].start] = 1e4  # this is the bias of the first class
    perfect = Task(**{**task.__dict__, "test": faultless})
    results = judge(perfect, originals, originals.params_KP, folder=RunFolder(tmp_path))
    assert results.similarity.original_generated_max is None and results.audit.max_iou_original is None
    assert results.accuracy["generated"].mean == 1.0
    said = " ".join(results.notes)
    assert "These make no error on the test split: " in said and "3 of 3 of generated" in said
    results = judge(
        perfect, originals, originals.params_KP, variants=VARIANTS[1:2], num_models=3, folder=RunFolder(tmp_path)
    )
    assert results.frontier.versus["original"].verdict == "undefined"
    json.dumps(asdict(results), allow_nan=False)


def test_bad_input(task: Task) -> None:
    with pytest.raises(ValueError, match="has 2 checkpoints, expected at least 3"):
        judge(task, checkpoints(2), checkpoints(2).params_KP)
    with pytest.raises(ValueError, match="different layouts"):
        judge(task, checkpoints(3), torch.zeros(2, 7))


def test_pairs_of_large_sets_are_bounded() -> None:
    wrong_KN = torch.rand(900, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    pairs = similarity_pairs(wrong_KN, wrong_KN[:30])
    assert len(pairs["original_original"]) == 500 * 499 // 2 and len(pairs["original_generated"]) == 500 * 30
    assert len(pairs["original_generated_max"]) == 30 and float(pairs["original_generated_max"].min()) == 1.0
