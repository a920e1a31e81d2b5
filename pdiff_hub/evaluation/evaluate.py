"""Judges generated networks beside the originals and simple baselines: accuracy, novelty, and signs of copying.

Shapes: K originals, B networks of a method, P parameters, N test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import PickedRows, Rows, as_rows, evenly_spaced
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.baselines import Variant, ensemble
from pdiff_hub.evaluation.distances import nearest_l2, spread_ratio
from pdiff_hub.evaluation.ensembles import ensemble_curve
from pdiff_hub.evaluation.figures import (
    METHOD_STYLE,
    accuracy_similarity_figure,
    ensembles_figure,
    frontier_figure,
    similarity_figure,
)
from pdiff_hub.evaluation.frontier import measure_frontier
from pdiff_hub.evaluation.judging import Judge, Judged
from pdiff_hub.evaluation.points import MethodPoints
from pdiff_hub.evaluation.similarity import iou_matrix, max_to_any, similarity_summary
from pdiff_hub.records import (
    FIGURES,
    AuditSummary,
    EnsembleCurve,
    Frontier,
    Measurements,
    MethodSummary,
    RunFolder,
)
from pdiff_hub.records.json_files import without_nan
from pdiff_hub.safe_files import write_json
from pdiff_hub.seeds import generator_of
from pdiff_hub.tasks import Task

_LEAST_ORIGINALS = 3
_MOST_PAIRED = 500  # most networks per set whose pairs are drawn in the figure of similarities
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
    folder: RunFolder | None = None,
) -> Measurements:
    """Measure the part of `results.json` that compares generated networks with originals and baselines.

    The best network is chosen on the validation split; every reported number is measured on the test split.
    Accuracies are fractions. IoU is undefined for two networks that make no error at all: such pairs are left out, a
    mean with no pair left is None, and "notes" counts these networks.

    Args:
        network: any instance of the architecture; its weights are not used.
        generated_BP: float32 [B,P], raw weight units. `Rows` and the originals are read when needed, so that memory
            does not grow with their number.
        deviation_r2: as training measured it on held-out checkpoints.
        num_originals: judge only this many originals, evenly spaced; None means all.
        variants: the baselines to compare with (`baselines.baseline_variants`). If there are any, the frontier of
            accuracy and novelty and the ensembles are measured too.
        num_models: number of networks per baseline.
        seed: of the baselines and of the bootstrap.
        folder: where to write pictures (PNG and SVG) and the numbers of every single network; None writes nothing.

    Returns:
        What was measured; "frontier" and "ensembles" are None without variants.

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
        generator = generator_of(seed, variant.name)
        params_BP = variant.make(originals, num_models, generator)
        judged[variant.name] = judge(params_BP)
        nearest[variant.name] = nearest_l2(params_BP, originals.rows, leave_one_out=False)
        similar[variant.name] = _max_iou(variant.name, judged[variant.name], wrong_KN)
        methods[variant.name] = variant.method
    points = _by_method(methods, judged, similar)
    curves = _ensembles(judge, kept.rows, generated) if variants else None
    measured = Measurements(
        num_checkpoints=len(originals),
        num_generated=generated.num_rows,
        accuracy={name: each.summary() for name, each in judged.items()},
        similarity=similarity_summary(wrong_KN, judged["generated"].test.wrong_BN),
        audit=AuditSummary(
            nearest_l2_generated=float(nearest["generated"].mean()),
            nearest_l2_original=float(nearest["original"].mean()),
            deviation_r2=deviation_r2,
            spread_ratio=spread_ratio(generated, originals.rows) if generated.num_rows > 1 else None,
            max_iou_ensemble=_mean(similar["ensemble"]),
            max_iou_original=_mean(similar["original"]),
        ),
        methods={
            name: MethodSummary(methods[name], len(nearest[name]), _mean(similar[name]), float(nearest[name].mean()))
            for name in judged
        },
        frontier=_frontier(points, task, seed) if variants else None,
        ensembles=curves,
        notes=_notes(judged),
    )
    if folder is not None:
        _write_networks(folder, judged, similar, nearest)
        _draw(folder, points, judged, curves)
    return measured


def require_originals(originals: CheckpointDataset) -> None:
    """Raise ValueError if there are fewer than 3 checkpoints: a spread and a nearest neighbour need some."""
    if len(originals) < _LEAST_ORIGINALS:
        raise PdiffError(
            f"the data set has {len(originals)} checkpoints, expected at least {_LEAST_ORIGINALS} to "
            "judge generated networks by; collect more."
        )


def _max_iou(name: str, judged: Judged, wrong_KN: Tensor) -> Tensor:
    return max_to_any(judged.test.wrong_BN, wrong_KN, exclude_self=name == "original")


def _by_method(
    methods: Mapping[str, str], judged: Mapping[str, Judged], similar: Mapping[str, Tensor]
) -> dict[str, MethodPoints]:
    """The points of each method: all networks of all its variants."""
    points = {}
    for method in dict.fromkeys(methods.values()):
        names = [name for name, each in methods.items() if each == method]
        points[method] = MethodPoints(
            torch.cat([judged[name].test.accuracy_B for name in names]), torch.cat([similar[name] for name in names])
        )
    return points


def _frontier(points: Mapping[str, MethodPoints], task: Task, seed: int) -> Frontier:
    labels = {name: style.label for name, style in METHOD_STYLE.items()}
    return measure_frontier(points, generator_of(seed, "frontier"), floor=1 / task.num_classes, labels=labels)


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
    folder: RunFolder,
    points: Mapping[str, MethodPoints],
    judged: Mapping[str, Judged],
    curves: Mapping[str, EnsembleCurve] | None,
) -> None:
    accuracy, frontier, similarity, ensembles = (folder.picture(stem).with_suffix("") for stem in FIGURES)
    shown = {
        name: points[name]
        for name in ("original", "generated", "ensemble", "fine_tuned", "noise_standardised")
        if name in points
    }  # as in p-diff's figure 4b; the figure of the frontier shows all methods
    accuracy_similarity_figure(shown, accuracy)
    if curves is None:
        return
    frontier_figure(points, frontier)
    pairs = similarity_pairs(judged["original"].test.wrong_BN, judged["generated"].test.wrong_BN)
    if any(bool(values.isfinite().any()) for values in pairs.values()):
        similarity_figure(pairs, similarity)
    ensembles_figure(curves, ensembles)


def similarity_pairs(wrong_KN: Tensor, wrong_BN: Tensor) -> dict[str, Tensor]:
    """The single IoUs whose means `similarity_summary` gives, under the same names, [M] each.

    If a set has more than 500 networks, 500 evenly spaced ones are paired. original_generated_max is of all networks.
    """
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
    folder: RunFolder, judged: Mapping[str, Judged], similar: Mapping[str, Tensor], nearest: Mapping[str, Tensor]
) -> None:
    numbers = {
        name: {
            "accuracy": each.test.accuracy_B.tolist(),
            "validation_accuracy": each.validation_accuracy_B.tolist(),
            "max_similarity": similar[name].tolist(),
            "nearest_l2": nearest[name].tolist(),
        }
        for name, each in judged.items()
    }
    write_json(folder.networks, without_nan(numbers))


def _mean(values_B: Tensor) -> float | None:
    return float(values_B.double().nanmean()) if torch.isfinite(values_B).any() else None
