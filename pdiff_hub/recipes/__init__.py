"""recipe.yaml <-> `Recipe`, and the recipes that have no file: the cells of the paper's tables."""

from pdiff_hub.recipes.recipe import (
    EvaluateConfig,
    GenerateConfig,
    Recipe,
    find_recipe,
    load_recipe,
    recipe_from_dict,
    recipe_of,
)
from pdiff_hub.recipes.trust import functions_of, is_trusted_to_judge, remember_made, require_trust

__all__ = [
    "EvaluateConfig",
    "GenerateConfig",
    "Recipe",
    "find_recipe",
    "functions_of",
    "is_trusted_to_judge",
    "load_recipe",
    "recipe_from_dict",
    "recipe_of",
    "remember_made",
    "require_trust",
]
