"""One sentence for every unknown name: what was looked for, what was found, and the nearest name that is known.

Standard library only, imports nothing of the package: networks, tasks, recipes and the command all raise these errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_MOST_TO_LIST = 30


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error to raise for a `name` that is not among `known`; `kind` says what it should have named ("network")."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    if not by_lower_case:
        return ValueError(f"unknown {kind} {name!r}: there is none to choose from")
    (nearest,) = get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.0)
    # A list of everything helps where it can be read; a module of hundreds of names is better left out.
    choices = f" (known: {', '.join(by_lower_case.values())})" if len(by_lower_case) <= _MOST_TO_LIST else ""
    return ValueError(f"unknown {kind}: {name!r}; the nearest known one is {by_lower_case[nearest]!r}{choices}")


def require_known(kind: str, names: Iterable[object], known: Iterable[str]) -> None:
    """Raises `unknown_name` for the first of `names` that is not among `known`."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
