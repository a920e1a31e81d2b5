"""Factories of networks as people really bring them; tests name them as `odd_networks:NAME`. Most have one fault."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(in_channels: int = 1, image_size: int = 8, num_classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, 8), nn.ReLU(), nn.Linear(8, num_classes))


def compiled() -> Any:
    return torch.compile(mlp(), backend="eager")


def compiled_in_place() -> nn.Module:
    network = mlp()
    network.compile(backend="eager")
    return network


def compiled_and_parallel() -> Any:
    return torch.compile(nn.DataParallel(mlp()), backend="eager")


def parallel() -> nn.Module:
    return nn.DataParallel(mlp())


def wrapped_inside() -> nn.Module:
    network = mlp()
    layers: Any = network._modules
    layers["1"], layers["3"] = torch.compile(network[1], backend="eager"), nn.DataParallel(network[3])
    return network


def bfloat16(in_channels: int = 1, image_size: int = 8, num_classes: int = 10) -> nn.Module:
    return mlp(in_channels, image_size, num_classes).bfloat16()


def float64() -> nn.Module:
    return mlp().double()


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(8, 10))


def lazy_and_half() -> nn.Module:
    half = torch.bfloat16
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8, dtype=half), nn.Linear(8, 10, dtype=half))


def lazy_unused() -> nn.Module:
    network = Odd()
    network.unused = nn.LazyLinear(3)
    return network


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(mlp())


class Odd(nn.Module):
    """An MLP to which each subclass does something odd."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.net = mlp(num_classes=num_classes)
        self.calls = 0

    def forward(self, images: Tensor) -> Any:
        return self.net(images)


class ForgetsToReturn(Odd):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)


class KnowsItsDtype(Odd):
    """In bfloat16, but it works on the images in float32 first."""

    def __init__(self) -> None:
        super().__init__()
        self.bfloat16()

    def forward(self, images: Tensor) -> Any:
        assert images.dtype == torch.float32
        return self.net((images * 1.001).bfloat16())


class Dictionary(Odd):
    def forward(self, images: Tensor) -> Any:
        self.calls += 1
        return {"logits": self.net(images), "features": images}


class Tuple(Odd):
    def forward(self, images: Tensor) -> Any:
        return self.net(images), images


class Answer(Odd):
    def forward(self, images: Tensor) -> Any:
        return self.net(images).argmax(dim=1)


class ExtraState(Odd):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"steps": 3}


class LeavesOut(Odd):
    def state_dict(self, *arguments: Any, **named: Any) -> Any:
        state = super().state_dict(*arguments, **named)
        del state["net.1.bias"]
        return state


class ChangesInEval(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, images: Tensor) -> Any:
        self.seen.add_(1)
        return self.net(images) + self.seen.sum()


class Counts(Odd):
    """Its counter is an integer, which only counts: it works."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, images: Tensor) -> Any:
        self.seen.add_(1)
        return self.net(images)


class ChangesImages(Odd):
    def forward(self, images: Tensor) -> Any:
        return self.net(images.sub_(0.5))


class Random(Odd):
    def forward(self, images: Tensor) -> Any:
        return self.net(F.dropout(images))


class TwoInputs(Odd):
    def forward(self, images: Tensor, more: Tensor) -> Any:
        return self.net(images)


class Sparse(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.eye(3).to_sparse())


class HiddenNumbers(Odd):
    """What it multiplies images with is not saved, and another one each time."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.from_numpy(np.random.default_rng().random(1, dtype=np.float32))

    def forward(self, images: Tensor) -> Any:
        return self.net(images * self.scale)


def one_logit() -> nn.Module:
    return mlp(num_classes=1)


def nine_logits() -> nn.Module:
    return mlp(num_classes=9)


def eleven_logits() -> nn.Module:
    return mlp(num_classes=11)


def map_of_logits() -> nn.Module:
    return nn.Conv2d(1, 10, 8)


def one_row() -> nn.Module:
    return nn.Sequential(nn.Flatten(0), nn.Linear(128, 10))


def other_size() -> nn.Module:
    return mlp(image_size=16)


def other_channels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10))


def on_meta() -> nn.Module:
    return mlp().to("meta")


def no_numbers() -> nn.Module:
    network = mlp()
    network[1].weight = nn.Parameter(torch.empty(8, 64, device="meta"))
    return network


def drawn_elsewhere() -> nn.Module:
    """Its weights come from NumPy's and Python's generators."""
    network = mlp()
    with torch.no_grad():
        network[1].weight.copy_(torch.from_numpy(np.random.randn(8, 64) / 8))
        network[3].bias.fill_(random.random())
    return network


def drawn_from_the_system() -> nn.Module:
    network = mlp()
    with torch.no_grad():
        network[1].weight.copy_(torch.from_numpy(np.random.default_rng().standard_normal((8, 64)) / 8))
    return network


_widths = iter(range(5, 100))


def other_width_each_time() -> nn.Module:
    width = next(_widths)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))


def fails() -> nn.Module:
    raise KeyError("width")
