"""Checking what somebody else may have written, in JSON, against a dataclass."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from pdiff_hub.errors import PdiffError

T = TypeVar("T")


def checked(kind: type[T], data: Mapping[str, Any], what: str, remedy: str) -> T:
    """`data` as `kind`, a dataclass or dict type. Values are checked against annotations; unknown keys are dropped.

    Args:
        what: names the data in the error: a file, or "results". remedy: says in the error what to do.

    Raises:
        PdiffError: names the key that is missing or of another type.
    """
    try:
        # As JSON: there, pydantic's strict mode takes a list for a tuple, a whole number for a float, and nothing else.
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
    """`value` with None for every NaN and Inf, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
