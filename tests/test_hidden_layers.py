"""`find_hidden_layers`: its units can be reordered and, where it says so, scaled; other networks are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from pdiff_hub.collect.alignment.hidden_layers import HiddenLayer, find_hidden_layers

IMAGES = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(*sizes: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(*sizes, 3, padding=1, **options)


CHAINS: dict[str, tuple[Callable[[], list[nn.Module]], list[str], list[str]]] = {
    # Name: (modules, hidden layers that are found, those of them that can be scaled).
    "flattened map": (lambda: [conv(2, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(80, 4)], ["0"], ["0"]),
    "norms": (
        lambda: [
            conv(2, 6, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            conv(6, 4),
            nn.GroupNorm(1, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.BatchNorm1d(256),
            nn.Linear(256, 7),
            nn.LayerNorm(7),
            nn.LeakyReLU(),
            nn.Linear(7, 3),
        ],
        ["0", "3", "8"],
        ["0", "3", "8"],
    ),
    "norm of the input": (lambda: [nn.BatchNorm2d(2), conv(2, 5), nn.ReLU(), conv(5, 3)], ["1"], ["1"]),
    "norm without weights": (lambda: [conv(2, 5), nn.BatchNorm2d(5, affine=False), nn.ReLU(), conv(5, 3)], ["0"], []),
    "slopes": (lambda: [conv(2, 5), nn.PReLU(5), conv(5, 4), nn.PReLU(), conv(4, 3)], ["0", "2"], ["0", "2"]),
    "smooth": (lambda: [conv(2, 5), nn.GELU(), conv(5, 4), nn.Tanh(), conv(4, 3)], ["0", "2"], []),
    "clipped": (lambda: [conv(2, 5), nn.ReLU6(), conv(5, 4), nn.ReLU(), conv(4, 3)], ["0", "2"], ["2"]),
    "one layer": (lambda: [nn.Flatten(), nn.Linear(128, 3)], [], []),
}


def lively(network: nn.Module) -> nn.Module:
    """The network in eval mode, with running statistics and norm weights that differ from unit to unit."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network.eval()


def stacked(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor[None].double() if tensor.is_floating_point() else tensor[None]
        for name, tensor in network.state_dict().items()
    }


def run(network: nn.Module, state: dict[str, Tensor]) -> Tensor:
    exact = network.double()
    return functional_call(exact, {name: tensor[0] for name, tensor in state.items()}, (IMAGES.double(),)).detach()


@pytest.mark.parametrize("name", CHAINS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_units_of_a_chain_move_and_scale(name: str, seed: int) -> None:
    modules, found, scalable = CHAINS[name]
    network = lively(nn.Sequential(*modules()))
    state, generator = stacked(network), torch.Generator().manual_seed(seed)
    layers = find_hidden_layers(network, state, IMAGES)
    assert [layer.module for layer in layers] == found
    assert [layer.module for layer in layers if layer.scaled] == scalable
    expected, changed = run(network, state), dict(state)
    for layer in layers:
        layer.reorder(changed, torch.randperm(layer.size, generator=generator)[None])
        if layer.scaled:
            layer.scale(changed, 0.1 + torch.rand(1, layer.size, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(run(network, changed), expected)
    assert {key: tensor.shape for key, tensor in changed.items()} == {key: t.shape for key, t in state.items()}


def test_numbers_of_a_unit() -> None:
    """Row c holds all numbers that touch unit c, and no others."""
    network = nn.Sequential(conv(2, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(12, 5)).eval()
    (layer,) = find_hidden_layers(network, stacked(network), IMAGES)
    rows_KCF = layer.numbers(stacked(network), (*layer.weights, *layer.outgoing))
    assert rows_KCF.shape == (1, 3, 2 * 9 + 1 + 4 * 5)
    own = {
        *network[0].weight[1].flatten().tolist(),
        network[0].bias[1].item(),
        *network[4].weight[:, 4:8].flatten().tolist(),
    }
    assert set(rows_KCF[0, 1].float().tolist()) == own


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        rows = images[:, 0]
        return self.last(self.attention(rows, rows, rows)[0].mean(1))


class Skip(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return images + self.inner(images)


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.table


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = conv(2, 5), conv(5, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.again(self.again(self.first(images)).relu())


def tied() -> nn.Module:
    network = nn.Sequential(conv(2, 5), conv(5, 5), conv(5, 5))
    network[2].weight = network[1].weight
    return network


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "residual": (lambda: nn.Sequential(conv(2, 5), nn.ReLU(), Skip(conv(5, 5)), nn.ReLU(), conv(5, 3)), "module '0'"),
    "attention": (Attention, "module 'attention' is a MultiheadAttention"),
    "position table": (lambda: nn.Sequential(conv(2, 5), Position(), conv(5, 3)), "module '1' is a Position"),
    "grouped convolution": (lambda: nn.Sequential(conv(2, 4), conv(4, 4, groups=2)), "module '1' convolves"),
    "grouped norm": (lambda: nn.Sequential(conv(2, 4), nn.GroupNorm(2, 4), conv(4, 4)), "module '1' normalises in 2"),
    "runs twice": (Twice, "module 'again' runs 2 times"),
    "tied": (tied, "'1.weight' and '2.weight' are one tied parameter"),
    "mixes positions": (lambda: nn.Sequential(conv(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), conv(8, 3)), "'0'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused_by_module(name: str) -> None:
    make, message = REFUSED[name]
    network = make().eval()
    with pytest.raises(ValueError, match=message):
        find_hidden_layers(network, {key: t[None] for key, t in network.state_dict().items()}, IMAGES)


def test_a_state_that_does_not_fit_is_refused() -> None:
    network = nn.Sequential(conv(2, 5), conv(5, 3)).eval()
    state = {key: tensor[None] for key, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"lacks '0.bias'"):
        find_hidden_layers(network, {key: tensor for key, tensor in state.items() if key != "0.bias"}, IMAGES)
    with pytest.raises(ValueError, match=r"'1.bias'"):
        find_hidden_layers(network, {**state, "1.bias": torch.zeros(1, 4)}, IMAGES)
    with pytest.raises(ValueError, match="must be float"):
        find_hidden_layers(network, state, IMAGES.long())


def test_layers_are_values() -> None:
    network = nn.Sequential(conv(2, 5), conv(5, 3)).eval()
    state = stacked(network)
    first, second = find_hidden_layers(network, state, IMAGES), find_hidden_layers(network, state, IMAGES)
    assert first == second and isinstance(first[0], HiddenLayer)
