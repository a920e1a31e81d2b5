"""Makes `pdiff reproduce` short: the same parts and claims, with small networks, few checkpoints and few steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pdiff_hub import runs
from pdiff_hub.collect.finetune import FinetuneConfig
from pdiff_hub.recipes import Recipe
from pdiff_hub.reproduce import figures
from pdiff_hub.reproduce.settings import Settings


def tiny(recipe: Recipe) -> Recipe:
    """The same recipe with small numbers, and with an MLP in place of the large architectures."""
    collect = recipe.collect
    if isinstance(collect, FinetuneConfig):
        collect = replace(collect, epochs=1, save_every=1, num_checkpoints=min(collect.num_checkpoints, 20))
    else:
        collect = replace(collect, epochs=1)
    whole = recipe.select == "all"
    return replace(
        recipe,
        collect=collect,
        network=recipe.network if whole else "mlp3",
        select="all" if whole else "head",
        autoencoder=replace(recipe.autoencoder, form="linear", steps=0),
        diffusion=replace(recipe.diffusion, steps=5, widths=(16,), batch_size=8),
        generate=replace(recipe.generate, num_models=6, num_inference_steps=3),
        evaluate=replace(recipe.evaluate, baselines=min(recipe.evaluate.baselines, 4), fine_tune_steps=1),
    )


def shorten(
    patch: pytest.MonkeyPatch,
    numbers: tuple[int, ...],
    made: Callable[[Recipe], Recipe] = tiny,
    began: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Until `patch` is undone, `pdiff reproduce` is short.

    numbers: of checkpoints, in table 2a; the figures show the run with the last one. made: makes a recipe short. began:
    called with the folder of each run that begins.
    """
    run, collect = runs.run, runs.collect

    def short_run(recipe: Recipe, directory: Path, **options: Any) -> Any:
        began(directory)
        return run(made(recipe), directory, **options)

    patch.setattr(runs, "run", short_run)
    patch.setattr(runs, "collect", lambda recipe, directory, **options: collect(made(recipe), directory, **options))
    patch.setattr(Settings, "checkpoint_numbers", numbers)
    patch.setattr(Settings, "main_checkpoints", numbers[-1])
    patch.setattr(figures, "_THRESHOLD", 1.0)  # short runs give bad networks


def shorten_most(patch: pytest.MonkeyPatch) -> None:
    """As `shorten`, with one number of checkpoints, one depth, and runs of MLPs that have no baselines."""

    def made(recipe: Recipe) -> Recipe:
        network = {"name": "mlp3", "hidden": [4, 4]}
        collect = replace(recipe.collect, num_checkpoints=6)
        generate = replace(recipe.generate, num_models=3)
        evaluate = replace(recipe.evaluate, baselines=0)
        return replace(tiny(recipe), network=network, collect=collect, generate=generate, evaluate=evaluate)

    depths = dict(list(Settings().depths().items())[:1])
    shorten(patch, (4,), made)
    patch.setattr(Settings, "depths", lambda self: depths)
