"""Which functions a recipe would call, and whether it may.

A recipe can name any importable function, with any arguments. Whoever calls `pdiff run` on a downloaded folder does not
expect that, so a name out of a file needs the user's word; one that was given in Python is the user's own. A run that
had it is remembered (`records.made_here`), and what it left in its folder needs no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.family import FamilyConfig
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks.factory import functions_in
from pdiff_hub.recipes.recipe import Recipe
from pdiff_hub.records.made_here import calls_of, is_trusted, made_here, remember

_FAMILY = "family"


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


def remember_made(directory: Path, recipe: Recipe, spec: Mapping[str, Any]) -> None:
    """Notes in `directory` that the user let the functions of `recipe` be called for what is there.

    spec: the complete one of the recipe's network.
    """
    family = asdict(recipe.collect) if isinstance(recipe.collect, FamilyConfig) else {}
    remember(directory, calls_of(spec, family))


def is_trusted_to_judge(
    dataset: CheckpointDataset, spec: Mapping[str, Any] | None, folder: Path | None, trust_remote_code: bool
) -> bool:
    """Whether all functions may be called that judging a pipeline beside a data set calls; see `is_trusted`.

    spec, folder: of the pipeline's network; None if it names none.
    """
    if trust_remote_code:
        return True
    settings = dataset.collect.get("settings") if dataset.collect.get("method") == _FAMILY else None
    family = settings.get("collect") if isinstance(settings, Mapping) else None
    calls = calls_of(dataset.network, family if isinstance(family, Mapping) else {})
    own = all(made_here(dataset.folder, what, call) for what, call in calls.items())
    return own and is_trusted(spec or {}, folder, trust_remote_code)
