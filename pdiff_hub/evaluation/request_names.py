"""The ways to get a network for a task that nobody trained: their names in tables and pictures, and what each needs."""

from __future__ import annotations

from collections.abc import Mapping

CEILING = "trained"
SIMPLE_WAYS = ("nearest", "average", "interpolation", "ridge", "ridge_pairs")
"""By condition, without training and images."""
UNSEEN_NAMES: Mapping[str, str] = {
    "trained": "trained on the task (ceiling)",
    "generated": "generated, one network",
    "ensemble": "generated, five averaged to one",
    "gaussian": "the same without its U-Net",
    "nearest": "network of the nearest seen task",
    "average": "average of the nearest seen tasks",
    "interpolation": "interpolation of the two beside it",
    "ridge": "ridge regression",
    "ridge_pairs": "ridge regression with pairs",
    "shuffled": "generated, for another task",
    "unconditional": "generated, asked for nothing",
    "warm_start": "generated, and 25 steps",
}
STARTS: Mapping[str, str] = {
    "scratch": "from scratch",
    "mean": "from the mean network",
    "average": "from the average of the nearest",
    "generated": "from a generated network",
    "ensemble": "from five generated, averaged",
}
STEPS = (25, 100, 400)
DATA_FREE = (
    "scratch",
    "mean_tuned",
    "likeliest",
    "likeliest_tuned",
    "likelihood_average",
    "probe",
    "inputs",
    "random_subspace",
)
"""From examples: they know the checkpoints and the examples, and cost one network at use."""
NEED_MORE = ("multi_task_trunk", "stacking")
FIT_NAMES: Mapping[str, str] = {
    "fit": "fit, one network",
    "scratch": "from scratch",
    "mean_tuned": "mean network, fine-tuned",
    "likeliest": "likeliest seen network",
    "likeliest_tuned": "likeliest seen network, fine-tuned",
    "likelihood_average": "averaged by likelihood",
    "probe": "mean network, new last layer",
    "inputs": "logistic regression on inputs",
    "random_subspace": "fit in random directions",
    "multi_task_trunk": "multi-task trunk (needs all tasks' data)",
    "stacking": "stacking (all networks at use)",
}
