"""Judge generated networks beside the originals and simple baselines: how good, how new, and what was only copied.

Shapes: K originals, B networks of a method, P parameters, N test images.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import PickedRows, Rows, as_rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.baselines import Variant, ensemble, evenly_spaced
from pdiff_hub.evaluation.distances import nearest_l2, spread_ratio
from pdiff_hub.evaluation.ensembles import EnsembleCurve, ensemble_curve
from pdiff_hub.evaluation.figures import (
    METHOD_STYLE,
    MethodPoints,
    accuracy_similarity_figure,
    ensembles_figure,
    frontier_figure,
    similarity_figure,
)
from pdiff_hub.evaluation.frontier import NoveltyPoints, frontier_report
from pdiff_hub.evaluation.judging import Judge, Judged
from pdiff_hub.evaluation.similarity import iou_matrix, max_to_any, similarity_summary
from pdiff_hub.safe_files import write_json
from pdiff_hub.tasks import Task

FIGURES = ("accuracy-similarity", "frontier", "similarity", "ensembles")
"""Stems of the pictures, in the order in which they are shown; those of the audit are missing where it is."""
_LEAST_ORIGINALS = 3
_MOST_PAIRED = 500  # networks of a set whose pairs are drawn in the picture of similarities
_LARGEST_ENSEMBLE = 20


def evaluate_networks(
    network: nn.Module,
    task: Task,
    originals: CheckpointDataset,
    generated_BP: Tensor | Rows,
    *,
    deviation_r2: float | None,
    num_originals: int | None = None,
    variants: Sequence[Variant] = (),
    num_models: int = 100,
    seed: int = 0,
    directory: Path | None = None,
) -> dict[str, Any]:
    """The parts of `results.json` that are measured here.

    Every choice (the best network) is made on the validation split; every figure reported is of the test split.
    Accuracies are fractions. IoU is undefined where two networks make no error at all: such means are None, and
    "notes" says so.

    Args:
        network: any instance of the architecture; its weights are not looked at.
        generated_BP: float32 [B,P], raw weight units; as `Rows` they, and the originals, are read when needed, so that
            memory does not grow with their number.
        deviation_r2: as training measured it on held-out checkpoints.
        num_originals: judge only so many originals, evenly spaced.
        variants: baselines to stand beside (`baselines.baseline_variants`); with any, the frontier of accuracy and
            novelty and the ensembles are measured too.
        num_models: how many networks a baseline makes.
        seed: of the baselines and of the bootstrap.
        directory: where to write pictures (PNG and SVG) and `networks.json`, the numbers of every single network.

    Returns:
        "num_params", "num_checkpoints", "num_generated"; "accuracy": {variant: best, mean, median, std}; "similarity";
        "audit"; "methods": {variant: method, count, max_iou, nearest_l2}; "frontier" as `frontier_report` gives it and
        "ensembles": {method: EnsembleCurve}, both None without variants; "notes": sentences.

    Raises:
        ValueError: generated networks of another layout, fewer than 3 originals, parameters that are not finite.
    """
    require_originals(originals)
    judge = Judge(network, task, originals.layout, originals.frozen)
    generated = as_rows(generated_BP)
    if generated.num_params != originals.layout.num_params:
        raise PdiffError(
            f"generated parameters have shape {[generated.num_rows, generated.num_params]}, expected [*, "
            f"{originals.layout.num_params}]: originals and generated networks have different layouts."
        )
    chosen = evenly_spaced(len(originals), num_originals or len(originals))
    kept = originals.select_rows(chosen) if len(chosen) < len(originals) else originals
    mean_1P = ensemble(originals, 1, torch.Generator())
    judged = {"original": judge(kept.rows), "generated": judge(generated), "ensemble": judge(mean_1P)}
    wrong_KN = judged["original"].test.wrong_BN
    nearest = {
        "original": nearest_l2(originals.rows, originals.rows, leave_one_out=True)[chosen],
        "generated": nearest_l2(generated, originals.rows, leave_one_out=False),
        "ensemble": nearest_l2(mean_1P, originals.rows, leave_one_out=False),
    }
    similar = {name: _max_iou(name, each, wrong_KN) for name, each in judged.items()}
    methods = {name: name for name in judged}
    for variant in variants:
        if variant.name in judged:
            continue
        generator = torch.Generator().manual_seed(_stream(seed, variant.name))
        params_BP = variant.make(originals, num_models, generator)
        judged[variant.name] = judge(params_BP)
        nearest[variant.name] = nearest_l2(params_BP, originals.rows, leave_one_out=False)
        similar[variant.name] = _max_iou(variant.name, judged[variant.name], wrong_KN)
        methods[variant.name] = variant.method
    points = _by_method(methods, judged, similar)
    curves = _ensembles(judge, kept.rows, generated) if variants else None
    results = {
        "num_params": originals.layout.num_params,
        "num_checkpoints": len(originals),
        "num_generated": generated.num_rows,
        "accuracy": {name: each.summary() for name, each in judged.items()},
        "similarity": similarity_summary(wrong_KN, judged["generated"].test.wrong_BN),
        "audit": {
            "nearest_l2_generated": float(nearest["generated"].mean()),
            "nearest_l2_original": float(nearest["original"].mean()),
            "deviation_r2": deviation_r2,
            "spread_ratio": spread_ratio(generated, originals.rows) if generated.num_rows > 1 else None,
            "max_iou_ensemble": float(similar["ensemble"][0]),
            "max_iou_original": _mean(similar["original"]),
        },
        "methods": {
            name: {
                "method": methods[name],
                "count": len(nearest[name]),
                "max_iou": _mean(similar[name]),
                "nearest_l2": float(nearest[name].mean()),
            }
            for name in judged
        },
        "frontier": _frontier(points, task, seed) if variants else None,
        "ensembles": None if curves is None else {name: asdict(curve) for name, curve in curves.items()},
        "notes": _notes(judged),
    }
    if directory is not None:
        _write_networks(directory, judged, similar, nearest)
        _draw(directory, points, judged, curves)
    cleaned: dict[str, Any] = without_nan(results)
    return cleaned


def require_originals(originals: CheckpointDataset) -> None:
    """ValueError for too few checkpoints to judge by: a spread and a nearest neighbour need some."""
    if len(originals) < _LEAST_ORIGINALS:
        raise PdiffError(
            f"the data set has {len(originals)} checkpoints, expected at least {_LEAST_ORIGINALS} to "
            "judge generated networks by; collect more."
        )


def _stream(seed: int, use: str) -> int:
    """A generator's seed for each use: what a baseline makes does not depend on which others there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{use}".encode()).digest()[:7])


