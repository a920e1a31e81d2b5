"""What can be said of generated networks without the checkpoints that their generator was trained on."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from torch import Tensor

from pdiff_hub.checkpoints.rows import Rows, as_rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.ensembles import ensemble_curve
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.evaluation.similarity import mean_pairwise

METRICS: dict[str, bool] = {
    "accuracy": False,
    "ensembles": False,
    "generated_similarity": False,
    "similarity": True,
    "nearest_l2": True,
    "spread_ratio": True,
    "max_iou": True,
    "frontier": True,
}
"""Whether a measure needs the original checkpoints."""


def require_no_originals(metrics: Collection[str], why: str) -> None:
    """ValueError for a metric (known ones only) that needs original checkpoints, which `why` says are missing."""
    alone = [name for name, needs in METRICS.items() if not needs]
    needing = [name for name in metrics or METRICS if METRICS[name]]
    if needing:
        raise PdiffError(
            f"{why}, and {', '.join(needing)} cannot be measured without it; give it with --dataset, or "
            f"ask for what needs none: {' '.join(f'--metric {name}' for name in alone)}."
        )


def evaluate_alone(judge: Judge, generated_BP: Tensor | Rows, metrics: Collection[str]) -> dict[str, Any]:
    """The parts of `evaluate_networks`' answer that are asked for and need no originals; the others are empty."""
    judged, num_generated = judge(generated_BP), as_rows(generated_BP).num_rows
    similarity = mean_pairwise(judged.test.wrong_BN) if num_generated > 1 else math.nan
    results: dict[str, Any] = {
        "num_params": judge.layout.num_params,
        "num_checkpoints": None,
        "num_generated": num_generated,
        "accuracy": {},
        "similarity": {},
        "audit": {},
        "methods": {},
        "frontier": None,
        "ensembles": None,
        "notes": ["The checkpoints were not there: nothing is said of copying."],
    }
    if "accuracy" in metrics:
        results["accuracy"] = {"generated": judged.summary()}
    if "generated_similarity" in metrics:
        results["similarity"] = {"generated_generated": None if math.isnan(similarity) else similarity}
        known = "undefined (no errors, or one network)" if math.isnan(similarity) else f"{similarity:.3f}"
        results["notes"].append(f"IoU of errors among the generated networks: {known}.")
    if "ensembles" in metrics:
        curve = ensemble_curve(
            judge.network, judge.layout, judge.frozen, generated_BP, judge.test_images(), judge.task.test.labels_N
        )
        results["ensembles"] = {"generated": asdict(curve)}
    return results
