"""collect -> train -> generate -> evaluate: each stage alone, or all stages of a recipe."""

from pdiff_hub.runs.auditing import audit, own_checkpoints
from pdiff_hub.runs.collecting import collect
from pdiff_hub.runs.generating import generated_rows, write_networks, write_params
from pdiff_hub.runs.judging import evaluate
from pdiff_hub.runs.recipe_numbers import judging_numbers
from pdiff_hub.runs.stages import run, train

__all__ = [
    "audit",
    "collect",
    "evaluate",
    "generated_rows",
    "judging_numbers",
    "own_checkpoints",
    "run",
    "train",
    "write_networks",
    "write_params",
]
