"""Many networks trained as one program: each ends as in a plain loop, whichever networks train beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from pdiff_hub.collect.population import batched_training
from pdiff_hub.collect.population.batched_training import BatchedTrainer
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.seeds import derived_seed

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(50, 1, 8, 8, generator=GENERATOR)
LABELS = torch.randint(0, 10, (50,), generator=GENERATOR)
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "weight_decay": 0.5}
SPECS: dict[str, dict[str, Any]] = {
    "mlp3": {"name": "mlp3", "hidden": [12, 9]},
    "convnet3": {"name": "convnet3", "widths": [4, 6, 5]},
    "batch-norm": {"name": "convnet3", "widths": [4, 6, 5], "norm": "batch", "downsample": "stride"},
    "group-norm": {"name": "convnet3", "widths": [4, 6, 5], "norm": "group", "global_pool": True},
    "global-pool": {"name": "convnet3", "widths": [4, 6, 5], "global_pool": True},
}


def factory(name: str) -> Callable[[int], nn.Module]:
    spec = resolve_network(SPECS[name], in_channels=1, image_size=8, num_classes=10)
    return lambda seed: build_network(spec, seed=seed)


def trained(make: Callable[[int], nn.Module], seeds: list[int], **options: Any) -> dict[str, Tensor]:
    trainer = BatchedTrainer(make, seeds, INPUTS, LABELS, **{**OPTIONS, **options})
    for _ in range(OPTIONS["epochs"]):
        trainer.run_epoch()
    return trainer.stacked_state()


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == list(second)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=2e-4, atol=2e-5, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize(("name", "pull"), [*((name, 0.0) for name in SPECS), ("mlp3", 0.3)])
def test_each_network_becomes_what_a_plain_loop_makes_of_it(name: str, pull: float) -> None:
    seeds, smoothing = [7, 3], 0.1
    together = trained(factory(name), seeds, label_smoothing=smoothing, pull_to_start=pull)
    for row, seed in enumerate(seeds):
        network = factory(name)(seed)
        start = parameters_to_vector(network.parameters()).detach()
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.5)
        for step in range(6):
            rate = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / 6))  # six steps are too few for a warm-up
            order = torch.from_numpy(np.random.default_rng(derived_seed(seed, "order", step // 3)).permutation(50))
            chosen = order[16 * (step % 3) : 16 * (step % 3) + 16]
            optimizer.zero_grad()
            loss = F.cross_entropy(network(INPUTS[chosen]), LABELS[chosen], label_smoothing=smoothing)
            (loss + pull / 2 * (parameters_to_vector(network.parameters()) - start).square().sum()).backward()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        assert_same(network.state_dict(), {key: tensor[row] for key, tensor in together.items()})


@pytest.mark.parametrize("threads", [1, 3])
def test_shards_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    before = torch.get_num_threads()
    whole = trained(factory("batch-norm"), list(range(5)))
    monkeypatch.setattr(batched_training, "_SHARD_BYTES", 1)  # one shard per network
    try:
        torch.set_num_threads(threads)
        cut = trained(factory("batch-norm"), list(range(5)))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_same(whole, cut)


@pytest.mark.parametrize("pull", [0.0, 0.3])
def test_resumed_training_is_bit_exact(pull: float) -> None:
    make, seeds, options = factory("batch-norm"), [4, 1, 2], {**OPTIONS, "pull_to_start": pull}
    whole = BatchedTrainer(make, seeds, INPUTS, LABELS, **options)
    whole.run_epoch()
    state = whole.training_state()
    whole.run_epoch()
    resumed = BatchedTrainer(make, seeds, INPUTS, LABELS, **options)
    resumed.load_training_state(state)
    assert resumed.epoch == 1
    resumed.run_epoch()
    for key, tensor in whole.training_state().items():
        assert torch.equal(tensor, resumed.training_state()[key]), key


def test_a_training_state_of_other_networks_is_refused() -> None:
    state = BatchedTrainer(factory("mlp3"), [0, 1], INPUTS, LABELS, **OPTIONS).training_state()
    for name, seeds in (("mlp3", [0, 1, 2]), ("convnet3", [0, 1])):
        with pytest.raises(ValueError, match="another network or other seeds"):
            BatchedTrainer(factory(name), seeds, INPUTS, LABELS, **OPTIONS).load_training_state(state)


def test_augmentation_follows_from_the_seed_alone() -> None:
    def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
        return images + 0.5 * torch.randn(images.shape, generator=generator)

    alone = trained(factory("mlp3"), [2], augment=noisy)
    together = trained(factory("mlp3"), [0, 1, 2], augment=noisy)
    assert_same(alone, {key: tensor[2:] for key, tensor in together.items()})
    assert not torch.allclose(alone["fc1.weight"], trained(factory("mlp3"), [2])["fc1.weight"])


class Tied(nn.Module):
    """Has one weight under two keys, a bias that is not trained, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight
        self.last.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.second(self.first(images.flatten(1)).relu()).relu() * self.scale)


def seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make()

    return build


def test_tied_and_frozen_weights_stay_so() -> None:
    state = trained(seeded(Tied), [0, 1])
    assert list(state) == list(Tied().state_dict())
    assert torch.equal(state["first.weight"], state["second.weight"])
    assert torch.equal(state["last.bias"], torch.stack([seeded(Tied)(seed).last.bias for seed in (0, 1)]))
    assert not torch.equal(state["last.weight"][0], seeded(Tied)(0).last.weight)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        out = self.layer(images.flatten(1))
        return out if out.sum() > 0 else -out


def test_networks_that_cannot_be_batched_are_refused() -> None:
    def dropout() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.1), nn.Linear(8, 10))

    with pytest.raises(ValueError, match="'2' is active dropout"):
        trained(seeded(dropout), [0, 1])
    with pytest.raises(ValueError, match="Branching cannot be trained"):
        trained(seeded(Branching), [0, 1])


@pytest.mark.parametrize("shard_bytes", [1, 2**30])
def test_networks_of_other_shapes_are_refused(monkeypatch: pytest.MonkeyPatch, shard_bytes: int) -> None:
    monkeypatch.setattr(batched_training, "_SHARD_BYTES", shard_bytes)
    with pytest.raises(ValueError, match="seeds 1 and 2 differ in their shapes"):
        trained(lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(64, 9 + seed)), [1, 2])


def test_divergence_names_the_seeds() -> None:
    def make(seed: int) -> nn.Module:
        network = factory("mlp3")(seed)
        if seed == 5:
            network.fc3.weight.data.fill_(math.inf)
        return network

    with pytest.raises(ValueError, match=r"1 of 3 seeds \(5\); lower learning_rate"):
        trained(make, [4, 5, 6])
