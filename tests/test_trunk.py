"""A start that all seen tasks train together: what it is good for, that it is made once, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sets import contents
from torch import Tensor, nn

from pdiff_hub.checkpoints.rows import as_rows
from pdiff_hub.collect.family import (
    FamilyConfig,
    build_family,
    collect_family,
    collecting,
    last_layer,
    train_trunk,
    trunk,
)
from pdiff_hub.collect.population import training_groups
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.recipes import recipe_from_dict
from pdiff_hub.runs.requests import by_examples
from pdiff_hub.runs.requests.by_condition import SeenTasks
from pdiff_hub.runs.requests.task_networks import TaskNetworks
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.travelling.conditioner import ConditionSpec
from pdiff_hub.travelling.param_autoencoder import ParamLayout

SMALL: dict[str, Any] = {"num_tasks": 8, "seeds_per_task": 2, "held_out_tasks": 4, "epochs": 2, "trunk_steps": 60}
SPEC = resolve_network({"name": "mlp", "hidden": [16]}, in_channels=1, image_size=8, num_classes=2)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


def bits(number: int, seed: int) -> Tensor:
    return (torch.rand(number, 10, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def trained(network: nn.Module, task: Task, steps: int = 100, seed: int = 0, **options: Any) -> dict[str, Tensor]:
    family = options.pop("family", None) or build_family("class-subsets", {}, task)
    condition_TD = options.pop("condition_TD", bits(30, 1))
    arguments = {"images": 512, "learning_rate": 1e-2, "progress": False, **options}
    train_trunk(network, family, condition_TD, task, steps, seed=seed, **arguments)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def own_answers(network: nn.Module, task: Task, condition_D: Tensor) -> float:
    """Accuracy of a last layer that is trained for a task on 100 images, on top of the rest as it is."""
    labels_N = condition_D[task.train.labels_N[:100]].long()
    last = last_layer(network, task.inputs(task.train, slice(0, 2)))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in last)
    optimizer = torch.optim.Adam([each for each in network.parameters() if each.requires_grad], lr=1e-2)
    network.eval()
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(task.inputs(task.train, slice(0, 100))), labels_N).backward()
        optimizer.step()
    answers_N = network(task.inputs(task.validation)).argmax(dim=1)
    return float((answers_N == condition_D[task.validation.labels_N]).float().mean())


def test_a_trunk_helps_a_task_that_it_has_not_seen(task: Task) -> None:
    started, fresh, better = build_network(SPEC, seed=0), build_network(SPEC, seed=0), []
    trained(started, task)
    for condition_D in bits(4, 2):
        right = [own_answers(copy.deepcopy(network), task, condition_D) for network in (started, fresh)]
        better.append(right[0] - right[1])
    assert sum(better) / len(better) > 0.02, better


class OwnImages:
    """Subsets of classes, for tasks that each see images of their own."""

    num_classes = 2

    def __init__(self, task: Task) -> None:
        self._family = build_family("class-subsets", {}, task)

    def split(self, *numbers: int) -> Any:
        return self._family.split(*numbers)

    def view(self, inputs_KBX: Tensor, labels_KB: Tensor, conditions_KD: Tensor) -> tuple[Tensor, Tensor]:
        return inputs_KBX.clone(), self._family.view(inputs_KBX, labels_KB, conditions_KD)[1]


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.fixed = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 2)
        self.fixed.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.norm(self.hidden(images.flatten(1)))
        logits: Tensor = self.head(self.fixed(features).relu())
        return logits


@pytest.mark.parametrize("own_images", [False, True])
def test_running_statistics_are_learnt_and_frozen_weights_stay(task: Task, own_images: bool) -> None:
    torch.manual_seed(0)
    network = Normed()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    after = trained(network, task, 20, family=OwnImages(task) if own_images else None)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if not name.startswith("fixed")}
    assert int(after["norm.num_batches_tracked"]) == 20
    torch.manual_seed(0)
    again = trained(Normed(), task, 20, family=OwnImages(task) if own_images else None)
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_the_last_layer_is_the_mean_of_all(task: Task) -> None:
    """Tasks and their complements want opposite ones, so that the mean asks for nothing."""
    condition_TD = torch.cat([bits(4, 1), 1 - bits(4, 1)])
    network = build_network(SPEC, seed=0)
    trained(network, task, 200, condition_TD=condition_TD)
    logits_NC = network(task.inputs(task.validation)).detach()
    margin_N = (logits_NC[:, 1] - logits_NC[:, 0]).abs()
    single = build_network(SPEC, seed=0)
    trained(single, task, 200, condition_TD=condition_TD[:1])
    own_NC = single(task.inputs(task.validation)).detach()
    assert float(margin_N.mean()) < 0.1 * float((own_NC[:, 1] - own_NC[:, 0]).abs().mean())


def test_a_set_begins_from_its_trunk_and_a_killed_run_goes_on(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_groups, "_MEMORY_BYTES", 1)  # one network at a time
    config = FamilyConfig(**SMALL)
    whole = collect_family(task, SPEC, "all", config, tmp_path / "whole", seed=0, progress=False)
    assert whole.collect["settings"]["collect"]["trunk_steps"] == 60
    assert whole.collect["rule"].endswith("All networks began with a trunk that the seen tasks trained together.")
    unseen = whole.held_out()
    assert unseen is not None and unseen.conditions_KD is not None and whole.conditions_KD is not None

    made = []
    train = collecting.train_trunk

    def counted(network: nn.Module, family: Any, condition_TD: Tensor, *given: Any, **options: Any) -> None:
        random_P = whole.layout.flatten(network.state_dict())
        train(network, family, condition_TD, *given, **options)
        made.append((condition_TD, random_P, whole.layout.flatten(network.state_dict())))

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    describe, described = collecting._Run._metadata, []

    def stopped_later(*given: Any) -> Any:
        described.append(1)
        if len(described) == 7:  # after the four held-out networks and two of the seen ones
            raise KeyboardInterrupt
        return describe(*given)

    monkeypatch.setattr(collecting, "train_trunk", counted)
    for where, stop in {"train": stopped, "_metadata": stopped_later}.items():
        with monkeypatch.context() as patch:
            patch.setattr(collecting._Run, where, stop)
            with pytest.raises(KeyboardInterrupt):
                collect_family(task, SPEC, "all", config, tmp_path / "again", seed=0, progress=False)
    collect_family(task, SPEC, "all", config, tmp_path / "again", seed=0, progress=False)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    ((condition_TD, random_P, start_P),) = made
    assert sorted(condition_TD.tolist()) == sorted(whole.conditions_KD.unique(dim=0).tolist())  # no held-out one
    for dataset in (whole, unseen):
        mean_P = dataset.params_KP.mean(dim=0)
        assert float((mean_P - start_P).norm()) < 0.8 * float((mean_P - random_P).norm())


class Backwards(nn.Module):
    """Its layers are not defined in the order in which they run, and one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.unused = nn.Linear(16, 2), nn.Linear(64, 16), nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images.flatten(1)).relu())
        return logits


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(64, 16)), nn.Parameter(torch.randn(16, 2))

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.one).relu() @ self.two


