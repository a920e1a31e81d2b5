"""Turns what people have in Python, a module or a function that makes one, into the spec of a network."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from itertools import chain
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pdiff_hub.errors import PdiffError, one_line
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.networks.beside import Layout, require_layout
from pdiff_hub.networks.dry_run import build_checked
from pdiff_hub.networks.factory import PASSED
from pdiff_hub.networks.memory import PREFIX, keep

Weights = Literal["own", "new", "any"]
"""What becomes of a module's weights: networks start from its own, from new ones of each seed, or they do not matter,
because all that is built is loaded with others."""

_OF_ANY_MODULE = frozenset(vars(nn.Module()))  # whether it is in training, its tensors, its hooks

Given = nn.Module | Callable[..., nn.Module]


@dataclass(frozen=True)
class Kept:
    """The spec of a network in memory, and the weights that it starts from (None if these are of each seed)."""

    spec: dict[str, Any]
    weights: dict[str, Tensor] | None = None


def importable_name(network: Given) -> str | None:
    """The dotted path ("module:function") by which any process can import this function or class; None without one."""
    module, name = getattr(network, "__module__", None), getattr(network, "__qualname__", None)
    if isinstance(network, nn.Module) or not module or not name or module == "__main__":
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):  # "<lambda>" and "<locals>" are attributes of nothing
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is network else None


def keep_network(network: Given, options: Mapping[str, Any], *, weights: Weights, shape: Mapping[str, int]) -> Kept:
    """The spec of a network that has no dotted path. It can be built from it in this process.

    Its name ends with a digest of its architecture, of the code of its own modules and their plain attributes, of what
    becomes of its weights, and of its first ones by the seed 0 (of a module, if it starts from them, of its own). So
    the same network gets the same name in another process, and another network does not.

    Args:
        network: a module, which is copied; or a function or class that makes one, called as `resolve_network` says.
        options: for the function, by name.
        weights: of a module.
        shape: in_channels, image_size and num_classes of the task.

    Raises:
        ValueError: as `build_checked` raises it; a module that cannot be copied, or whose weights cannot be made anew
            where `weights` asks for it; a function that returns one and the same module.
    """
    label = _label(network)
    make = _copies(network, label, weights) if isinstance(network, nn.Module) else network
    provisional = {"name": f"{PREFIX}{label}", **options}
    keep(provisional["name"], make)
    spec = resolve_network(provisional, **shape)
    built = build_checked(spec, from_files=weights == "any")
    if built is build_network(spec):
        raise PdiffError(
            f"the function that was given as network ({label}) returns the same module each time; let it make a new "
            "one, or give the module itself."
        )
    name = f"{provisional['name']}-{_digest(built, weights)[:12]}"
    keep(name, make)
    own = isinstance(network, nn.Module) and weights == "own"
    return Kept({**provisional, "name": name}, dict(built.state_dict()) if own else None)


def _label(network: Given) -> str:
    name = getattr(network, "__name__", type(network).__name__)
    return "lambda" if name == "<lambda>" else "".join(each for each in name if each.isalnum() or each == "_")


def _copies(network: nn.Module, label: str, weights: Weights) -> Callable[[], nn.Module]:
    def copied(module: nn.Module) -> nn.Module:
        try:
            return copy.deepcopy(module)
        except Exception as error:  # torch refuses some tensors, and a user's module may hold anything
            raise PdiffError(
                f"the network {label} cannot be copied ({one_line(error, 150)}); give a function that makes it."
            ) from error

    own = copied(network)
    if weights != "new":
        return lambda: copied(own)
    for name, module in own.named_modules():
        if _has_parameters(module) and _reset_of(module) is None:
            raise PdiffError(
                f"each network is trained from weights of its own seed, and module {name or label!r} of {label} has no "
                "reset_parameters() that makes new ones; give the class or a function that makes the network."
            )

    def made_anew() -> nn.Module:
        network = copied(own)
        for module in network.modules():
            if (reset := _reset_of(module)) is not None:
                reset()
        return network

    return made_anew


def _has_parameters(module: nn.Module) -> bool:
    return any(each is not None for each in module._parameters.values())


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return reset if callable(reset) else None


def _digest(network: nn.Module, weights: Weights) -> str:
    # One module may be given twice in a process: to start from its own weights, and from new ones.
    digest = hashlib.sha256(weights.encode())
    classes: dict[str, type] = {}
    for name, module in network.named_modules():
        kind = type(module)
        digest.update(f"{name} {kind.__qualname__} {module.extra_repr()}\n".encode())
        for attribute, value in sorted(vars(module).items()):
            if attribute not in _OF_ANY_MODULE:
                digest.update(f"{name}.{attribute}\n".encode())
                _add_value(digest, value)
        classes |= {each.__qualname__: each for each in kind.__mro__ if not each.__module__.startswith("torch.")}
    for name, each in sorted(classes.items()):
        for attribute, value in vars(each).items():
            if isinstance(value, FunctionType) or not attribute.startswith("__"):
                digest.update(f"{name}.{attribute}\n".encode())
                _add_value(digest, value)
    tensors = {**dict(network.named_buffers()), **network.state_dict()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if weights != "any":
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _add_value(digest: Any, value: Any, depth: int = 6) -> None:
    """Adds an attribute that a forward pass may go by; of what may be another in each process, the type alone."""
    digest.update(f"{type(value).__qualname__}\n".encode())
    parts: Iterable[Any] = ()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        digest.update(f"{value!r}\n".encode())
    elif isinstance(value, Tensor):
        digest.update(f"{value.dtype} {list(value.shape)}\n".encode())
        if value.layout == torch.strided and not value.is_meta and not value.is_quantized:
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, BuiltinFunctionType | type):
        digest.update(f"{value.__module__}.{value.__qualname__}\n".encode())
    elif isinstance(value, FunctionType):
        _add_code(digest, value.__code__)
        parts = value.__defaults__ or ()
    elif isinstance(value, staticmethod | classmethod):
        parts = [value.__func__]
    elif isinstance(value, property):
        parts = [value.fget]
    elif isinstance(value, partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, Mapping):
        parts = chain.from_iterable(value.items())
    elif is_dataclass(value):
        parts = [getattr(value, each.name, None) for each in fields(value)]
    for part in parts if depth else ():
        _add_value(digest, part, depth - 1)


def _add_code(digest: Any, code: CodeType) -> None:
    """Adds what a function does, not where it stands."""
    digest.update(code.co_code + repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(digest, constant)
        else:  # a set shows its members in another order in each process
            shown = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
            digest.update(repr(shown).encode())


def supplied(network: Any, spec: Mapping[str, Any] | None, layout: Layout) -> nn.Module:
    """A network to load weights of this layout into: a copy of a module, or what a function makes for this spec.

    ValueError if it has other tensors than the layout, and as `build_network` raises it.
    """
    if not callable(network):
        raise PdiffError(f"network is {type(network).__name__}, expected a module, or a function that makes one.")
    label, spec = _label(network), spec or {}
    shape = {name: spec.get(name, 1) for name in ("in_channels", "image_size", "num_classes")}
    options = {key: value for key, value in spec.items() if key not in ("name", PASSED, *shape)}
    name = f"{PREFIX}{label}"
    keep(name, _copies(network, label, "any") if isinstance(network, nn.Module) else network)
    built = build_network(resolve_network({"name": name, **options}, **shape))
    require_layout(built, layout, "the network that was given")
    return built


def stand_in(network: Any, spec: Mapping[str, Any], layout: Layout) -> None:
    """Lets a network in memory that checkpoints of this layout name be built in this process; errors as `supplied`."""
    supplied(network, spec, layout)
    keep(str(spec["name"]), _copies(network, _label(network), "any") if isinstance(network, nn.Module) else network)
