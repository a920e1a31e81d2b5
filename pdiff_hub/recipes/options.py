"""Every option of a recipe with its default, range and meaning, read from the dataclasses and their docstrings.

A docstring says `name (range): meaning`; the kind of value and the default are those of the field.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, get_type_hints

from pdiff_hub.collect.family.rotation import Rotation
from pdiff_hub.errors import unknown_name
from pdiff_hub.networks import vision
from pdiff_hub.networks.options import SMALL, PatchOptions, ResnetOptions
from pdiff_hub.recipes.recipe import METHODS, RECIPE_FILE, SECTIONS, Recipe
from pdiff_hub.recipes.values import described, kinds_of
from pdiff_hub.records.yaml_files import parse_yaml
from pdiff_hub.tasks.options import TaskOptions

_ENTRY = re.compile(r"(\w+)(?: \((.*?)\))?: (.+)")
_TEXT = "text (quote it if it looks like a number)"
# Shorter than in sentences.
_WORDS = {
    _TEXT: "text",
    "list, each a whole number": "list of whole numbers",
    f"list, each a {_TEXT}": "list of texts",
    "anything": "",
}


@dataclass(frozen=True)
class Option:
    """One option: its default as YAML has it, which values it takes, and what it means."""

    name: str
    default: str
    range: str
    meaning: str


@dataclass(frozen=True)
class OptionGroup:
    """The options of one place in a recipe.

    Attributes:
        key: what `pdiff options` calls it.
        place: how it stands in a recipe.
        about: one or more sentences.
        options: in the order of the dataclass.
    """

    key: str
    place: str
    about: str
    options: tuple[Option, ...]


def option_groups() -> tuple[OptionGroup, ...]:
    """All options that a recipe can have, in its order."""
    preset = Option("preset", "null", '"paper" or null', "fills in what the paper's autoencoder has, where not given.")
    sections = [*SECTIONS, "file", "collect"]
    return (
        _group("recipe", RECIPE_FILE, Recipe, {"method": "collect.method"}, leave_out=sections),
        _group("task", "task: {dataset: ..., OPTION: ...}", TaskOptions),
        *(_group(f"network.{name}", f"network: {{name: {name}, ...}}", kind) for name, kind in SMALL.items()),
        _group("network.resnet", _named("resnet"), ResnetOptions),
        _group("network.vit", _named("vit", "convnext"), PatchOptions),
        *(_group(f"collect.{name}", f"collect: {{method: {name}, ...}}", kind) for name, kind in METHODS.items()),
        _group("collect.rotation", "collect: {method: family, family: rotation, options: {...}}", Rotation),
        *(
            _group(name, f"{name}: {{...}}", kind, first=(preset,) if name == "autoencoder" else ())
            for name, kind in SECTIONS.items()
        ),
    )


def find_groups(name: str) -> tuple[list[OptionGroup], str | None]:
    """What `name` means: groups ("collect", "collect.import"), or groups and one option of theirs ("diffusion.steps").

    ValueError for an unknown name gives the nearest.
    """
    groups = option_groups()
    if found := [group for group in groups if group.key == name or group.key.startswith(f"{name}.")]:
        return found, None
    place, _, option = name.rpartition(".")
    if option:
        for group in groups:
            if group.key == place or (place and group.key.startswith(f"{place}.")) or not place:
                found += [group] if option in (each.name for each in group.options) else []
        if found:
            return found, option
    names = [name for group in groups for name in (group.key, *(f"{group.key}.{each.name}" for each in group.options))]
    raise unknown_name("option", name, dict.fromkeys([*names, *(group.key.partition(".")[0] for group in groups)]))


def _named(*kinds: str) -> str:
    names = [name for name in vision.NAMES if name.startswith(kinds)]
    return f"network: {{name: {' or '.join(names)}, ...}}"


def _group(
    key: str,
    place: str,
    kind: type[Any],
    renamed: Mapping[str, str] | None = None,
    *,
    leave_out: list[str] | tuple[str, ...] = (),
    first: tuple[Option, ...] = (),
) -> OptionGroup:
    texts, about = _described(kind)
    own = tuple(
        Option((renamed or {}).get(name, name), _yaml(default), _range(hint, texts[name][0]), texts[name][1])
        for name, hint, default in _fields(kind)
        if name not in leave_out
    )
    return OptionGroup(key, place, about, (*first, *own))


def _fields(kind: type[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of each field of a dataclass, or of each argument of another class but its first."""
    if hasattr(kind, "__dataclass_fields__"):
        types = get_type_hints(kind)
        for each in fields(kind):
            default = each.default if each.default_factory is MISSING else each.default_factory()
            yield each.name, types[each.name], default
    else:
        types = get_type_hints(kind.__init__)
        for name, parameter in list(inspect.signature(kind).parameters.items())[1:]:
            yield name, types[name], parameter.default


def _described(kind: type[Any]) -> tuple[dict[str, tuple[str | None, str]], str]:
    """What the docstring says of each option (its range, if it says one, and its meaning), and of all of them."""
    about, _, rest = re.split(r"^(Args|Attributes):$", inspect.cleandoc(kind.__doc__ or ""), maxsplit=1, flags=re.M)
    section = re.split(r"^(?=\S)", rest, maxsplit=1, flags=re.M)[0]  # what follows is for Python
    texts: dict[str, tuple[str | None, str]] = {}
    for entry in re.split(r"^    (?=\S)", section, flags=re.M)[1:]:
        if found := _ENTRY.fullmatch(" ".join(entry.split())):
            texts[found[1]] = found[2], found[3]
    return texts, " ".join(about.split())


def _range(hint: Any, said: str | None) -> str:
    """Which values an option takes: the kind that its type says, and what the docstring says; of texts only that."""
    kinds = [described(each).removeprefix("a ") for each in kinds_of(hint) if each is not NoneType]
    kind = " or ".join(_WORDS.get(each, each) for each in kinds)
    if said is not None:
        kind = said if {_TEXT, "mapping"}.intersection(kinds) else f"{kind}, {said}"
    return kind + ("; or null" if "," in kind else " or null") * (NoneType in kinds_of(hint))


def _yaml(value: Any) -> str:
    if value is MISSING:
        return "required"
    if isinstance(value, str):
        return value if parse_yaml(value, "a default") == value else json.dumps(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value)
