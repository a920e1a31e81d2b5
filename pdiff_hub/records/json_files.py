"""Reading a JSON or YAML file that somebody else may have written, and checking it against a dataclass."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from pdiff_hub.errors import PdiffError

T = TypeVar("T")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; PdiffError if there is none in it, FileNotFoundError if there is no file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} does not exist: its folder is not whole.") from None
    except (ValueError, RecursionError) as error:
        raise PdiffError(f"{file} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise PdiffError(f"{file} holds {type(content).__name__}, expected an object.")
    return content


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; PdiffError if there is none in it."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PdiffError(f"{file} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise PdiffError(f"{file} holds {type(content).__name__}, expected a mapping.")
    return content


def checked(kind: type[T], data: Mapping[str, Any], what: str, remedy: str) -> T:
    """`data` as the dataclass `kind`, every field of the type that it is annotated with; unknown keys are left out.

    Args:
        what: what the data are, for the error: a file, or "results". remedy: what to do about it.

    Raises:
        PdiffError: names the key that is missing or of another type.
    """
    try:
        # As JSON, where pydantic's strict mode takes a list for a tuple and a whole number for a float, and no more.
        valid: T = _adapter(cast(Hashable, kind)).validate_json(json.dumps(data), strict=True)
        return valid
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        found = "" if first["type"] == "missing" else f", found {str(first['input'])[:60]!r}"
        raise PdiffError(f"{what}: {key!r} is wrong ({first['msg']}{found}); {remedy}") from error


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def without_nan(value: Any) -> Any:
    """JSON knows no NaN: what is undefined becomes None."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
