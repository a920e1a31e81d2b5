"""A chain of layers that runs for all networks at once gives the outputs and gradients of each network alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from pdiff_hub.collect.population.layer_chain import _Halving, is_layer_chain, run_layer_chain
from pdiff_hub.networks import build_network, resolve_network


def chain(pool: nn.Module, *, bias: bool = True) -> nn.Sequential:
    """A chain of layers for maps of 2 x 8 x 8."""
    convs = [nn.Conv2d(2, 3, 3, padding=1, bias=bias), nn.ReLU(), pool]
    size = convs[2](convs[0](torch.zeros(1, 2, 8, 8))).numel()
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(size, 4, bias=bias), nn.ReLU(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    "network",
    [
        chain(nn.MaxPool2d(2)),
        chain(nn.MaxPool2d(2), bias=False),
        chain(nn.MaxPool2d(3, 2, 1)),
        chain(nn.Conv2d(3, 5, 2, stride=2, dilation=2)),
        nn.Sequential(nn.Flatten(), nn.Linear(128, 3)),
    ],
)
def test_a_chain_equals_each_network_alone(network: nn.Sequential) -> None:
    assert is_layer_chain(network)
    torch.manual_seed(0)
    weights = {
        name: torch.randn(4, *each.shape, dtype=torch.float64, requires_grad=True)
        for name, each in network.named_parameters()
    }
    inputs_KBX = torch.randn(4, 6, 2, 8, 8, dtype=torch.float64).relu()  # with zeros, as in images
    together = run_layer_chain(network, weights, inputs_KBX)
    alone = torch.stack(
        [
            functional_call(network, {name: each[k] for name, each in weights.items()}, (inputs_KBX[k],))
            for k in range(4)
        ]
    )
    assert torch.allclose(together, alone)
    for ours, theirs in zip(
        *(torch.autograd.grad(out.square().sum(), list(weights.values())) for out in (together, alone)), strict=True
    ):
        assert torch.allclose(ours, theirs)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=64, max_size=64))
def test_halving_is_max_pooling_among_equal_pixels_too(values: list[float]) -> None:
    maps = torch.tensor(values).view(2, 2, 4, 4).requires_grad_()
    ours, theirs = _Halving.apply(maps), nn.functional.max_pool2d(maps, 2)
    assert torch.equal(ours, theirs)
    weight = torch.arange(1.0, 17.0).view_as(ours)
    gradients = [torch.autograd.grad((out * weight).sum(), maps)[0] for out in (ours, theirs)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mlp3", True),
        ("convnet3", True),
        ({"name": "convnet3", "downsample": "stride"}, True),
        ({"name": "convnet3", "norm": "batch"}, False),
        ({"name": "convnet3", "global_pool": True}, False),
    ],
)
def test_which_networks_are_chains(spec: object, expected: bool) -> None:
    assert is_layer_chain(build_network(resolve_network(spec, in_channels=1, image_size=8, num_classes=10))) == expected


def test_what_is_no_chain() -> None:
    linear = nn.Linear(8, 3)
    for network in (
        linear,
        nn.Sequential(linear),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8), linear),
        nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), linear),
        nn.Sequential(nn.Flatten(2), linear),
        nn.Sequential(linear, nn.Flatten()),
    ):
        assert not is_layer_chain(network)


def test_layers_with_two_names_or_hooks_are_no_chain() -> None:
    relu, tied = nn.ReLU(), nn.Linear(8, 8)
    tied.weight = (first := nn.Linear(8, 8)).weight
    hooked = nn.Sequential(nn.Flatten(), nn.Linear(8, 8))
    assert is_layer_chain(hooked)
    hooked[1].register_forward_hook(lambda module, inputs, output: output + 1)
    for network in (
        nn.Sequential(nn.Flatten(), nn.Linear(8, 8), relu, nn.Linear(8, 8), relu),
        hooked,
        nn.Sequential(nn.Flatten(), first, nn.ReLU(), tied),
    ):
        assert not is_layer_chain(network)
