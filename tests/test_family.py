"""Families of tasks: nothing held out is seen, each network has its own task, and a pipeline learns to be asked."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sets import assert_same, contents
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.index import HELD_OUT, INDEX_NAME
from pdiff_hub.collect.family import FamilyConfig, collect_family, collecting
from pdiff_hub.collect.family.class_subsets import ClassSubsets
from pdiff_hub.collect.family.family import build_family
from pdiff_hub.collect.family.rotation import Rotation
from pdiff_hub.collect.family.split import TaskSplit
from pdiff_hub.collect.finetune import FinetuneConfig
from pdiff_hub.collect.journal import CheckpointJournal
from pdiff_hub.collect.population import training_groups
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.recipes import load_recipe, recipe_from_dict
from pdiff_hub.runs import collect, evaluate
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.training.holdout import split_rows
from pdiff_hub.training.pipeline import train_pipeline
from pdiff_hub.travelling.conditioner import ConditionSpec

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
    unseen = dataset.held_out()
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
    train_pipeline(dataset, tmp_path / "pipe", diffusion=DiffusionConfig(steps=60, widths=(16,), patience=None))
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "class-subset"}, "nearest known one is 'class-subsets'"),
        ({"options": {"angle": 3}}, "unknown option of family 'class-subsets'"),
        ({"family": "rotation", "options": {"lov": 3}}, "nearest known one is 'low'"),
        ({"family": "rotation", "options": {"low": 20}}, "low < gap_low"),
        ({"family": "rotation", "options": {"low": "x"}}, "wrong type"),
        ({"family": 3}, "collect.family is 3, expected the name"),
        ({"shared_start": 0}, "collect.shared_start is 0, expected true or false"),
        ({"num_tasks": 1}, "collect.num_tasks is 1"),
        ({"held_out_tasks": -1}, "collect.held_out_tasks is -1"),
        ({"learning_rate": 0}, "collect.learning_rate is 0"),
        ({"pull_to_start": -1.0}, "collect.pull_to_start is -1.0, expected at least 0"),
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
    kept = load_recipe("digits-subsets", ["collect.method=family", "collect.seeds_per_task=2"]).collect
    assert isinstance(kept, FamilyConfig) and (kept.num_tasks, kept.seeds_per_task) == (200, 2)
    other = load_recipe("digits-subsets", ["collect.method=finetune", "collect.epochs=2"]).collect
    assert other == FinetuneConfig(epochs=2)


OWN_FAMILIES = """
import torch
from pdiff_hub import ConditionSpec
from pdiff_hub.collect.family import TaskSplit


class Contrast:
    # Images times the condition: at 1 as they are, at -1 inverted.
    def __init__(self, task, least=-1.0):
        self.num_classes, self.least = task.num_classes, least

    def split(self, num_tasks, num_held_out, seed):
        contrasts = torch.linspace(self.least, 1.0, num_tasks + num_held_out)[:, None]
        names = [f"contrast {each:.4f}" for each in contrasts[:, 0].tolist()]
        out = torch.arange(len(names)) % 3 == 1
        assert int(out.sum()) == num_held_out
        spec = ConditionSpec("contrast", "scalar", 1, low=(self.least,), high=(1.0,))
        groups = [tuple(name for name, is_out in zip(names, out.tolist()) if is_out == side) for side in (False, True)]
        return TaskSplit(spec, contrasts[~out], contrasts[out], *groups, "No held-out contrast was seen.")

    def view(self, inputs, labels, conditions):
        return inputs * conditions[:, :, None, None, None], labels


def make_family(task, **options):
    return Contrast(task, **options)


class Half:
    num_classes = "two"

    def __init__(self, task):
        pass

    def split(self, num_tasks, num_held_out, seed):
        raise AssertionError


class Bad(Contrast):
    def __init__(self, task, way):
        super().__init__(task)
        self.way = way

    def split(self, num_tasks, num_held_out, seed):
        return super().split(4, 2, seed) if self.way == "few" else super().split(num_tasks, num_held_out, seed)

    def view(self, inputs, labels, conditions):
        seen, labels = super().view(inputs, labels, conditions)
        ways = {"alone": seen, "sizes": (seen[..., :4], labels), "floats": (seen, labels.float())}
        return ways.get(self.way, (seen, labels + 1))


