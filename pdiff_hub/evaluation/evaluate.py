"""Judges generated networks beside the originals and simple baselines: accuracy, novelty, and signs of copying.

Shapes: K originals, B networks of a method, P parameters, N test images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import Rows, as_rows, evenly_spaced
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.baselines import Variant, ensemble
from pdiff_hub.evaluation.copies import count_copies, new_ones
from pdiff_hub.evaluation.distances import spread_ratio
from pdiff_hub.evaluation.ensembles import SIZES, Ensembles
from pdiff_hub.evaluation.figures import (
    COPIES_SHOWN,
    METHOD_STYLE,
    accuracy_similarity_figure,
    copies_figure,
    ensembles_figure,
    frontier_figure,
    similarity_figure,
    training_figure,
)
from pdiff_hub.evaluation.frontier import measure_frontier
from pdiff_hub.evaluation.judging import Judge, Judged
from pdiff_hub.evaluation.measuring import Measure, Measured, joined, mean_or_none
from pdiff_hub.evaluation.on_device import picked, rows_on
from pdiff_hub.evaluation.points import MethodPoints
from pdiff_hub.evaluation.sharing import by_names, by_rows, costs_of
from pdiff_hub.evaluation.similarity import iou_matrix, max_to_any, similarity_summary
from pdiff_hub.evaluation.table import label
from pdiff_hub.prediction.predictions import device_of
from pdiff_hub.processes import this_run
from pdiff_hub.progress import progress_bar
from pdiff_hub.records import (
    FIGURES,
    AuditSummary,
    CopyCount,
    EnsembleCurve,
    Frontier,
    LossCurve,
    Measurements,
    RunFolder,
)
from pdiff_hub.records.json_files import without_nan
from pdiff_hub.safe_files import write_json
from pdiff_hub.seeds import generator_of
from pdiff_hub.tasks import Task
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder

_LEAST_ORIGINALS = 3
_MOST_PAIRED = 500  # most networks per set whose pairs are drawn in the figure of similarities


def evaluate_networks(
    network: nn.Module,
    task: Task,
    originals: CheckpointDataset,
    generated_BP: Tensor | Rows,
    *,
    deviation_r2: float | None,
    fresh: CheckpointDataset | None = None,
    autoencoder: ParamAutoencoder | None = None,
    curve: LossCurve | None = None,
    num_originals: int | None = None,
    variants: Sequence[Variant] = (),
    num_models: int = 100,
    seed: int = 0,
    folder: RunFolder | None = None,
) -> Measurements:
    """Measure the part of `results.json` that compares generated networks with originals, fresh ones and baselines.

    Under a launcher, call it in every process: each judges its share, and all return the same.
    The best network is chosen on the validation split; every reported number is measured on the test split.
    Accuracies are fractions. IoU is undefined for two networks that make no error at all: such pairs are left out, a
    mean with no pair left is None, and "notes" counts these networks.

    Args:
        network: any instance of the architecture; its weights are not used. Networks are made and judged on its
            device; only what was measured of them comes back.
        originals: the checkpoints that the generator was trained on.
        generated_BP: float32 [B,P], raw weight units. `Rows` and the originals are read when needed, and baselines
            are made when needed, so that memory does not grow with their number.
        deviation_r2: as training measured it on held-out checkpoints.
        fresh: checkpoints that it was not trained on: what a network that is really new would get. Without them,
            copies cannot be counted.
        autoencoder: the generator's; distances are measured in its scaled latents too.
        curve: the losses that training measured; they are drawn.
        num_originals: judge only this many originals, evenly spaced; None means all.
        variants: the baselines to compare with (`baselines.baseline_variants`). If there are any, the frontiers of
            accuracy against both kinds of novelty and the ensembles are measured too.
        num_models: number of networks per baseline.
        seed: of the baselines, of the bootstrap and of the two-sample test.
        folder: where to write pictures (PNG and SVG) and the numbers of every single network; None writes nothing.

    Returns:
        What was measured; "frontier", "distance_frontier" and "ensembles" are None without variants.
        "distance_frontier" is also None if the originals are copies of each other, since it is in units of their
        distance; "notes" then says so.

    Raises:
        ValueError: generated networks of another layout, fewer than 3 originals, parameters that are not finite.
    """
    require_originals(originals)
    here = this_run()
    judge = Judge(network, task, originals.layout, originals.frozen)
    generated = as_rows(generated_BP)
    if generated.num_params != originals.layout.num_params:
        raise PdiffError(
            f"generated parameters have shape {[generated.num_rows, generated.num_params]}, expected [*, "
            f"{originals.layout.num_params}]: originals and generated networks have different layouts."
        )
    chosen = evenly_spaced(len(originals), num_originals or len(originals))
    most = max(SIZES)
    in_ensembles = {"original": evenly_spaced(len(chosen), most), "generated": range(min(generated.num_rows, most))}
    # One process hears all networks while they are judged; of several, none does.
    hears = bool(variants) and here.count == 1
    heard = {name: Ensembles(rows) for name, rows in in_ensembles.items()} if hears else {}
    others = {variant.name: variant for variant in variants if variant.name not in ("original", "ensemble")}
    costs = costs_of(list(others.values()), len(task.validation) + len(task.test))
    own_share = here.share_by_cost(list(costs.values()))
    bar = progress_bar(3 + (fresh is not None) + len(own_share), "judge", "set")
    measure = Measure(judge, originals, chosen, autoencoder, heard.get("original"))
    originals, device = measure.originals, device_of(network)
    bar.update()
    generated = rows_on(generated, device)
    of_generated = partial(measure, decoded=True, listener=heard.get("generated"))
    measured = {"original": measure.own, "generated": by_rows(of_generated, generated, joined)}
    bar.update()
    if fresh is not None:
        measured["fresh"] = by_rows(measure, fresh.rows, joined)
        bar.update()
    measured["ensemble"] = measure(ensemble(originals, 1, torch.Generator(device)))
    methods = {name: name for name in measured}
    bar.update()

    def measured_variant(name: str) -> Measured:
        bar.set_postfix(method=name)
        blocks = others[name].blocks(originals, num_models, generator_of(seed, name, device=device))
        found = measure.in_blocks(blocks, decoded=others[name].method == "autoencoder")
        bar.update()
        return found

    measured |= by_names(costs, measured_variant)
    methods |= {name: variant.method for name, variant in others.items()}
    bar.close()
    accuracy = {name: each.judged.test.accuracy_B for name, each in measured.items()}
    by_errors = _by_method(
        methods, accuracy, {name: each.max_iou_B for name, each in measured.items()}, MethodPoints.from_similarities
    )
    own = float(measure.own.nearest_l2_B.mean())
    by_distance = None
    if variants and own > 0:
        nearest = {name: each.nearest_l2_B for name, each in measured.items()}
        by_distance = _by_method(methods, accuracy, nearest, partial(MethodPoints.from_distances, own=own))
    curves: dict[str, EnsembleCurve] | None = {name: each.curve() for name, each in heard.items()} or None
    if variants and here.count > 1:
        sets = {
            "original": picked(originals.rows, [chosen[index] for index in in_ensembles["original"]]),
            "generated": picked(generated, list(in_ensembles["generated"])),
        }
        sizes = {name: rows.num_rows for name, rows in sets.items()}
        curves = by_names(sizes, lambda name: _asked_again(judge, sets[name]))
    fresh_H = (
        new_ones(measured["fresh"].nearest_latent_B, measure.own.nearest_latent_B) if "fresh" in measured else None
    )
    result = Measurements(
        num_checkpoints=len(originals) + (0 if fresh is None else len(fresh)),
        num_generated=generated.num_rows,
        accuracy={name: each.judged.summary() for name, each in measured.items()},
        similarity=similarity_summary(*(measured[name].judged.test.wrong_BN for name in ("original", "generated"))),
        audit=AuditSummary(
            nearest_l2_generated=float(measured["generated"].nearest_l2_B.mean()),
            nearest_l2_original=own,
            deviation_r2=deviation_r2,
            spread_ratio=spread_ratio(generated, originals.rows) if generated.num_rows > 1 else None,
            max_iou_ensemble=mean_or_none(measured["ensemble"].max_iou_B),
            max_iou_original=mean_or_none(measure.own.max_iou_B),
        ),
        copies=_copies(measured, fresh_H),
        training=curve,
        methods=by_names(
            {name: len(each) for name, each in measured.items()},
            lambda name: measured[name].summary(methods[name], name, measured.get("fresh"), fresh_H, seed),
        ),
        frontier=_frontier(by_errors, task, seed, "frontier") if variants else None,
        distance_frontier=_frontier(by_distance, task, seed, "distance frontier") if by_distance else None,
        ensembles=curves,
        notes=_notes({name: each.judged for name, each in measured.items()}, own),
    )
    if folder is not None:
        if here.is_main:
            _write_networks(folder, measured)
        drawings = _drawings(folder, by_errors, by_distance, measured, curves, curve)
        for number in here.share(len(drawings)):
            drawings[number]()
        here.wait()
    return result


def require_originals(originals: CheckpointDataset) -> None:
    """Raise ValueError if there are fewer than 3 checkpoints: a spread and a nearest neighbour need some."""
    if len(originals) < _LEAST_ORIGINALS:
        raise PdiffError(
            f"the data set has {len(originals)} checkpoints, expected at least {_LEAST_ORIGINALS} to "
            "judge generated networks by; collect more."
        )


def _copies(measured: Mapping[str, Measured], fresh_H: Tensor | None) -> CopyCount | None:
    generated_B, own_K = (measured[name].nearest_latent_B for name in ("generated", "original"))
    if generated_B is None or own_K is None:
        return None
    equal = len(measured["fresh"]) - (0 if fresh_H is None else len(fresh_H)) if "fresh" in measured else 0
    return count_copies(generated_B, fresh_H, own_K, num_equal=equal)


def _by_method(
    methods: Mapping[str, str],
    accuracy: Mapping[str, Tensor],
    measured: Mapping[str, Tensor],
    points_of: Callable[[Tensor, Tensor], MethodPoints],
) -> dict[str, MethodPoints]:
    """The points of each method: all networks of all its variants.

    points_of: makes them of accuracies and the `measured` numbers.
    """
    points = {}
    for method in dict.fromkeys(methods.values()):
        names = [name for name, each in methods.items() if each == method]
        points[method] = points_of(
            torch.cat([accuracy[name] for name in names]), torch.cat([measured[name] for name in names])
        )
    return points


def _frontier(points: Mapping[str, MethodPoints], task: Task, seed: int, name: str) -> Frontier:
    """name: seeds the bootstrap, so that each frontier has its own resamples."""
    labels = {name: style.label for name, style in METHOD_STYLE.items()}
    return measure_frontier(points, generator_of(seed, name), floor=1 / task.num_classes, labels=labels)


def _asked_again(judge: Judge, rows: Rows) -> EnsembleCurve:
    """Of networks that no process has heard all of."""
    listener = Ensembles(range(rows.num_rows))
    judge(rows, listener)
    return listener.curve()


def _notes(judged: Mapping[str, Judged], own: float) -> list[str]:
    """own: mean distance of an original to the nearest other."""
    faultless = {name: int((~each.test.wrong_BN.any(dim=1)).sum()) for name, each in judged.items()}
    shares = [
        f"{count} of {len(judged[name].test.wrong_BN)} of {label(name)}" for name, count in faultless.items() if count
    ]
    notes = []
    if shares:
        notes.append(
            f"These make no error on the test split: {', '.join(shares)}. Similarity by errors is undefined between "
            "two such networks, and left out."
        )
    if own == 0:
        notes.append("Each original has an exact copy among them, so distances cannot be compared with their own.")
    return notes


def _drawings(
    folder: RunFolder,
    points: Mapping[str, MethodPoints],
    by_distance: Mapping[str, MethodPoints] | None,
    measured: Mapping[str, Measured],
    curves: Mapping[str, EnsembleCurve] | None,
    curve: LossCurve | None,
) -> list[Callable[[], object]]:
    """What draws the pictures, one each."""
    stems = {stem: folder.picture(stem).with_suffix("") for stem in FIGURES}
    drawings: list[Callable[[], object]] = []
    if curve is not None:
        drawings.append(partial(training_figure, curve, stems["training"]))
    distances = {
        name: each.nearest_latent_B
        for name, each in measured.items()
        if each.nearest_latent_B is not None and name in COPIES_SHOWN
    }
    if distances:
        drawings.append(partial(copies_figure, distances, stems["copies"]))
    shown = {
        name: points[name]
        for name in ("original", "generated", "fresh", "ensemble", "fine_tuned", "noise_standardised")
        if name in points
    }  # as in p-diff's figure 4b; the figure of the frontier shows all methods
    drawings.append(partial(accuracy_similarity_figure, shown, stems["accuracy-similarity"]))
    if curves is None:
        return drawings
    drawings.append(partial(frontier_figure, points, stems["frontier"]))
    if by_distance is not None:
        drawings.append(partial(frontier_figure, by_distance, stems["frontier-distance"]))
    pairs = similarity_pairs(*(measured[name].judged.test.wrong_BN for name in ("original", "generated")))
    if any(bool(values.isfinite().any()) for values in pairs.values()):
        drawings.append(partial(similarity_figure, pairs, stems["similarity"]))
    drawings.append(partial(ensembles_figure, curves, stems["ensembles"]))
    return drawings


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


def _write_networks(folder: RunFolder, measured: Mapping[str, Measured]) -> None:
    numbers = {}
    for name, each in measured.items():
        numbers[name] = {
            "accuracy": each.judged.test.accuracy_B.tolist(),
            "validation_accuracy": each.judged.validation_accuracy_B.tolist(),
            "max_similarity": each.max_iou_B.tolist(),
            "nearest_l2": each.nearest_l2_B.tolist(),
        }
        if each.nearest_latent_B is not None:
            numbers[name]["nearest_latent"] = each.nearest_latent_B.tolist()
    write_json(folder.networks, without_nan(numbers))
