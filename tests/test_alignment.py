"""Alignment: outputs stay, permuted copies become one network again, networks that are no chain are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pdiff_hub.collect.alignment import align_to_mean
from pdiff_hub.networks import build_network, resolve_network


def spec(**options: object) -> dict[str, object]:
    return resolve_network(options, in_channels=1, image_size=8, num_classes=10)


SPECS = [
    spec(name="mlp3", hidden=[12, 9]),
    spec(name="convnet3", widths=[4, 6, 5]),
    spec(name="convnet3", widths=[4, 6, 5], norm="batch", downsample="stride"),
    spec(name="convnet3", widths=[4, 6, 5], norm="group"),
]


def population(one: dict[str, object], num: int) -> dict[str, Tensor]:
    states = [build_network(one, seed=seed).state_dict() for seed in range(num)]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def outputs(network: nn.Module, stacked: dict[str, Tensor], inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([functional_call(network, {name: tensor[k] for name, tensor in stacked.items()}, (inputs,))
                            for k in range(len(next(iter(stacked.values()))))])


@pytest.mark.parametrize("one", SPECS, ids=lambda one: f"{one['name']}-{one.get('norm')}")
def test_outputs_stay_and_networks_come_closer(one: dict[str, object]) -> None:
    network = build_network(one).eval()
    stacked = population(one, 6)
    inputs = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    aligned, info = align_to_mean(network, stacked, inputs)
    expected = outputs(network, stacked, inputs)
    assert (outputs(network, aligned, inputs) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1)
    assert info.output_change <= 1e-5
    # Scaling untrained units may make weights longer; order alone never takes networks apart.
    _, ordered = align_to_mean(network, stacked, inputs, rescale=False)
    assert ordered.distance_after < ordered.distance_before
    assert list(aligned) == list(stacked)
    assert all(aligned[name].shape == stacked[name].shape for name in stacked)


def test_a_permuted_copy_becomes_the_same_network() -> None:
    network = build_network(SPECS[0]).eval()
    first = network.state_dict()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    copy = {**first, "fc1.weight": first["fc1.weight"][order], "fc1.bias": first["fc1.bias"][order],
            "fc2.weight": first["fc2.weight"][:, order]}
    stacked = {name: torch.stack([first[name], copy[name]]) for name in first}
    aligned, _ = align_to_mean(network, stacked, torch.randn(3, 1, 8, 8))
    assert all(torch.allclose(tensor[0], tensor[1], atol=1e-6) for tensor in aligned.values())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1)).relu()
        return self.last(hidden + self.second(hidden).relu())


def test_what_is_no_chain_is_refused() -> None:
    network = Residual()
    stacked = {name: torch.stack([tensor, tensor]) for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"align|chain"):
        align_to_mean(network.eval(), stacked, torch.randn(3, 1, 8, 8))