number = 3
"""
OWN: dict[str, Any] = {"num_tasks": 6, "seeds_per_task": 2, "held_out_tasks": 3, "epochs": 2}


@pytest.fixture
def own_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of families; another one for each test, since Python keeps what it has imported."""
    name = f"own_families_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    (tmp_path / f"{name}.py").write_text(OWN_FAMILIES)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_family_of_ones_own(own_families: str, task: Task, tmp_path: Path) -> None:
    collected = {"method": "family", "family": f"{own_families}:make_family", "options": {"least": -2.0}, **OWN}
    recipe = recipe_from_dict({"task": "digits", "network": {"name": "mlp", "hidden": [8]}, "collect": collected})
    assert recipe_from_dict(recipe.to_dict()) == recipe
    dataset = collect(recipe, tmp_path / "set")
    unseen = dataset.held_out()
    assert unseen is not None and (len(dataset), len(unseen)) == (12, 3) and dataset.network["num_classes"] == 10
    assert dataset.conditions == ConditionSpec("contrast", "scalar", 1, low=(-2.0,), high=(1.0,))
    assert dataset.conditions_KD is not None and unseen.conditions_KD is not None
    assert dataset.metadata[0]["run"] == "contrast -2.0000" and dataset.collect["rule"].startswith("No held-out")
    assert not {*dataset.conditions_KD.flatten().tolist()} & {*unseen.conditions_KD.flatten().tolist()}
    # Each network is judged on images as its task has them.
    network = build_network(dataset.network).eval()
    images, labels = task.inputs(task.validation), task.validation.labels_N
    for row in (0, 11):
        network.load_state_dict(dataset.state_dict(row))
        with torch.no_grad():
            right = network(images * dataset.conditions_KD[row]).argmax(dim=1) == labels
        assert float(right.float().mean()) == pytest.approx(dataset.metadata[row]["validation_accuracy"], abs=1e-4)
    assert_same(collect(recipe, tmp_path / "set"), dataset)


