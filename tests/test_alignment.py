"""Alignment keeps outputs and makes permuted copies equal again. Networks that are not chains are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pdiff_hub.collect.alignment import align_to_mean
from pdiff_hub.collect.alignment import matching as alignment
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.travelling.param_autoencoder import ParamLayout

INPUTS = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def spec(**options: object) -> dict[str, object]:
    return resolve_network(options, in_channels=1, image_size=8, num_classes=10)


SPECS = [
    spec(name="mlp3", hidden=[12, 9]),
    spec(name="convnet3", widths=[4, 6, 5]),
    spec(name="convnet3", widths=[4, 6, 5], norm="batch", downsample="stride"),
    spec(name="convnet3", widths=[4, 6, 5], norm="group"),
]


def population(
    network: nn.Module, states: Sequence[Mapping[str, Tensor]]
) -> tuple[Tensor, ParamLayout, dict[str, Tensor]]:
    """What `align_to_mean` takes: the parameters [K,P], their layout, and the tensors that all networks share."""
    layout = ParamLayout.from_module(network)
    return layout.flatten(states), layout, layout.frozen_state(states[0])


def from_seeds(one: dict[str, object], num: int) -> list[dict[str, Tensor]]:
    return [build_network(one, seed=seed).state_dict() for seed in range(num)]


def outputs(
    network: nn.Module, params_KP: Tensor, layout: ParamLayout, frozen: dict[str, Tensor], inputs: Tensor
) -> Tensor:
    with torch.no_grad():
        return torch.stack(
            [functional_call(network, {**frozen, **state}, (inputs,)) for state in layout.unflatten(params_KP)]
        )


@pytest.mark.parametrize("one", SPECS, ids=lambda one: f"{one['name']}-{one.get('norm')}")
def test_outputs_stay_and_networks_come_closer(one: dict[str, object]) -> None:
    network = build_network(one).eval()
    params_KP, layout, frozen = population(network, from_seeds(one, 6))
    aligned_KP = params_KP.clone()
    info = align_to_mean(network, aligned_KP, layout, INPUTS, frozen=frozen)
    expected = outputs(network, params_KP, layout, frozen, INPUTS)
    change = outputs(network, aligned_KP, layout, frozen, INPUTS) - expected
    assert change.abs().max() <= 1e-5 * expected.abs().max().clamp_min(1)
    assert info.output_change <= 1e-5
    # Scaling untrained units may make weights longer, but reordering alone never moves networks apart.
    ordered = align_to_mean(network, params_KP, layout, INPUTS, frozen=frozen, rescale=False)
    assert ordered.distance_after < ordered.distance_before


@pytest.mark.parametrize("one", SPECS, ids=lambda one: f"{one['name']}-{one.get('norm')}")
def test_some_networks_at_a_time_give_what_all_together_give(
    one: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network(one).eval()
    together_KP, layout, frozen = population(network, from_seeds(one, 5))
    apart_KP = together_KP.clone()
    whole = align_to_mean(network, together_KP, layout, INPUTS, frozen=frozen)
    monkeypatch.setattr(alignment, "_BYTES_AT_ONCE", 4 * 2 * layout.num_params)  # gives 2, 2 and 1 networks at a time
    parts = align_to_mean(network, apart_KP, layout, INPUTS, frozen=frozen)
    assert torch.allclose(apart_KP, together_KP, rtol=1e-5, atol=1e-7)
    assert parts.moved == pytest.approx(whole.moved)
    assert parts.distance_after == pytest.approx(whole.distance_after)


def test_a_permuted_copy_becomes_the_same_network() -> None:
    network = build_network(SPECS[0]).eval()
    first = network.state_dict()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    copy = {
        **first,
        "fc1.weight": first["fc1.weight"][order],
        "fc1.bias": first["fc1.bias"][order],
        "fc2.weight": first["fc2.weight"][:, order],
    }
    params_KP, layout, frozen = population(network, [first, copy])
    align_to_mean(network, params_KP, layout, INPUTS, frozen=frozen)
    assert torch.allclose(params_KP[0], params_KP[1], atol=1e-6)


class Masked(torch.nn.Sequential):
    """A chain whose answers pass a mask, which is a buffer."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))
        self.register_buffer("mask", torch.tensor([0.0, -1e9, 0.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        masked: torch.Tensor = super().forward(images) + self.mask
        return masked


def test_a_mask_may_be_frozen() -> None:
    states = []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(Masked().state_dict())
    params_KP, layout, frozen = population(Masked(), states)
    assert not frozen  # a mask of finite numbers is packed by default
    layout = ParamLayout.from_module(Masked(), [name for name in states[0] if name != "mask"])
    params_KP = torch.stack([layout.flatten(state) for state in states])
    info = align_to_mean(Masked(), params_KP, layout, INPUTS, frozen=layout.frozen_state(states[0]))
    assert info.layers and info.distance_after < info.distance_before


def test_what_changes_outputs_or_leaves_floats_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(SPECS[0]).eval()
    params_KP, layout, frozen = population(network, from_seeds(SPECS[0], 3))
    state, some = network.state_dict(), ParamLayout.from_module(network, ["fc2.weight", "fc2.bias"])
    with pytest.raises(ValueError, match=r"'fc1\.weight' is frozen"):
        align_to_mean(network, torch.zeros(2, some.num_params), some, INPUTS, frozen=some.frozen_state(state))
    monkeypatch.setattr(alignment, "_TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="aligning changed a network's outputs"):
        align_to_mean(network, params_KP, layout, INPUTS, frozen=frozen)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1)).relu()
        return self.last(hidden + self.second(hidden).relu())


def test_what_is_no_chain_is_refused() -> None:
    network = Residual()
    params_KP, layout, frozen = population(network, [network.state_dict()] * 2)
    with pytest.raises(ValueError, match=r"align|chain"):
        align_to_mean(network.eval(), params_KP, layout, INPUTS, frozen=frozen)
    assert torch.equal(params_KP, layout.flatten([network.state_dict()] * 2))
