"""`mlp3` and `convnet3`, the small networks that p-diff generates whole (arXiv 2402.13144, table 3), and `mlp`.

All are plain `nn.Sequential`s: their modules run in the order in which they are registered, and a ReLU module follows
every hidden layer. So the list of modules alone shows how hidden units can be reordered without changing the function.
"""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from itertools import pairwise
from typing import Any

from torch import nn

from pdiff_hub.errors import PdiffError, require_known, unknown_name
from pdiff_hub.networks.options import SMALL, defaults

NAMES = tuple(SMALL)

_DEFAULTS: dict[str, dict[str, Any]] = {name: defaults(options) for name, options in SMALL.items()}
_MOST_LAYERS = 1000  # a list that is longer is no network, and would take minutes to build
_CHOICES = {"norm": ("none", "batch", "group"), "downsample": ("max_pool", "stride")}


def resolve(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of network `name`, checked; ValueError names the one that is unknown or out of range."""
    defaults = _DEFAULTS[name]
    require_known(f"option of network {name!r}", options, defaults)
    resolved: dict[str, Any] = {**defaults, **options}
    for option, value in resolved.items():
        if option in _CHOICES:
            if value not in _CHOICES[option]:
                raise unknown_name(f"{option} of network {name!r}", value, _CHOICES[option])
        elif option == "global_pool":
            if not isinstance(value, bool):
                raise PdiffError(f"global_pool of network {name!r} must be true or false, found {value!r}")
        else:
            length = None if name == "mlp" else len(defaults[option])
            resolved[option] = _widths(f"{option} of network {name!r}", value, length)
    return resolved


def build(spec: dict[str, Any]) -> nn.Sequential:
    """The network of a complete spec."""
    shape = (spec["in_channels"], spec["image_size"], spec["num_classes"])
    return _convnet3(spec, *shape) if spec["name"] == "convnet3" else _mlp(spec, *shape)


def _widths(what: str, value: Any, length: int | None) -> list[int]:
    """length: None for any number of widths, one at least."""
    if (
        not isinstance(value, list | tuple)
        or len(value) != (length or max(len(value), 1))
        or any(type(width) is not int or width < 1 for width in value)
    ):
        number = f"{length} " if length else ""
        raise PdiffError(f"{what} must be a list of {number}positive integers, found {reprlib.repr(value)}")
    if len(value) > _MOST_LAYERS:
        raise PdiffError(f"{what} must be at most {_MOST_LAYERS:,} numbers, one for each layer, found {len(value):,}")
    return list(value)


def _mlp(options: dict[str, Any], in_channels: int, image_size: int, num_classes: int) -> nn.Sequential:
    widths = [in_channels * image_size**2, *options["hidden"]]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (before, after) in enumerate(pairwise(widths), start=1):
        layers[f"fc{number}"] = nn.Linear(before, after)
        layers[f"relu{number}"] = nn.ReLU()
    layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], num_classes)
    return nn.Sequential(layers)


def _convnet3(options: dict[str, Any], in_channels: int, image_size: int, num_classes: int) -> nn.Sequential:
    norm, strided = options["norm"], options["downsample"] == "stride"
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, size = in_channels, image_size
    for number, width in enumerate(options["widths"], start=1):
        # Pooling halves the map after each convolution; strides halve it in the second and third. Both do so only while
        # the map is at least 4 pixels wide: one rule serves images of 8 to 32 pixels and keeps the linear layer small.
        halve = size >= 4 and (number > 1 or not strided)
        stride = 2 if halve and strided else 1
        layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, stride, padding=1, bias=norm != "batch")
        if norm == "batch":
            layers[f"norm{number}"] = nn.BatchNorm2d(width)
        elif norm == "group":
            # One group only: aligning hidden units cannot swap channels of different groups.
            layers[f"norm{number}"] = nn.GroupNorm(1, width)
        if halve and not strided:
            # Before the ReLU: numbers and gradients are the same as after it, and the ReLU has a quarter of the work.
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        layers[f"relu{number}"] = nn.ReLU()
        if halve:
            size = (size + 1) // 2 if strided else size // 2
        channels = width
    if options["global_pool"]:
        layers["global_pool"] = nn.AdaptiveAvgPool2d(1)
        size = 1
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels * size**2, num_classes)
    return nn.Sequential(layers)