def test_a_family_from_elsewhere_is_not_made(own_families: str, task: Task, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "hostile.py").write_text(f"open({str(marker)!r}, 'w').close()")
    config = FamilyConfig(family="hostile:make", **OWN)
    for refused in (
        lambda: collecting.family_classes(config, task, allow_factory=False),
        lambda: collect_family(task, spec(), "all", config, tmp_path / "set", seed=0, allow_factory=False),
    ):
        with pytest.raises(ValueError, match="'hostile:make' is made by calling that function, which is not allowed"):
            refused()
    assert not marker.exists()
    assert build_family("rotation", {}, task, allow_factory=False).num_classes == 10


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (":make_famly", {}, "nearest known one is 'make_family'"),
        (":number", {}, "^collect.family '.*:number' must be a function or class, found int"),
        ("_missing:f", {}, "^collect.family '.*_missing:f': there is no module"),
        (":make_family", {"least": {1}}, "must be JSON values"),
        (":Contrast", {"lest": 1}, r"cannot be called with the task and the options \['lest'\]: .*signature is"),
        (":Half", {}, "gives a Half without num_classes and view; expected an object with num_classes"),
        (":Bad", {"way": "few"}, r"number of tasks .* is \(4, 2\), expected \(6, 3\), as asked for"),
        (":Bad", {"way": "alone"}, "is 'Tensor', expected a tuple of images and labels"),
        (":Bad", {"way": "sizes"}, r"makes of images is .*4\]', expected torch.float32 \[2, 4, 1, 8, 8\]"),
        (":Bad", {"way": "floats"}, r"makes of labels is 'torch.float32 \[2, 4\]', expected torch.int64 \[2, 4\]"),
        (":Bad", {"way": "labels"}, "labels of family .*, expected from 0 to num_classes - 1, 9"),
    ],
)
def test_what_is_no_family(
    own_families: str, task: Task, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    if "labels" in options.values():  # so that some label is 9, and the changed one 10
        nines = task.train.labels_N.argsort(descending=True)
        task = replace(
            task,
            train=replace(task.train, images_NCHW=task.train.images_NCHW[nines], labels_N=task.train.labels_N[nines]),
        )
    config = FamilyConfig(family=own_families + name, options=options, **OWN)
    with pytest.raises(ValueError, match=message):
        collect_family(task, spec(10), "all", config, tmp_path / "set", seed=0)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seen_TD": torch.zeros(2, 3)}, r"seen_TD of a family is 'torch.float32 \[2, 3\]', expected float \[2, 1\]"),
        ({"held_out_UD": torch.ones(1, 1, dtype=torch.int64)}, "held_out_UD of a family is 'torch.int64"),
        ({"held_out_UD": [0.5]}, r"is \[0.5\], expected float"),
        ({"seen_TD": torch.tensor([[0.0], [math.nan]])}, "expected finite"),
        ({"held_out_groups": ("a",)}, r"the held-out tasks of a family is \['a'\], expected tasks that are not seen"),
        ({"held_out_UD": torch.ones(1, 1)}, r"is \[\(1.0,\)\], expected tasks that are not seen"),
        ({"spec": "contrast"}, "expected a ConditionSpec"),
    ],
)
def test_a_split_whose_parts_do_not_fit(changed: dict[str, Any], message: str) -> None:
    fitting: dict[str, Any] = {
        "spec": ConditionSpec("contrast", "scalar", 1, low=(0.0,), high=(1.0,)),
        "seen_TD": torch.tensor([[0.0], [1.0]]),
        "held_out_UD": torch.tensor([[0.5]]),
        "seen_groups": ("a", "b"),
        "held_out_groups": ("c",),
        "rule": "",
    }
    TaskSplit(**fitting)
    with pytest.raises(ValueError, match=message):
        TaskSplit(**{**fitting, **changed})


def answers(dataset: CheckpointDataset, params_KP: Tensor, task: Task) -> Tensor:
    network = build_network(dataset.network).eval()
    images = task.inputs(task.test, slice(0, 50))
    with torch.no_grad():
        return torch.stack(
            [
                functional_call(network, {**dataset.frozen, **one}, (images,))
                for one in dataset.layout.unflatten(params_KP)
            ]
        )


