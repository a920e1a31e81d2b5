"""Checking JSON that somebody else may have written against the types of a dataclass or a dict."""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from pdiff_hub.errors import PdiffError, shortened

T = TypeVar("T")


def checked(kind: type[T], data: object, what: str, remedy: str) -> T:
    """`data` as `kind`, a dataclass, dict or list type, checked against its annotations; unknown keys are dropped.

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
        raise PdiffError(f"{what}: {shortened(key)} is wrong ({first['msg']}{found}); {remedy}") from error


def require_version(found: object, newest: int, what: str) -> None:
    """PdiffError unless a format version is one that this package reads. what: whose it is, for the error."""
    if type(found) is not int or not 1 <= found <= newest:
        raise PdiffError(
            f"{what} has format version {found!r}, and this pdiff-hub reads up to {newest}; upgrade with: pip install "
            ". in a newer copy of its source."
        )


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))
