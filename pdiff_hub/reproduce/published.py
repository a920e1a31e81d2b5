"""Published numbers, to compare with measured ones, from the paper and from its authors' logs.

The paper's first version is arXiv 2402.13144. Values marked `(fig)` were read off a figure and are approximate. The
logs come from the authors' newest public code, one row per run. Accuracies are fractions there and percent here.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

Row = Mapping[str, float]
"""Keys as in `logged`: accuracies on test in percent, and IoU of wrong predictions."""

# Table 2, CIFAR-100 with ResNet-18 (fig): best, mean, median.
TABLE_2A: Mapping[int, tuple[float, float, float]] = {
    1: (76.6, 70.7, 73.2),
    10: (76.5, 71.2, 73.8),
    50: (76.7, 71.3, 74.3),
    200: (76.9, 72.4, 75.6),
    500: (76.8, 72.3, 75.4),
}
TABLE_2B: Mapping[str, tuple[float, float, float]] = {
    "10-14": (76.8, 71.9, 75.3),
    "14-16": (76.9, 72.2, 75.5),
    "16-18": (76.9, 72.4, 75.6),
}
TABLE_2C: Mapping[str, tuple[float, float, float]] = {
    "none": (76.7, 65.8, 65.0),
    "parameters": (76.7, 66.7, 67.3),
    "latents": (76.7, 72.1, 75.3),
    "both": (76.9, 72.4, 75.6),
}
# Names in the authors' logs that differ from this package's in more than underscores.
_LOG_NAMES = {"flowers102": "flowers", "imagenet-1k": "in1k", "convnet3": "convnet", "mlp3": "mlp"}


def logged(dataset: str, network: str, *, whole: bool) -> Row | None:
    """The run that the authors logged for a cell, or None if they logged none.

    whole: the cell is of table 3, so whole networks are generated.
    Keys: best, mean, median (accuracy of generated networks on test, percent), original_best, original_mean,
    original_median (the same of originals); original_original, generated_generated, original_generated,
    original_generated_max (IoU of wrong predictions).
    """
    dataset, network = (_LOG_NAMES.get(name, name.replace("_", "")) for name in (dataset, network))
    return _logs().get(f"{'full' if whole else 'main'}/{dataset}_{network}")


@cache
def _logs() -> dict[str, dict[str, float]]:
    text = files("pdiff_hub.reproduce").joinpath("published/pdiff_official_logs.csv").read_text(encoding="utf-8")
    logs = {}
    for row in csv.DictReader(text.splitlines()):
        values = {}
        for prefix, name in (("", "generated"), ("original_", "original")):
            for key, column in (("best", "max"), ("mean", "mean"), ("median", "median")):
                values[f"{prefix}{key}"] = 100 * float(row[f"{name}_acc_{column}"])
        for key, column in (
            ("original_original", "origin-origin"),
            ("generated_generated", "generated-generated"),
            ("original_generated", "origin-generated"),
            ("original_generated_max", "origin-generated(max)"),
        ):
            values[key] = float(row[column])
        logs[row["run"]] = values
    return logs
