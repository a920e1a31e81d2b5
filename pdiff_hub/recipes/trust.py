"""Which functions a recipe would call, and whether it may.

A recipe can name any importable function, with any arguments. Whoever calls `pdiff run` on a downloaded folder does not
expect that, so a name out of a file needs the user's word; one that was given in Python is the user's own.
"""

from __future__ import annotations

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks.factory import functions_in
from pdiff_hub.recipes.recipe import Recipe


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
