"""Errors that tell people in one sentence what was expected, what was found, and what to do.

The command shows these errors, and `OSError`s, as one line. Any other exception is a bug and shows its trace. The files
that travel to the Hub import nothing from the package, so they define their own: `ParamError`, `SamplingError` and
`ConditionError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from io import TextIOWrapper
from typing import TextIO

_MOST_TO_LIST = 30


class PdiffError(ValueError):
    """An option, a file or a name is wrong; the message says what to do."""


class MissingPackageError(PdiffError, ImportError):
    """An optional dependency is not installed; the message gives the command that installs it."""


def printable(text: object, keep: str = "") -> str:
    """`text` with escapes in place of what a terminal obeys or cannot show, such as control characters.

    keep: characters that stay, such as line breaks.
    """
    escaped = (c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in str(text))
    return "".join(escaped)


def escape_what_has_no_code(*streams: TextIO) -> None:
    """Lets streams show as escapes what their encoding has no code for, such as half of a surrogate in a name."""
    for stream in streams:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def unknown_name(kind: str, name: object, known: Iterable[str]) -> PdiffError:
    """The error to raise for a `name` that is not among `known`; `kind` is what it should name ("network")."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    if not by_lower_case:
        return PdiffError(f"unknown {kind} {name!r}: there is none to choose from")
    (nearest,) = get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.0)
    # A list of all names helps only if it is short; a module may have hundreds.
    choices = f" (known: {', '.join(by_lower_case.values())})" if len(by_lower_case) <= _MOST_TO_LIST else ""
    return PdiffError(f"unknown {kind}: {name!r}; the nearest known one is {by_lower_case[nearest]!r}{choices}")


def require_known(kind: str, names: Iterable[object], known: Iterable[str]) -> None:
    """Raises `unknown_name` for the first of `names` that is not among `known`."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)


def require(condition: bool, option: str, found: object, expected: str) -> None:
    """Raises PdiffError, naming the option and what was expected and found, unless `condition` holds."""
    if not condition:
        raise PdiffError(f"{option} is {found!r}, expected {expected}.")
