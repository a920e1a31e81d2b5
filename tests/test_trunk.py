"""A start that all seen tasks train together: what it is good for, that it is made once, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sets import contents
from torch import Tensor, nn

from pdiff_hub.collect.family import FamilyConfig, build_family, collect_family, collecting, last_layer, train_trunk
from pdiff_hub.collect.population import training_groups
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.recipes import recipe_from_dict
from pdiff_hub.tasks import Task, load_task

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
    arguments = {"batch_size": 64, "learning_rate": 1e-2, "progress": False, **options}
    train_trunk(network, family, condition_TD, task, steps, seed=seed, **arguments)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def own_answers(network: nn.Module, task: Task, condition_D: Tensor) -> float:
    """Accuracy of a last layer that is trained for a task on 100 images, on top of the rest as it is."""
    labels_N = condition_D[task.train.labels_N[:100]].long()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in last_layer(network))
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
    plain = FamilyConfig(**{**SMALL, "trunk_steps": 0})
    without = collect_family(task, SPEC, "all", plain, tmp_path / "plain", seed=0, progress=False)
    spread = [float(dataset.params_KP.std(dim=0).norm()) for dataset in (whole, without)]
    assert spread[0] != spread[1] and "trunk_steps" not in without.collect["settings"]["collect"]

    made = []
    train = collecting.train_trunk

    def counted(*given: Any, **options: Any) -> None:
        made.append(1)
        train(*given, **options)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "train_trunk", counted)
    for where in ("train", "_metadata"):
        with monkeypatch.context() as patch:
            patch.setattr(collecting._Run, where, stopped)
            with pytest.raises(KeyboardInterrupt):
                collect_family(task, SPEC, "all", config, tmp_path / "again", seed=0, progress=False)
    collect_family(task, SPEC, "all", config, tmp_path / "again", seed=0, progress=False)
    assert made == [1] and contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_what_cannot_be_is_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trunk_steps is -1, expected an integer from 0"):
        FamilyConfig(trunk_steps=-1)
    with pytest.raises(ValueError, match="it needs shared_start: true"):
        FamilyConfig(trunk_steps=10, shared_start=False)
    with pytest.raises(ValueError, match="the trunk of all tasks diverged: the loss is nan; lower learning_rate"):
        trained(build_network(SPEC, seed=0), task, 30, learning_rate=float("inf"))
    with pytest.raises(ValueError, match="module '1' is active dropout"):
        trained(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2)), task, 1)


def test_a_recipe_without_it_is_what_it_was() -> None:
    data = {"task": "digits", "network": {"name": "mlp"}, "collect": {"method": "family"}}
    assert "trunk_steps" not in recipe_from_dict(data).to_dict()["collect"]
    with_trunk = recipe_from_dict({**data, "collect": {"method": "family", "trunk_steps": 5}})
    assert recipe_from_dict(with_trunk.to_dict()).collect.trunk_steps == 5  # type: ignore[union-attr]
