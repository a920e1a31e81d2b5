"""The user's own networks: a dotted path names a function or class that makes an `nn.Module`."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pdiff_hub.errors import PdiffError, unknown_name
from pdiff_hub.networks.memory import is_in_memory, made_by
from pdiff_hub.networks.unwrapping import described, plain

PASSED = "passed_from_task"
_searched: list[str] = []


def search_too(folder: Path) -> None:
    """Lets named modules lie in `folder`, which is on the path only while one of them is imported, and comes last.

    The command does this with the current folder where the user trusts functions. It must not stay on the path: many
    libraries try to import packages that are not installed, and would find a stranger's file of that name.
    """
    if str(folder) not in _searched:
        _searched.append(str(folder))


def is_dotted(name: str) -> bool:
    """Whether `name` is a path to a factory rather than the name of a network."""
    return "." in name or ":" in name


def module_of(name: str) -> str | None:
    """The module of a dotted path to a function; None if it is no such path."""
    module_name, _, path = name.partition(":") if ":" in name else name.rpartition(".")
    parts = [*module_name.split("."), *path.split(".")]
    return module_name if all(part.isidentifier() for part in parts) else None


def functions_in(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The dotted paths that collecting for a recipe (`Recipe.to_dict`) imports and calls, by what they make."""
    network, collect = recipe.get("network"), recipe.get("collect")
    named = {"network": network.get("name") if isinstance(network, Mapping) else network}
    if isinstance(collect, Mapping) and collect.get("method") == "family":
        named["family"] = collect.get("family")
    return {
        what: name
        for what, name in named.items()
        if isinstance(name, str) and is_dotted(name) and not is_in_memory(name)
    }


def resolve(name: str, options: dict[str, Any], shape: dict[str, int], explicit: list[str]) -> dict[str, Any]:
    """Checks the options against the factory's signature; returns them and the task's fields that go into the call.

    A factory gets `in_channels`, `image_size` or `num_classes` if its signature names the field, or if the user wrote
    the field in the spec (`explicit`). A factory that has only **kwargs gets fields in the second way. The choice is
    recorded, so that a later build makes the same call.
    """
    factory = _import(name)
    try:
        signature: inspect.Signature | None = inspect.signature(factory)
    except ValueError:  # some built-in callables have no signature
        signature = None
    if PASSED in options:
        passed = options.pop(PASSED)
        if not isinstance(passed, list) or not set(passed) <= set(shape):
            raise PdiffError(f"{PASSED} of network {name!r} must be a list out of {list(shape)}, found {passed!r}")
    else:
        named = {} if signature is None else signature.parameters
        passed = [field for field in shape if field in named or field in explicit]
    try:
        options = json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PdiffError(f"the options of network {name!r} must be JSON values (they are stored): {error}") from None
    if signature is not None:
        try:
            signature.bind(**options, **{field: shape[field] for field in passed})
        except TypeError as error:
            raise PdiffError(
                f"network {name!r} cannot be called with the options {sorted(options)} and {passed} of the task: "
                f"{error}; its signature is {signature}"
            ) from None
    return {**options, PASSED: passed}


def build(spec: dict[str, Any]) -> nn.Module:
    """The plain network (`unwrapping.plain`) of a complete spec's factory; ValueError if that returns anything else."""
    passed = spec[PASSED]
    not_passed = {"name", PASSED, "in_channels", "image_size", "num_classes"} - set(passed)
    arguments = {key: value for key, value in spec.items() if key not in not_passed}
    factory = _import(spec["name"])
    try:
        network = factory(**arguments)
    except PdiffError:
        raise
    except Exception as error:  # a user's own code may raise anything
        raise PdiffError(f"network {spec['name']!r} could not be built: {described(error)}") from error
    if not isinstance(network, nn.Module):
        raise PdiffError(f"network {spec['name']!r} must return a torch.nn.Module, found {type(network).__name__}")
    return plain(network, spec["name"], (spec["in_channels"], spec["image_size"], spec["image_size"]))


def _import(name: str, what: str = "network") -> Callable[..., Any]:
    """The function or class that a dotted path names; ValueError if there is none. what: how errors call the name."""
    if is_in_memory(name):
        return made_by(name)
    module_name = module_of(name)
    if module_name is None:
        raise PdiffError(f"{what} {name!r} is not a path to a factory; write some.module:factory")
    path = name[len(module_name) + 1 :]
    found: Any = _module(name, module_name, what)
    for part in path.split("."):
        if not hasattr(found, part):
            public = [candidate for candidate in dir(found) if not candidate.startswith("_")]
            raise unknown_name(f"factory in {module_name!r}", part, public)
        found = getattr(found, part)
    if not callable(found):
        raise PdiffError(f"{what} {name!r} must be a function or class, found {type(found).__name__}")
    factory: Callable[..., Any] = found
    return factory


def _module(name: str, module_name: str, what: str) -> ModuleType:
    try:
        with on_the_path():
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(missing + "."):
            raise PdiffError(
                f"{what} {name!r}: its module imports {missing!r}, which is not there; install it, or start where it "
                "can be imported"
            ) from error
        raise PdiffError(
            f"{what} {name!r}: there is no module {missing!r}; install it, or start Python where it can be imported "
            "(the command looks into the current folder, too)"
        ) from None


@contextmanager
def on_the_path(more: Sequence[str] = ()) -> Iterator[None]:
    """Lets Python look into the folders of `search_too`, and then into `more`, after all others."""
    added = [folder for folder in dict.fromkeys((*_searched, *more)) if folder not in sys.path]
    sys.path.extend(added)
    try:
        yield
    finally:
        for folder in added:
            if folder in sys.path:
                sys.path.remove(folder)
