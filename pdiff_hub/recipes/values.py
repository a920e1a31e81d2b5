"""Values of recipes against the types that options declare: from a file, from Python, or from the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pdiff_hub.errors import PdiffError, shortened
from pdiff_hub.records.yaml_files import Scientific, parse_yaml

_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text (quote it if it looks like a number)",
}
_MOST, _MOST_LEVELS = 2**63, 50
_NOTHING = ("", "~", "null", "none")


def typed(option: str, kind: Any, value: Any) -> Any:
    """`value` as an option of the type `kind` holds it; PdiffError names the option and what was expected.

    A whole number fits where a number is expected, and one such as 1e3 or 2.0 where it must be whole. Lists become
    tuples. `Any`: whatever JSON can hold.
    """
    kinds = kinds_of(kind)
    if value is None and NoneType in kinds:
        return None
    fitting = [each for each in kinds if each is not NoneType]
    for each in fitting:
        if each is Any or _is_of(each, value):
            return _as(option, each, value)
    raise PdiffError(f"{option} is {shortened(value)}, expected {' or '.join(map(described, fitting))}.")


def from_text(option: str, kind: Any, text: str) -> Any:
    """What the text of `--override OPTION=TEXT` means for an option of the type `kind`; `typed` checks the rest.

    Where a text may stand, it is taken as it is, unless it begins like a list or a mapping and one may stand there.
    """
    kinds = kinds_of(kind)
    if NoneType in kinds and text.strip().lower() in _NOTHING:
        return None
    brackets = {"[": any(map(_is_list, kinds)), "{": any(map(_is_mapping, kinds))}
    if str in kinds and not brackets.get(text.strip()[:1], False):
        return text
    what = f"{option} is {shortened(text)}, which"
    if Any not in kinds:
        value = parse_yaml(text, what)
        # Shown as it was typed, not as nothing.
        return text if value is None and not any(map(_is_mapping, kinds)) else value
    try:
        return parse_yaml(text, what)
    except PdiffError:
        if text.strip()[:1] in ("[", "{"):
            raise
        return text


def plain(option: str, value: Any, texts: Sequence[str] = ()) -> Any:
    """A copy of a value that JSON can hold; PdiffError names what it cannot.

    texts: keys whose values are texts, which a number with an exponent may have been meant as. Elsewhere such a number
    is whole if it can be.
    """
    if option.count(".") > _MOST_LEVELS:
        raise PdiffError(f"{option[:40]}... has more than {_MOST_LEVELS} levels of brackets.")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise PdiffError(f"{option} has the key {key!r}, expected a text; quote it.")
        return {
            key: each.text if key in texts and isinstance(each, Scientific) else plain(f"{option}.{key}", each)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(f"{option}.{index}", each) for index, each in enumerate(value)]
    if isinstance(value, Scientific) and value.is_integer():
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if value is None or isinstance(value, str) or (isinstance(value, int) and abs(value) < _MOST):
        return value
    raise PdiffError(f"{option} is {shortened(value)}, expected a text, a finite number, a list or a mapping.")


def kinds_of(kind: Any) -> list[Any]:
    """The types of a union, or the one type."""
    return list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]


def _is_list(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_of(kind: Any, value: Any) -> bool:
    if _is_mapping(kind):
        return isinstance(value, Mapping)
    if _is_list(kind):
        return isinstance(value, list | tuple)
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        return isinstance(value, str | Scientific)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MOST:  # nor is NaN below
        return False
    return kind is float or float(value).is_integer()


def _as(option: str, kind: Any, value: Any) -> Any:
    if kind is Any or _is_mapping(kind):
        return plain(option, value)
    if _is_list(kind):
        element = get_args(kind)[0]
        return tuple(typed(f"{option}.{index}", element, each) for index, each in enumerate(value))
    if kind is str:
        return value.text if isinstance(value, Scientific) else value
    if kind is int:
        return int(value)
    return float(value) if isinstance(value, float) else value


def described(kind: Any) -> str:
    if _is_mapping(kind):
        return "a mapping"
    if _is_list(kind):
        return f"a list, each {described(get_args(kind)[0])}"
    return _EXPECTED[kind]
