"""Families of tasks: nothing held out is seen, each network has its own task, and a pipeline learns to be asked."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sets import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.family import FamilyConfig, collect_family, collecting, unseen_of
from pdiff_hub.collect.family.class_subsets import ClassSubsets
from pdiff_hub.collect.family.rotation import Rotation
from pdiff_hub.collect.population import training_groups
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.recipes import load_recipe, recipe_from_dict
from pdiff_hub.runs import collect, evaluate, run
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.training.holdout import split_rows
from pdiff_hub.training.pipeline import train_pipeline

SMALL: dict[str, Any] = {"num_tasks": 6, "seeds_per_task": 2, "held_out_tasks": 4, "epochs": 2}


@cache
def digits() -> Task:
    return load_task("digits")


@pytest.fixture
def task() -> Task:
    return digits()


def spec(num_classes: int = 2) -> dict[str, Any]:
    return resolve_network({"name": "mlp3", "hidden": [8, 8]}, in_channels=1, image_size=8, num_classes=num_classes)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 120), st.integers(0, 9))
def test_no_held_out_partition_is_seen(num_tasks: int, num_held_out: int, seed: int) -> None:
    split = ClassSubsets(digits()).split(num_tasks, num_held_out, seed)
    seen, held_out = (set(map(tuple, each.int().tolist())) for each in (split.seen_TD, split.held_out_UD))
    swapped = {tuple(1 - bit for bit in each) for each in seen}
    assert (len(seen), len(held_out)) == (num_tasks, num_held_out) and not held_out & (seen | swapped)
    assert not set(split.seen_groups) & set(split.held_out_groups)
    assert all(0 < sum(each) < 10 for each in seen | held_out)


def test_many_classes_are_drawn_and_too_many_tasks_refused(task: Task) -> None:
    family = ClassSubsets(task)
    with pytest.raises(ValueError, match="10 classes have 1022 subsets"):
        family.split(1000, 30, 0)
    assert len(family.split(922, 100, 0).seen_TD) == 922
    family._size, family._names = 100, tuple(map(str, range(100)))
    split = family.split(50, 11, 0)
    assert split.seen_TD.shape == (50, 100) and split.held_out_UD.shape == (11, 100)
    assert len(set(map(tuple, torch.cat([split.seen_TD, split.held_out_UD]).tolist()))) == 61


def test_labels_of_a_subset(task: Task) -> None:
    inputs, labels = torch.randn(2, 5, 1, 8, 8), torch.tensor([[0, 1, 2, 3, 9], [9, 9, 3, 0, 1]])
    bits = torch.zeros(2, 10)
    bits[0, [1, 3]] = 1
    bits[1, [9]] = 1
    seen, own = ClassSubsets(task).view(inputs, labels, bits)
    assert seen is inputs and own.tolist() == [[0, 1, 0, 1, 0], [1, 1, 0, 0, 0]]


def test_turning(task: Task) -> None:
    family, images = Rotation(task), task.inputs(task.train)[:6].view(3, 2, 1, 8, 8)
    labels = torch.zeros(3, 2, dtype=torch.int64)

    def turned(*angles: float) -> Tensor:
        radians = torch.tensor(angles) * torch.pi / 180
        return family.view(images, labels, torch.stack([radians.sin(), radians.cos()], dim=1))[0]

    found = turned(0.0, 90.0, -90.0)
    assert torch.allclose(found[0], images[0], atol=1e-5)
    assert torch.allclose(found[1], images[1].rot90(1, (-2, -1)), atol=1e-4)
    assert torch.allclose(found[2], images[2].rot90(-1, (-2, -1)), atol=1e-4)
    # What comes in from outside is black, as the corners of digits are.
    assert turned(45.0, 45.0, 45.0)[..., 0, 0].max() <= images[..., 0, 0].min() + 1e-5


def test_angles_that_are_held_out_are_not_seen(task: Task) -> None:
    split = Rotation(task).split(50, 10, 0)
    degrees = [torch.atan2(each[:, 0], each[:, 1]) * 180 / torch.pi for each in (split.seen_TD, split.held_out_UD)]
    assert len(degrees[0].round(decimals=3).unique()) == 50 and degrees[0].min() >= -60.01 and degrees[0].max() <= 60.01
    assert not ((degrees[0] > 10.01) & (degrees[0] < 29.99)).any()
    inside = (degrees[1] > 10) & (degrees[1] < 30)
    assert int(inside.sum()) == 5 and bool((inside | (degrees[1] > 60)).all()) and degrees[1].max() < 80.01


def judged(dataset: CheckpointDataset, task: Task, params_BP: Tensor, bits_BD: Tensor) -> Tensor:
    """Accuracy on validation, one network after another."""
    network, found = build_network(dataset.network).eval(), []
    for params_P, bits_D in zip(params_BP, bits_BD, strict=True):
        network.load_state_dict({**dataset.frozen, **dataset.layout.unflatten(params_P)})
        with torch.no_grad():
            answers = network(task.inputs(task.validation)).argmax(dim=1)
        found.append((answers == bits_D[task.validation.labels_N].long()).float().mean())
    return torch.stack(found)


def test_each_network_learns_its_own_task(task: Task, tmp_path: Path) -> None:
    config = FamilyConfig(**{**SMALL, "epochs": 6})
    dataset = collect_family(task, spec(), "all", config, tmp_path, seed=3)
    unseen = unseen_of(tmp_path)
    assert unseen is not None and (len(dataset), len(unseen)) == (12, 4)
    for each in (dataset, unseen):
        assert each.conditions is not None and each.conditions_KD is not None and each.conditions.name == "classes"
        noted = torch.tensor([row["validation_accuracy"] for row in each.metadata])
        assert torch.allclose(noted, judged(each, task, each.params_KP, each.conditions_KD), atol=1e-4)
        assert noted.mean() > 0.85
    assert dataset.collect["rule"] == "No held-out subset was seen, and neither was its complement."
    assert_same(collect_family(task, spec(), "all", config, tmp_path, seed=3), dataset)
    with pytest.raises(ValueError, match="epochs was 6 and is 2"):
        collect_family(task, spec(), "all", FamilyConfig(**SMALL), tmp_path, seed=3)
    # All of one task are held out of training together, and a subset with its complement.
    runs = [row["run"] for row in dataset.metadata]
    train_K, held_out_H = split_rows(dataset, 0.1)
    assert held_out_H and not {runs[row] for row in train_K} & {runs[row] for row in held_out_H}


def test_a_killed_collection_goes_on(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_groups, "_MEMORY_BYTES", 5 * 16 * 682)  # a few networks at a time
    config = FamilyConfig(**SMALL)
    whole = collect_family(task, spec(), "all", config, tmp_path / "whole", seed=0)
    real, calls = collecting._Run._metadata, iter(range(99))

    def stopped(self: Any, *arguments: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(collecting._Run, "_metadata", stopped)
        with pytest.raises(KeyboardInterrupt):
            collect_family(task, spec(), "all", config, tmp_path / "again", seed=0)
    assert_same(collect_family(task, spec(), "all", config, tmp_path / "again", seed=0), whole)


def test_turned_images_have_their_networks(task: Task, tmp_path: Path) -> None:
    config = FamilyConfig(family="rotation", **SMALL)
    dataset = collect_family(task, spec(10), "all", config, tmp_path, seed=0)
    assert dataset.conditions is not None and dataset.conditions.period == 360 and dataset.conditions.low == (-60,)
    assert dataset.metadata[0]["run"] == "angle -60"


def test_a_pipeline_is_asked_for_a_task(task: Task, tmp_path: Path) -> None:
    config = FamilyConfig(num_tasks=40, seeds_per_task=4, held_out_tasks=0, epochs=8)
    dataset = collect_family(task, spec(), "all", config, tmp_path / "set", seed=0)
    train_pipeline(dataset, tmp_path / "pipe", diffusion=DiffusionConfig(steps=300, widths=(48,), patience=None))
    pipe = PDiffPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    assert dataset.conditions_KD is not None
    bits = dataset.conditions_KD[::4]

    def accuracy(asked_BD: Tensor) -> float:
        generator = torch.Generator().manual_seed(0)
        params_BP = pipe(condition=asked_BD, guidance_scale=2.0, generator=generator).params
        return float(judged(dataset, task, params_BP, bits).mean())

    assert accuracy(bits) > 0.7 and accuracy(bits.roll(7, 0)) < 0.6  # a network that always answers the same: 0.63
    with pytest.raises(ValueError, match="each network of this data set has a task of its own"):
        evaluate(pipe, dataset, dataset.params_KP, tmp_path / "report")


def test_by_recipe(tmp_path: Path) -> None:
    family = {"method": "family", **SMALL, "num_tasks": 3}
    recipe = recipe_from_dict({"task": "digits", "network": "mlp3", "collect": family})
    assert recipe_from_dict(recipe.to_dict()) == recipe
    dataset = collect(recipe, tmp_path / "set")
    assert dataset.network["num_classes"] == 2 and len(dataset) == 6
    with pytest.raises(ValueError, match="a run cannot judge them yet"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "class-subset"}, "nearest known one is 'class-subsets'"),
        ({"options": {"angle": 3}}, "unknown option of family 'class-subsets'"),
        ({"family": "rotation", "options": {"lov": 3}}, "nearest known one is 'low'"),
        ({"family": "rotation", "options": {"low": 20}}, "low < gap_low"),
        ({"family": "rotation", "options": {"low": "x"}}, "wrong type"),
        ({"num_tasks": 1}, "collect.num_tasks is 1"),
        ({"held_out_tasks": -1}, "collect.held_out_tasks is -1"),
        ({"learning_rate": 0}, "collect.learning_rate is 0"),
    ],
)
def test_bad_options(task: Task, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect_family(task, spec(), "all", FamilyConfig(**{**SMALL, **options}), tmp_path, seed=0)
    with pytest.raises(ValueError, match="which each network trains for itself"):
        collect_family(task, spec(), "head", FamilyConfig(**SMALL), tmp_path, seed=0)


def test_overrides_reach_the_family() -> None:
    recipe = load_recipe("digits-mlp3", ["collect.method=family", "collect.num_tasks=7", "collect.options={}"])
    assert isinstance(recipe.collect, FamilyConfig) and recipe.collect.num_tasks == 7
