"""networks/stacked.py: many networks as one module answer as they do alone, and can be saved, moved and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pdiff_hub.networks import build_network, logits, resolve_network
from pdiff_hub.networks.stacked import StackedNetworks

SHAPE = (1, 8, 8)
IMAGES = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
BATCH_NORM = {"name": "convnet3", "widths": [4, 4, 4], "norm": "batch"}


def spec_of(spec: str | dict[str, Any]) -> dict[str, Any]:
    return resolve_network(spec, in_channels=1, image_size=8, num_classes=10)


def built(spec: str | dict[str, Any], number: int = 3) -> list[nn.Module]:
    networks = [build_network(spec_of(spec), seed=seed).eval() for seed in range(number)]
    for network in networks:
        for _name, buffer in network.named_buffers():
            if buffer.is_floating_point():  # statistics as if it had been trained
                buffer.copy_(torch.rand_like(buffer) + 0.1)
    return networks


def stack_of(networks: list[nn.Module]) -> StackedNetworks:
    return StackedNetworks(networks[0], [network.state_dict() for network in networks], SHAPE)


def alone(networks: list[nn.Module], images: Tensor) -> Tensor:
    return torch.stack([logits(network(images)) for network in networks])


class Branching(nn.Module):
    """Asks its own weights what to do, which vmap does not follow. Two of its layers share a weight."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.tied, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.tied.weight = self.first.weight
        self.branch = True

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1))
        if self.branch and bool(self.first.weight[0, 0] > 0):
            hidden = hidden.relu()
        return self.last(self.tied(hidden))


@pytest.mark.parametrize("spec", ["mlp3", "convnet3", BATCH_NORM])
def test_each_network_answers_as_it_does_alone(spec: str | dict[str, Any]) -> None:
    networks = built(spec)
    stack = stack_of(networks)
    assert stack.batched and stack.num_networks == 3
    assert stack(IMAGES).shape == (3, 5, 10)
    torch.testing.assert_close(stack(IMAGES), alone(networks, IMAGES))
    for network, state in zip(networks, stack.state_dicts(), strict=True):
        assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in state.items())


@pytest.mark.parametrize("spec", ["mlp3", "convnet3", BATCH_NORM])
def test_it_is_exported_for_any_number_of_images(spec: str | dict[str, Any], tmp_path: Path) -> None:
    networks = built(spec)
    batch = torch.export.Dim("batch")
    program = torch.export.export(stack_of(networks), (IMAGES,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "stack.pt2")
    module = torch.export.load(tmp_path / "stack.pt2").module()
    for images in (IMAGES[:1], IMAGES, IMAGES.repeat(3, 1, 1, 1)):
        torch.testing.assert_close(module(images), alone(networks, images))


def test_what_all_networks_share_is_held_once() -> None:
    norm = "norm2.weight"  # as in a pipeline that generates some norms' weights only
    networks = [build_network(spec_of(BATCH_NORM)).eval() for _ in range(3)]
    for m, network in enumerate(networks):
        network.load_state_dict(networks[0].state_dict() | {norm: torch.rand(4) + m})
    stack = stack_of(networks)
    assert stack.stacked_names == (norm,) and stack.batched
    torch.testing.assert_close(stack(IMAGES), alone(networks, IMAGES))
    single = sum(tensor.numel() for tensor in networks[0].state_dict().values())
    assert sum(tensor.numel() for tensor in stack.state_dict().values()) == single + 2 * 4


def test_copies_of_one_network_and_a_single_one() -> None:
    network = built("mlp3", 1)[0]
    for number in (1, 4):
        stack = stack_of([network] * number)
        torch.testing.assert_close(stack(IMAGES), alone([network] * number, IMAGES))


@pytest.mark.parametrize("branch", [True, False])
def test_tied_tensors_and_operations_that_vmap_does_not_know(branch: bool) -> None:
    networks: list[nn.Module] = [Branching(seed) for seed in range(4)]
    for network in networks:
        network.branch = branch  # type: ignore[assignment]
    stack = stack_of(networks)
    assert stack.batched is not branch
    torch.testing.assert_close(stack(IMAGES), alone(networks, IMAGES))
    assert stack.networks.tied.weight is stack.networks.first.weight  # type: ignore[union-attr]
    assert [*stack.state_dicts()[1]] == [*networks[1].state_dict()]
    assert torch.equal(stack.state_dicts()[1]["tied.weight"], networks[1].state_dict()["first.weight"])


def test_weights_are_registered_and_the_network_is_left_alone() -> None:
    networks = built(BATCH_NORM)
    networks[0].train()
    before = {name: tensor.clone() for name, tensor in networks[0].state_dict().items()}
    stack = stack_of(networks)
    assert networks[0].training and not stack.networks.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in networks[0].state_dict().items())
    assert [*stack.state_dict()] == [f"networks.{name}" for name in before]
    again = StackedNetworks(networks[1], stack.stacked_state(), SHAPE)
    assert torch.equal(again(IMAGES), stack(IMAGES)) and again.stacked_names == stack.stacked_names
    twice = stack.to(torch.float64)
    assert twice.stacked_state()["conv1.weight"].dtype == torch.float64
    twice.load_state_dict(again.state_dict(), strict=True)
    torch.testing.assert_close(twice(IMAGES.double()), again(IMAGES))


def test_a_network_of_another_shape_is_refused() -> None:
    network = built("mlp3", 1)[0]
    state = network.state_dict()
    stacked = {name: tensor.expand(3, *tensor.shape) for name, tensor in state.items()}
    less = {name: tensor for name, tensor in state.items() if name != "fc1.bias"}
    for states, words in (
        ([], "no networks"),
        ([state, less], "state dict 1 lacks the tensor 'fc1.bias'"),
        ([state | {"fc4.bias": torch.zeros(2)}], "'fc4.bias', which the network does not have"),
        ([state | {"fc1.bias": torch.zeros(2)}], r"'fc1.bias' of state dict 0 is float32 \[2\], and float32 \[64\]"),
        ([state | {"fc1.bias": state["fc1.bias"].double()}], "float64"),
        (state, "no networks"),
        (stacked | {"fc1.bias": torch.zeros(2, 64)}, r"\[2, 3\]"),
    ):
        with pytest.raises(ValueError, match=words):
            StackedNetworks(network, states, SHAPE)
