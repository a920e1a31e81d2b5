"""How many networks a pipeline is judged by, and from which seed: as in its own run, unless somebody says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pdiff_hub.errors import PdiffError, require
from pdiff_hub.recipes import EvaluateConfig, GenerateConfig, recipe_from_dict, recipe_of
from pdiff_hub.records import RunFolder

_MOST_UNASKED = 10_000  # networks that a recipe, which may be a stranger's, can ask for


@dataclass(frozen=True)
class JudgingNumbers:
    """num_models are generated from `seed`, and judged as `config` says."""

    num_models: int
    seed: int
    config: EvaluateConfig


def judging_numbers(
    folder: RunFolder,
    num_params: int,
    *,
    num_models: int | None = None,
    seed: int | None = None,
    baselines: int | None = None,
) -> JudgingNumbers:
    """The numbers of the recipe in `folder`, which gives them in its results or beside them, or else the defaults.

    Of networks of many numbers (num_params each) there are fewer, as the recipe's `most_numbers` says. What is given
    goes before both. PdiffError for a recipe that asks for more than 10,000 networks.
    """
    found = recipe_of(folder)
    recipe = None if found is None else recipe_from_dict(found)
    config = EvaluateConfig() if recipe is None else recipe.evaluate
    if num_models is None:
        num_models = (GenerateConfig() if recipe is None else recipe.generate).num_models
        if num_models > _MOST_UNASKED:
            raise PdiffError(
                f"the recipe in {folder.path} asks for {num_models:,} networks to judge; say how many you want "
                "(--num-models, in Python num_models)."
            )
        num_models = config.num_generated(num_models, num_params)
    require(type(num_models) is int and num_models >= 1, "num_models", num_models, "an integer of at least 1")
    if baselines is not None:
        config = replace(config, baselines=baselines, most_numbers=None)
    if seed is None:
        seed = 0 if recipe is None else recipe.seed
    return JudgingNumbers(num_models, seed, config)