def test_the_last_layer_is_the_one_that_runs_last(task: Task) -> None:
    inputs_BX = task.inputs(task.train, slice(0, 2))
    network = Backwards()
    assert last_layer(network, inputs_BX) == {"head.weight", "head.bias"} and network.training
    head, unused = network.head.weight.clone(), network.unused.weight.clone()
    trained(network, task, 5)
    assert not torch.equal(network.head.weight, head) and torch.equal(network.unused.weight, unused)
    normed = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 2)))
    assert last_layer(normed, inputs_BX) == {name for name, _ in normed.named_parameters()}
    frozen = Backwards()
    frozen.head.requires_grad_(False)
    for alone in (Bare(), nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), frozen):
        with pytest.raises(ValueError, match=f"a {type(alone).__name__} has no trunk .* use trunk_steps: 0"):
            trained(alone, task, 1)


class Sometimes(OwnImages):
    """Some tasks see the images as they are."""

    def view(self, inputs_KBX: Tensor, labels_KB: Tensor, conditions_KD: Tensor) -> tuple[Tensor, Tensor]:
        if not bool((conditions_KD[:, 0] == 1).any()):
            return inputs_KBX, labels_KB % 2
        return inputs_KBX * (1 + conditions_KD[:, 0, None, None, None, None]), labels_KB % 2