def test_own_starts_are_aligned_and_answer_as_before(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FamilyConfig(**{**SMALL, "shared_start": False})
    network = resolve_network({"name": "convnet3", "widths": [4, 4, 4]}, in_channels=1, image_size=8, num_classes=2)
    before: list[Tensor] = []
    real = CheckpointJournal.collected

    def kept(journal: CheckpointJournal) -> Tensor:
        params_KP = real(journal)
        before.append(params_KP.clone())
        return params_KP

    monkeypatch.setattr(CheckpointJournal, "collected", kept)
    dataset = collect_family(task, network, "all", config, tmp_path / "a", seed=3)
    unseen = dataset.held_out()
    assert unseen is not None and [len(each) for each in before] == [12, 4]
    for each, raw_KP in zip((dataset, unseen), before, strict=True):
        expected = answers(each, raw_KP, task)
        assert (answers(each, each.params_KP, task) - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert not torch.allclose(each.params_KP, raw_KP)
        done = each.collect["alignment"]
        assert done["distance_after"] < done["distance_before"] and done["output_change"] < 1e-5
    # Both are matched to the mean of the seen networks.
    mean_P = dataset.params_KP.mean(dim=0)
    distances = [float((each.params_KP - mean_P).norm(dim=1).mean()) for each in (dataset, unseen)]
    found = [each.collect["alignment"]["distance_after"] for each in (dataset, unseen)]
    assert distances == pytest.approx(found, rel=1e-4)
    # Each network starts from the weights of its own seed.
    assert [row["seed"] for row in dataset.metadata] == list(range(3, 15))
    assert [row["seed"] for row in unseen.metadata] == list(range(15, 19))
    assert dataset.collect["settings"]["collect"]["shared_start"] is False
    assert_same(collect_family(task, network, "all", config, tmp_path / "a", seed=3), dataset)
    collect_family(task, network, "all", config, tmp_path / "b", seed=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(ValueError, match="shared_start was False and is not set"):
        collect_family(task, network, "all", FamilyConfig(**SMALL), tmp_path / "a", seed=3)


def test_networks_with_own_starts_start_apart(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**SMALL, "learning_rate": 1e-12, "weight_decay": 0.0, "held_out_tasks": 0, "num_tasks": 2}
    monkeypatch.setattr(collecting, "align_to_mean", lambda *_, **__: None)
    shared, own = (
        collect_family(
            task, spec(), "all", FamilyConfig(**options, shared_start=each), tmp_path / str(each), seed=5
        ).params_KP
        for each in (True, False)
    )
    starts = torch.stack([dataset_row(build_network(spec(), seed=seed)) for seed in range(5, 9)])
    assert torch.allclose(shared, starts[:1].expand_as(shared), atol=1e-6)
    assert torch.allclose(own, starts, atol=1e-6)


def dataset_row(network: nn.Module) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in network.state_dict().values()])


@pytest.mark.parametrize("where", ["_metadata", "align", "finish"])
def test_a_killed_collection_with_own_starts_goes_on(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(training_groups, "_MEMORY_BYTES", 5 * 16 * 682)  # a few networks at a time
    config = FamilyConfig(**SMALL, shared_start=False)
    collect_family(task, spec(), "all", config, tmp_path / "whole", seed=0)
    real, calls = getattr(collecting._Run, where), iter(range(99))

    def stopped(self: Any, *arguments: Any) -> Any:
        if next(calls) == {"_metadata": 2, "align": 0, "finish": 1}[where]:  # "finish": between the two sets
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(collecting._Run, where, stopped)
        with pytest.raises(KeyboardInterrupt):
            collect_family(task, spec(), "all", config, tmp_path / "again", seed=0)
    assert (tmp_path / "again" / HELD_OUT / INDEX_NAME).exists() == (where == "finish")
    with pytest.raises(ValueError, match="shared_start was False and is not set"):
        collect_family(task, spec(), "all", FamilyConfig(**SMALL), tmp_path / "again", seed=0)
    collect_family(task, spec(), "all", config, tmp_path / "again", seed=0)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_a_shared_start_is_what_it_was(task: Task, tmp_path: Path) -> None:
    """A collection begun before there was the option goes on: its settings do not name it."""
    dataset = collect_family(task, spec(), "all", FamilyConfig(**SMALL), tmp_path, seed=0)
    known = dataset.collect["settings"]["collect"]
    assert not {"shared_start", "pull_to_start"} & known.keys() and "alignment" not in dataset.collect


def test_networks_that_are_pulled_stay_near_their_start(task: Task, tmp_path: Path) -> None:
    network = build_network(spec(), seed=0, pretrained=False)
    way = {}
    for pull in (0.0, 0.1):
        config = FamilyConfig(**SMALL, pull_to_start=pull)
        dataset = collect_family(task, spec(), "all", config, tmp_path / str(pull), seed=0)
        way[pull] = (dataset.params_KP - dataset.layout.flatten(network.state_dict())).norm(dim=1)
    assert dataset.collect["settings"]["collect"]["pull_to_start"] == 0.1
    assert bool((way[0.1] < way[0.0]).all())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1)).relu()
        return self.last(hidden + self.second(hidden).relu())


def test_networks_that_cannot_be_aligned_are_not_trained(task: Task, tmp_path: Path) -> None:
    network = resolve_network(f"{__name__}:Residual", in_channels=1, image_size=8, num_classes=2)
    config = FamilyConfig(**SMALL, shared_start=False)
    with pytest.raises(ValueError, match=r"cannot align this network: module 'first' .*shared_start to true"):
        collect_family(task, network, "all", config, tmp_path / "set", seed=0)
    assert not (tmp_path / "set").exists()
    assert len(collect_family(task, network, "all", FamilyConfig(**SMALL), tmp_path / "set", seed=0)) == 12
