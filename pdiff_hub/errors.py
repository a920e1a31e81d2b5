"""Errors that tell people in one sentence what was expected, what was found, and what to do.

The command shows these errors, and `OSError`s, as one line. Any other exception is a bug and shows its trace. The files
that travel to the Hub import nothing from the package, so they define their own: `ParamError`, `SamplingError` and
`ConditionError`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from io import TextIOWrapper
from typing import TextIO

_MOST_TO_LIST = 30
_MOST_LETTERS = 200  # of a name
_MOST_SHOWN = 300


class PdiffError(ValueError):
    """An option, a file or a name is wrong; the message says what to do."""


class MissingPackageError(PdiffError, ImportError):
    """An optional dependency is not installed; the message gives the command that installs it."""


def one_line(error: Exception, most: int = 300) -> str:
    """What an error of a library says, on one line and no longer than people read."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]}..."


def escape_what_has_no_code(*streams: TextIO) -> None:
    """Lets streams show as escapes what their encoding has no code for, such as half of a surrogate in a name."""
    for stream in streams:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def unknown_name(kind: str, name: object, known: Iterable[str]) -> PdiffError:
    """The error to raise for a `name` that is not among `known`; `kind` is what it should name ("network")."""
    if len(str(name)) > _MOST_LETTERS:  # comparing it, and printing it, would take long
        name = f"{str(name)[:_MOST_LETTERS]}..."
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
        raise PdiffError(f"{option} is {shortened(found)}, expected {expected}.")


def shortened(found: object) -> str:
    """`repr` of what was found, cut where nobody reads on."""
    return shown if len(shown := repr(found)) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}..."


def printable(text: str) -> str:
    """`text` on one line, with its control characters, and others that no one sees, as escapes such as `\\x1b`.

    So names out of somebody else's file cannot move the cursor, colour the terminal or turn the direction of a line.
    """
    if text.isprintable():
        return text
    return "".join(
        each
        if each.isprintable() or unicodedata.category(each) == "Zs"
        else " "
        if each == "\n"
        else each.encode("unicode_escape", "backslashreplace").decode("ascii")
        for each in text
    )


def printable_lines(text: str) -> str:
    """`printable`, line by line."""
    return "\n".join(map(printable, text.split("\n")))