def test_images_are_shared_only_where_all_tasks_see_the_same(task: Task) -> None:
    few, many = bits(3, 1), bits(200, 1)
    for family, condition_TD, shared, shape in (
        (build_family("class-subsets", {}, task), few, True, (512, 1, 8, 8)),
        (OwnImages(task), few, False, (3, 170, 1, 8, 8)),
        (OwnImages(task), many, False, (200, 4, 1, 8, 8)),
        (build_family("class-subsets", {}, task), few[:1], False, (1, 512, 1, 8, 8)),
        (Sometimes(task), many, False, (200, 4, 1, 8, 8)),
    ):
        batches = trunk._Batches(family, condition_TD, task, 512, torch.device("cpu"))
        inputs, labels_TB = batches.draw(torch.Generator().manual_seed(0))
        assert (batches.shared, inputs.shape) == (shared, shape)
        assert labels_TB.shape == (len(condition_TD), shape[0] if shared else shape[1])


def test_the_audit_leaves_its_trunk_out_where_it_cannot_be(
    task: Task, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics after the last layer would be each task's own, though all see the same images."""
    monkeypatch.setattr(by_examples, "_TRUNK_STEPS", 20)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 2), nn.BatchNorm1d(2, affine=False))
    family, layout = build_family("class-subsets", {}, task), ParamLayout.from_module(network)
    networks = TaskNetworks(network, layout, {}, task, family)
    rows_TP = torch.zeros(4, layout.num_params)
    seen = SeenTasks(ConditionSpec("classes", "bits", 10, tuple("0123456789")), bits(4, 1), rows_TP, as_rows(rows_TP))
    assert by_examples.multi_task_trunk(networks, seen, network, seed=0) is None
    assert "the multi-task trunk is left out of the tables: a Sequential cannot be trained" in caplog.text
    kept = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 2))
    layout = ParamLayout.from_module(kept)
    before_P = layout.flatten(kept.state_dict())
    trunk_P = by_examples.multi_task_trunk(TaskNetworks(kept, layout, {}, task, family), seen, kept, seed=0)
    assert trunk_P is not None and trunk_P.shape == before_P.shape and not torch.equal(trunk_P, before_P)


def test_what_cannot_be_is_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trunk_steps is -1, expected an integer from 0"):
        FamilyConfig(trunk_steps=-1)
    with pytest.raises(ValueError, match="it needs shared_start: true"):
        FamilyConfig(trunk_steps=10, shared_start=False)
    with pytest.raises(ValueError, match="the trunk of all tasks diverged: the loss is nan; lower learning_rate"):
        trained(build_network(SPEC, seed=0), task, 30, learning_rate=float("inf"))
    with pytest.raises(ValueError, match="module '1' is active dropout"):
        trained(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 8), nn.Linear(8, 2)), task, 1)


def test_a_recipe_without_it_is_what_it_was() -> None:
    data = {"task": "digits", "network": {"name": "mlp"}, "collect": {"method": "family"}}
    assert "trunk_steps" not in recipe_from_dict(data).to_dict()["collect"]
    with_trunk = recipe_from_dict({**data, "collect": {"method": "family", "trunk_steps": 5}})
    assert recipe_from_dict(with_trunk.to_dict()).collect == FamilyConfig(trunk_steps=5)