def _max_iou(name: str, judged: Judged, wrong_KN: Tensor) -> Tensor:
    return max_to_any(judged.test.wrong_BN, wrong_KN, exclude_self=name == "original")


def _by_method(
    methods: Mapping[str, str], judged: Mapping[str, Judged], similar: Mapping[str, Tensor]
) -> dict[str, MethodPoints]:
    """Every network of all variants of a method."""
    points = {}
    for method in dict.fromkeys(methods.values()):
        names = [name for name, each in methods.items() if each == method]
        points[method] = MethodPoints(
            torch.cat([judged[name].test.accuracy_B for name in names]), torch.cat([similar[name] for name in names])
        )
    return points


def _frontier(points: Mapping[str, MethodPoints], task: Task, seed: int) -> dict[str, Any]:
    novelty = {name: NoveltyPoints(each.accuracy_B, 1 - each.similarity_B) for name, each in points.items()}
    generator = torch.Generator().manual_seed(_stream(seed, "frontier"))
    labels = {name: style.label for name, style in METHOD_STYLE.items()}
    return frontier_report(novelty, generator, floor=1 / task.num_classes, labels=labels)


def _ensembles(judge: Judge, originals: Rows, generated: Rows) -> dict[str, EnsembleCurve]:
    images, labels_N = judge.test_images(), judge.task.test.labels_N
    picked = {
        "original": PickedRows(originals, evenly_spaced(originals.num_rows, _LARGEST_ENSEMBLE)),
        "generated": PickedRows(generated, range(min(generated.num_rows, _LARGEST_ENSEMBLE))),
    }
    return {
        name: ensemble_curve(judge.network, judge.layout, judge.frozen, rows, images, labels_N)
        for name, rows in picked.items()
    }


def _notes(judged: Mapping[str, Judged]) -> list[str]:
    faultless = {name: int((~each.test.wrong_BN.any(dim=1)).sum()) for name, each in judged.items()}
    return [
        f"{count} of {len(judged[name].test.wrong_BN)} {name} networks make no error on the test split: similarity "
        "by errors is undefined between two such networks, and left out."
        for name, count in faultless.items()
        if count
    ]


def _draw(
    directory: Path,
    points: Mapping[str, MethodPoints],
    judged: Mapping[str, Judged],
    curves: Mapping[str, EnsembleCurve] | None,
) -> None:
    shown = {
        name: points[name]
        for name in ("original", "generated", "ensemble", "fine_tuned", "noise_standardised")
        if name in points
    }  # p-diff's figure 4b; the frontier has them all
    accuracy_similarity_figure(shown, directory / FIGURES[0])
    if curves is None:
        return
    frontier_figure(points, directory / FIGURES[1])
    pairs = similarity_pairs(judged["original"].test.wrong_BN, judged["generated"].test.wrong_BN)
    if any(bool(values.isfinite().any()) for values in pairs.values()):
        similarity_figure(pairs, directory / FIGURES[2])
    ensembles_figure(curves, directory / FIGURES[3])


def similarity_pairs(wrong_KN: Tensor, wrong_BN: Tensor) -> dict[str, Tensor]:
    """IoU of single pairs, [M] each, under the names of `similarity_summary`; of large sets evenly spaced networks."""
    original_KN = wrong_KN[evenly_spaced(len(wrong_KN), _MOST_PAIRED)]
    generated_BN = wrong_BN[evenly_spaced(len(wrong_BN), _MOST_PAIRED)]

    def among(wrong_AN: Tensor) -> Tensor:
        first, second = torch.triu_indices(len(wrong_AN), len(wrong_AN), offset=1)
        return iou_matrix(wrong_AN, wrong_AN)[first, second]

    pairs = {
        "original_original": among(original_KN),
        "generated_generated": among(generated_BN),
        "original_generated": iou_matrix(generated_BN, original_KN).flatten(),
        "original_generated_max": max_to_any(wrong_BN, wrong_KN, exclude_self=False),
    }
    return {name: values for name, values in pairs.items() if len(values)}


def _write_networks(
    directory: Path, judged: Mapping[str, Judged], similar: Mapping[str, Tensor], nearest: Mapping[str, Tensor]
) -> None:
    write_json(
        directory / "networks.json",
        without_nan(
            {
                name: {
                    "accuracy": each.test.accuracy_B.tolist(),
                    "validation_accuracy": each.validation_accuracy_B.tolist(),
                    "max_similarity": similar[name].tolist(),
                    "nearest_l2": nearest[name].tolist(),
                }
                for name, each in judged.items()
            }
        ),
    )


def _mean(values_B: Tensor) -> float:
    return float(values_B.double().nanmean()) if torch.isfinite(values_B).any() else math.nan


def without_nan(value: Any) -> Any:
    """JSON knows no NaN: what is undefined becomes None."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
