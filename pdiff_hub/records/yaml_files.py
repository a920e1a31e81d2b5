"""Reading YAML that somebody else may have written: small files of plain values, whose aliases cannot explode."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pdiff_hub.errors import PdiffError, one_line
from pdiff_hub.safe_files import open_regular

_MOST_BYTES = 1 << 20
_MOST_VALUES, _MOST_LEVELS = 100_000, 50
# The C parser is ten times faster; not every build of PyYAML has it.
_Parser: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# A number for YAML 1.2 and for everybody; YAML 1.1, which PyYAML reads, wants 1.0e-3.
_SCIENTIFIC = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+")


class Scientific(float):
    """A number that was written with an exponent and without quotes. It may have been meant as a text: `text`."""

    text: str


class _Loader(_Parser):  # type: ignore[misc, valid-type]
    pass


def _scientific(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Scientific:
    number = Scientific(node.value.replace("_", ""))
    number.text = node.value
    return number


def _as_written(dumper: yaml.SafeDumper, number: Scientific) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", number.text)


yaml.SafeDumper.add_representer(Scientific, _as_written)
_Loader.add_implicit_resolver("!scientific", _SCIENTIFIC, list("-+.0123456789"))
_Loader.add_constructor("!scientific", _scientific)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; PdiffError if the file holds none, or is no regular file of a recipe's size."""
    with open_regular(file) as opened:
        content = opened.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise PdiffError(f"{file} is too large, expected YAML of at most {_MOST_BYTES:,} bytes.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PdiffError(f"{file} is no valid YAML: {error}") from error
    value = parse_yaml(text, str(file))
    if not isinstance(value, dict):
        raise PdiffError(f"{file} holds {type(value).__name__}, expected a mapping.")
    return value


def parse_yaml(text: str, what: str) -> Any:
    """The value that `text` says; PdiffError, which begins with `what`, if it is no YAML or too large."""
    try:
        _require_small(text, what)
        return yaml.load(text, Loader=_Loader)
    except PdiffError:
        raise
    # A tag that does not fit its value (`!!bool maybe`) raises whatever the conversion raises.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise PdiffError(f"{what} is no valid YAML: {one_line(error)}") from error


def _require_small(text: str, what: str) -> None:
    """Counts the values with every alias written out, from the parser's events: nothing is built."""
    count, sizes = 0, dict[str, int]()
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_Parser):
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            if any(anchor == event.anchor for anchor, _ in opened):
                raise PdiffError(f"{what} is no valid YAML: *{event.anchor} stands inside of what it names.")
            count += sizes.get(event.anchor, 0)
        if count > _MOST_VALUES or len(opened) > _MOST_LEVELS:
            raise PdiffError(
                f"{what} is no valid YAML for this: it holds more than {_MOST_VALUES:,} values (with those that its "
                f"aliases repeat) or more than {_MOST_LEVELS} levels of brackets."
            )
