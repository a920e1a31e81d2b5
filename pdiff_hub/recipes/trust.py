"""Which functions a recipe would call, and whether it may.

A recipe can name any importable function, with any arguments. Whoever calls `pdiff run` on a downloaded folder does not
expect that, so a name out of a file needs the user's word; one that was given in Python is the user's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks.factory import is_dotted
from pdiff_hub.recipes.recipe import Recipe


def functions_in(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The dotted paths that collecting for a recipe (`Recipe.to_dict`) imports and calls, by what they make."""
    network, collect = recipe.get("network"), recipe.get("collect")
    named = {"network": network.get("name") if isinstance(network, Mapping) else network}
    if isinstance(collect, Mapping) and collect.get("method") == "family":
        named["family"] = collect.get("family")
    return {what: name for what, name in named.items() if isinstance(name, str) and is_dotted(name)}


def functions_of(recipe: Recipe) -> dict[str, str]:
    """`functions_in` of a recipe that has been read."""
    return functions_in(recipe.to_dict())


def require_trust(recipe: Recipe, trust_remote_code: bool) -> None:
    """ValueError if the recipe's file names a function and the user did not say that it may be called."""
    if recipe.file is None or trust_remote_code:
        return
    for what, name in functions_of(recipe).items():
        raise PdiffError(
            f"{recipe.file} names {name!r} for its {what}, a function that would be imported and called: read it, and "
            "if you trust it, give --trust-remote-code (in Python trust_remote_code=True)."
        )
