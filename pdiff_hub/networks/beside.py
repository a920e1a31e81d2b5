"""Networks of specs that come from files: a spec is compared with the weights beside it before anything is built.

A spec of a few letters can describe a network of any size. What really lies beside it cost its author as much to send
as it costs to hold here.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import NETWORK_NAMES, build_network
from pdiff_hub.networks.building import sketching

Shapes = Mapping[str, Sequence[int]]
"""The shape of every tensor of a state dict, by its name."""


class _Tensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class _Selected(_Tensor, Protocol):
    @property
    def aliases(self) -> tuple[str, ...]: ...


class Layout(Protocol):
    """What is read of a `ParamLayout`."""

    @property
    def entries(self) -> Iterable[_Selected]: ...
    @property
    def frozen(self) -> Iterable[_Tensor]: ...


def build_beside(spec: Mapping[str, Any], layout: Layout, where: str, *, allow_factory: bool = False) -> nn.Module:
    """The network of a spec that came with weights of this layout, once it is known that they fit. It is not loaded.

    Args:
        spec, allow_factory: as in `build_network`, which is told to load no pretrained weights.
        where: what the spec came with, as the beginning of a sentence ("the network spec of FOLDER").

    Raises:
        ValueError: as `build_network` raises it; a spec of other tensors than those of the layout.
    """
    shapes = _shapes(layout)
    if spec.get("name") in NETWORK_NAMES:
        require_bounded(spec, shapes, where)
        _require_fit(sketch(spec, where, len(shapes)), shapes, where)
        return build_network(spec, pretrained=False, allow_factory=False)
    network = build_network(spec, pretrained=False, allow_factory=allow_factory)
    _require_fit(network, shapes, where)
    return network


def require_bounded(spec: Mapping[str, Any], shapes: Shapes, where: str) -> None:
    """ValueError unless a sketch of a named network, which has as many modules and sizes as the spec says, is small."""
    total = sum(math.prod(shape) for shape in shapes.values())
    rows = {shape[0] for shape in shapes.values() if len(shape) > 0}
    for option, value in spec.items():
        sizes = value if isinstance(value, list | tuple) else [value]
        # Each of them is a side of some tensor, but for the side of the images.
        too_large = option != "image_size" and any(type(size) is int and size > total for size in sizes)
        no_rows = option == "num_classes" and type(value) is int and value not in rows
        if len(sizes) > len(shapes) or too_large or no_rows:
            raise PdiffError(
                f"{where} has {option} {reprlib.repr(value)}, which does not fit the weights beside it: {len(shapes)} "
                f"tensors of {total:,} numbers in all."
            )


def sketch(spec: Mapping[str, Any], where: str, num_tensors: int) -> nn.Module:
    """A named network without memory for its numbers, so that the spec of a huge network costs nothing.

    where: as in `build_beside`. num_tensors: how many it should have; ValueError if it has many more.
    """
    try:
        with sketching(num_tensors):
            return build_network(spec, pretrained=False, allow_factory=False)
    except ImportError:
        raise
    except Exception as error:  # with a made-up config, transformers can fail anywhere
        first = next(iter(str(error).splitlines()), type(error).__name__)  # torch appends where in its source
        raise PdiffError(f"{where} describes no network that can be built ({first[:300]}).") from error


def require_layout(network: nn.Module, layout: Layout, where: str) -> None:
    """ValueError unless the network has just the tensors of the layout. where: as in `build_beside`."""
    _require_fit(network, _shapes(layout), where)


def _shapes(layout: Layout) -> dict[str, Sequence[int]]:
    shapes = {name: entry.shape for entry in layout.entries for name in (entry.name, *entry.aliases)}
    return {**shapes, **{entry.name: entry.shape for entry in layout.frozen}}


def _require_fit(network: nn.Module, shapes: Shapes, where: str) -> None:
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: list(shape) for name, shape in shapes.items()}
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise PdiffError(
                f"{where} does not fit the weights beside it: tensor {name!r} is {found.get(name, 'missing')} there, "
                f"and {expected.get(name, 'missing')} in the network."
            )
