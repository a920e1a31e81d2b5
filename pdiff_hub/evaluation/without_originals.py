"""What can be measured of generated networks without the checkpoints that their generator was trained on."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from pdiff_hub.checkpoints.rows import Rows, as_rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.ensembles import Ensembles
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.evaluation.similarity import mean_pairwise
from pdiff_hub.records import Measurements, SimilaritySummary
from pdiff_hub.records.results import defined

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
"""By measure, whether it needs the original checkpoints."""


def require_no_originals(metrics: Collection[str], why: str) -> None:
    """Raise ValueError if one of `metrics` needs the original checkpoints.

    metrics: keys of `METRICS`; none means all. why: says what is missing, as the start of the message.
    """
    alone = [name for name, needs in METRICS.items() if not needs]
    needing = [name for name in metrics or METRICS if METRICS[name]]
    if needing:
        raise PdiffError(
            f"{why}, and {', '.join(needing)} cannot be measured without it; give it with --dataset, or "
            f"ask for what needs none: {' '.join(f'--metric {name}' for name in alone)}."
        )


def evaluate_without_originals(judge: Judge, generated_BP: Tensor | Rows, metrics: Collection[str]) -> Measurements:
    """Measure those of `metrics` that need no originals; the other parts of the result are left empty."""
    num_generated = as_rows(generated_BP).num_rows
    ensembles = Ensembles(range(num_generated)) if "ensembles" in metrics else None
    judged, similarity = judge(generated_BP, ensembles), None
    notes = ["The checkpoints were not there: nothing is said of copying."]
    if "generated_similarity" in metrics:
        among = defined(mean_pairwise(judged.test.wrong_BN)) if num_generated > 1 else None
        similarity = SimilaritySummary(generated_generated=among)
        known = "undefined (no errors, or one network)" if among is None else f"{among:.3f}"
        notes.append(f"IoU of errors among the generated networks: {known}.")
    return Measurements(
        num_checkpoints=None,
        num_generated=num_generated,
        accuracy={"generated": judged.summary()} if "accuracy" in metrics else {},
        similarity=similarity,
        ensembles=None if ensembles is None else {"generated": ensembles.curve()},
        notes=notes,
    )
