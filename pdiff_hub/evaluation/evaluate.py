"""Judge generated networks beside the originals and their average: accuracy, similarity, and what was only copied.

Shapes: K originals, B generated networks, P parameters, N test images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.evaluation.audit import nearest_l2, spread_ratio, summarise_accuracy
from pdiff_hub.evaluation.figures import MethodPoints, accuracy_similarity_figure
from pdiff_hub.evaluation.predictions import Predictions, SplitImages, evaluate
from pdiff_hub.evaluation.similarity import max_to_any, similarity_summary
from pdiff_hub.tasks import Split, Task

FIGURE_STEM = "accuracy-similarity"


@dataclass(frozen=True)
class _Judged:
    validation_accuracy_B: Tensor
    test: Predictions

    def summary(self) -> dict[str, float]:
        return summarise_accuracy(self.validation_accuracy_B, self.test.accuracy_B)


def evaluate_networks(
    network: nn.Module,
    task: Task,
    originals: CheckpointDataset,
    generated_BP: Tensor,
    *,
    deviation_r2: float | None,
    num_originals: int | None = None,
    figure_dir: Path | None = None,
) -> dict[str, Any]:
    """The parts of `results.json` that are measured here: counts, accuracy, similarity, audit.

    Every choice (the best network) is made on the validation split; every figure reported is of the test split.
    Accuracies are fractions. IoU is undefined where two networks make no error at all: such means are None.

    Args:
        network: any instance of the architecture; its weights are not looked at.
        generated_BP: float32 [B,P], raw weight units.
        deviation_r2: as training measured it on held-out checkpoints.
        num_originals: judge only so many originals, evenly spaced.
        figure_dir: where to write accuracy against similarity as PNG and SVG.

    Raises:
        ValueError: generated networks of another layout, fewer than 2 originals, parameters that are not finite.
    """
    if generated_BP.ndim != 2 or generated_BP.shape[1] != originals.layout.num_params:
        raise ValueError(f"generated parameters have shape {list(generated_BP.shape)}, expected [*, "
                         f"{originals.layout.num_params}]: originals and generated networks have different layouts.")
    if len(originals) < 2:
        raise ValueError(f"the data set has {len(originals)} checkpoint, expected at least 2.")
    if num_originals is not None and num_originals < len(originals):
        step = len(originals) / num_originals
        judged_K = [int((i + 0.5) * step) for i in range(num_originals)]
    else:
        judged_K = list(range(len(originals)))
    params_KP = originals.params_KP
    average_1P = params_KP.mean(dim=0, keepdim=True)

    def judge(params_BP: Tensor) -> _Judged:
        def on(split: Split) -> Predictions:
            return evaluate(network, originals.layout, originals.frozen, params_BP, SplitImages(task, split),
                            split.labels_N)

        return _Judged(on(task.validation).accuracy_B, on(task.test))

    judged = {"original": judge(params_KP[judged_K]), "generated": judge(generated_BP), "ensemble": judge(average_1P)}
    wrong_KN = judged["original"].test.wrong_BN
    nearest_generated = nearest_l2(generated_BP, params_KP, leave_one_out=False)
    nearest_original = nearest_l2(params_KP, params_KP, leave_one_out=True)
    results = {
        "num_params": originals.layout.num_params,
        "num_checkpoints": len(originals),
        "num_generated": len(generated_BP),
        "accuracy": {name: each.summary() for name, each in judged.items()},
        "similarity": similarity_summary(wrong_KN, judged["generated"].test.wrong_BN),
        "audit": {
            "nearest_l2_generated": float(nearest_generated.mean()),
            "nearest_l2_original": float(nearest_original.mean()),
            "deviation_r2": deviation_r2,
            "spread_ratio": spread_ratio(generated_BP, params_KP) if len(generated_BP) > 1 else None,
            "max_iou_ensemble": float(max_to_any(judged["ensemble"].test.wrong_BN, wrong_KN, exclude_self=False)[0]),
            "max_iou_original": _mean(max_to_any(wrong_KN, wrong_KN, exclude_self=True)),
        },
    }
    if figure_dir is not None:
        points = {
            name: MethodPoints(each.test.accuracy_B,
                               max_to_any(each.test.wrong_BN, wrong_KN, exclude_self=name == "original"))
            for name, each in judged.items()
        }
        accuracy_similarity_figure(points, figure_dir / FIGURE_STEM)
    cleaned: dict[str, Any] = _without_nan(results)
    return cleaned


def _mean(values_B: Tensor) -> float:
    return float(values_B.double().nanmean()) if torch.isfinite(values_B).any() else math.nan


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: what is undefined becomes None."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
