"""Results as tables for the terminal, the report, the card and the Space: accuracy and, good or bad, the audit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console

from pdiff_hub.evaluation.figures import METHOD_STYLE
from pdiff_hub.evaluation.report import Short, Table
from pdiff_hub.evaluation.request_tables import request_tables
from pdiff_hub.evaluation.terminal import print_table, safe
from pdiff_hub.records import (
    AccuracySummary,
    AuditSummary,
    Comparison,
    EnsembleCurve,
    Frontier,
    Measurements,
    Results,
    SimilaritySummary,
)
from pdiff_hub.records.training_summary import PLATEAU

Rows = list[tuple[str, ...]]

_ACCURACY_NOTE = "* The network that is best on the validation split, judged on the test split."
_ACCURACY_COLUMNS = ("networks", "best*", "mean", "median", "std")
_AUDIT_COLUMNS = ("measure", "value", "how to read it")
_COPIES_COLUMNS = (
    "networks",
    "count",
    "copies",
    "distance over fresh, means",
    "medians",
    "in raw weights",
    "nearest over second",
    "told from fresh, AUC",
)
_COPIES_NOTE = (
    "Fresh networks are checkpoints that the generator was not trained on: what a perfect generator would get. A "
    "distance of 1 is right; networks that are farther away are not better. "
    "Distance: to the nearest checkpoint that it was trained on, in scaled latents, over the same of fresh networks. A "
    "copy is no farther than the nearest 5 % of fresh networks. Nearest over second: distance to the nearest "
    "checkpoint over that to the second-nearest, 0 for a copy. AUC: how well a classifier tells these networks from "
    "fresh ones by accuracy, loss, confidence, agreement, norms, spectra and distances, with a 95 % interval; 0.5 is "
    "not at all, 1 is always. Read it beside that of the originals: held-out stretches of one run differ from the rest."
)
_METHOD_COLUMNS = (
    "networks",
    "count",
    "mean accuracy [%]",
    "max IoU",
    "nearest L2",
    "p-diff's accuracy less this one's at the same novelty [points]",
    "is p-diff better?",
)
_METHOD_NOTE = (
    "max IoU: mean of the highest overlap of errors with an original; novelty is 1 less that. Nearest L2: "
    "mean distance to the nearest original, in raw weight units. The difference is between step frontiers "
    "over the novelties that both reach, at equal numbers of networks, with a 95 % bootstrap interval; "
    "methods at several settings are compared as one."
)
_ENSEMBLE_COLUMNS = (
    "networks averaged",
    "accuracy, originals [%]",
    "accuracy, generated [%]",
    "NLL, originals",
    "NLL, generated",
    "calibration error, originals [%]",
    "calibration error, generated [%]",
)
_ENSEMBLE_NOTE = "Means over disjoint groups out of 20 networks. NLL in nats; calibration error with 15 bins."


_SHORT_COPIES = Short(
    "Beside fresh networks, which the generator never saw",
    {
        "networks": "networks",
        "count": "n",
        "copies": "copies",
        "distance over fresh, means": "mean",
        "medians": "median",
        "in raw weights": "raw",
        "told from fresh, AUC": "AUC",
    },
    note="mean, median: distance to the nearest original in scaled latents over that of fresh networks; raw: in raw "
    "weights. AUC: 0.5 if nobody can tell them from fresh networks, 1 if always, with its 95 % interval.",
)
_SHORT_AUDIT = Short("Does it generate, or copy and average?")
_SHORT_METHODS = Short(
    "Against simple baselines",
    dict(zip(_METHOD_COLUMNS, ("networks", "n", "mean", "IoU", "L2", "p-diff less this", "better?"), strict=True)),
    {"within the interval": "unclear"},
    "mean: accuracy [%]. IoU: highest overlap of errors with an original. L2: to the nearest original. "
    "p-diff less this: difference in accuracy at the same novelty, in points, with its 95 % interval; better?: unclear "
    "where 0 lies within it.",
)
_SHORT_ENSEMBLES = Short(
    "As ensembles of n: accuracy [%], NLL, calibration error [%]",
    dict(
        zip(
            _ENSEMBLE_COLUMNS,
            ("n", "acc orig", "acc gen", "NLL orig", "NLL gen", "ECE orig", "ECE gen"),
            strict=True,
        )
    ),
    note="",
)


def result_tables(measured: Measurements) -> dict[str, Table]:
    """What was measured, as tables in this order: "copies", "accuracy", "audit", "methods", "ensembles", and those of
    `request_tables`."""
    tables = {}
    if measured.copies is not None:
        tables["copies"] = Table("Copies", _COPIES_COLUMNS, _copies_rows(measured), _COPIES_NOTE, _SHORT_COPIES)
    if measured.accuracy:
        rows, note = _accuracy_rows(measured), accuracy_note(measured.accuracy.values())
        tables["accuracy"] = Table("Accuracy on test [%]", _ACCURACY_COLUMNS, rows, note)
    if measured.audit is not None and measured.similarity is not None:
        tables["audit"] = Table(
            "Audit", _AUDIT_COLUMNS, _audit_rows(measured.similarity, measured.audit), short=_SHORT_AUDIT
        )
    if measured.frontier is not None:
        rows = _method_rows(measured, measured.frontier)
        tables["methods"] = Table("Baselines", _METHOD_COLUMNS, rows, _METHOD_NOTE, _SHORT_METHODS)
    if measured.ensembles is not None:
        rows = _ensemble_rows(measured.ensembles)
        tables["ensembles"] = Table("Ensembles", _ENSEMBLE_COLUMNS, rows, _ENSEMBLE_NOTE, _SHORT_ENSEMBLES)
    if measured.requests is not None:
        tables |= request_tables(measured.requests)
    return {name: table for name, table in tables.items() if table.rows}


def print_results(results: Results, console: Console | None = None) -> None:
    """Print the verdict, copies, accuracy on test in percent, audit, baselines, ensembles, notes and seconds."""
    console, measured = console or Console(), results.measured
    if measured is None:
        return
    if measured.accuracy or measured.requests is not None:
        console.print(safe(verdict(results)), style="bold")
    for table in result_tables(measured).values():
        print_table(console, table)
    console.print()
    for note in measured.notes:
        console.print(safe(f"Note: {note}"))
    console.print(safe(f"Seconds: {seconds_text(results)}"))


def accuracy_note(rows: Iterable[AccuracySummary]) -> str:
    """What "best" means, and why it may lie below the mean, where it does."""
    below = sum(row.best < row.mean for row in rows)
    if not below:
        return _ACCURACY_NOTE
    where = "here" if below == 1 else f"in {below} rows here"
    return (
        f"{_ACCURACY_NOTE} Where it lies below the mean, as {where}, the networks are so alike that images of the "
        "validation split do not say which of them is better on test."
    )


def _accuracy_rows(measured: Measurements) -> Rows:
    """One row per variant, in percent."""
    return [
        (label(name), *(f"{100 * value:.2f}" for value in (row.best, row.mean, row.median, row.std)))
        for name, row in measured.accuracy.items()
    ]


def _copies_rows(measured: Measurements) -> Rows:
    """One row per variant, beside fresh networks."""
    fresh, rows = measured.methods.get("fresh"), Rows()
    for name, row in measured.methods.items():
        if (near := row.nearness) is None:
            continue
        raw = None
        if fresh is not None and fresh.nearest_l2 and row.nearest_l2 is not None:
            raw = row.nearest_l2 / fresh.nearest_l2
        told = row.told_apart
        cells = (
            "" if near.copies is None else str(near.copies),
            *map(_ratio, (near.ratio, near.median_ratio, raw)),
            f"{near.nearest_over_second:.2f}",
            "" if told is None else f"{told.auc:.2f} ({told.low:.2f}-{told.high:.2f})",
        )
        rows.append((label(name), str(row.count), *cells))
    return rows


def _audit_rows(similarity: SimilaritySummary, audit: AuditSummary) -> Rows:
    """Rows of (measure, value, how to read it)."""
    return [
        ("IoU of errors, original-original", _text(similarity.original_original), "how alike originals are"),
        ("IoU of errors, generated-generated", _text(similarity.generated_generated), "1: all the same network"),
        ("IoU of errors, original-generated", _text(similarity.original_generated), ""),
        ("max IoU of a generated one to any original", _text(similarity.original_generated_max), "1: the same errors"),
        ("max IoU of an original to any other", _text(audit.max_iou_original), "what relatives have"),
        ("max IoU of the weight average", _text(audit.max_iou_ensemble), "generated near this: averaging"),
        ("L2 to the nearest original, generated", _text(audit.nearest_l2_generated), "0: a copy"),
        ("L2 to the nearest original, originals", _text(audit.nearest_l2_original), "leave-one-out"),
        ("deviation R2, held out", _text(audit.deviation_r2), "0: the decoder answers with the mean"),
        ("spread, generated over original", _text(audit.spread_ratio), "below 1: narrower than the originals"),
    ]


def _method_rows(measured: Measurements, frontier: Frontier) -> Rows:
    """One row per variant: measures of its networks, and how the generated networks compare with its method."""
    rows: Rows = []
    for name, row in measured.methods.items():
        against = frontier.versus.get(row.method)
        means = f"{100 * measured.accuracy[name].mean:.2f}", _text(row.max_iou), _text(row.nearest_l2)
        better = "" if against is None else against.verdict
        rows.append((label(name), str(row.count), *means, _difference(against), better))
    return rows


def _ratio(value: float | None) -> str:
    """Two digits after the point, or none of a number from 100 on, whose digits would crowd a terminal."""
    return "" if value is None else f"{value:.{2 if value < 100 else 0}f}"


def _difference(against: Comparison | None) -> str:
    """The difference in points with its 95 % interval, if there is one; empty if it is undefined."""
    if against is None or against.difference is None:
        return ""
    if against.low is None or against.high is None:
        return f"{100 * against.difference:+.2f}"
    return f"{100 * against.difference:+.2f} ({100 * against.low:+.2f} to {100 * against.high:+.2f})"


def _ensemble_rows(curves: Mapping[str, EnsembleCurve]) -> Rows:
    """One row per size of ensemble; a dash where a method has too few networks. curves: by method."""
    sizes = sorted({size for curve in curves.values() for size in curve.sizes})

    def cells(size: int) -> list[str]:
        shown = []
        for key, factor, digits in (("accuracy", 100, 2), ("nll", 1, 4), ("calibration_error", 100, 2)):
            for curve in (curves.get("original"), curves.get("generated")):
                if curve is None or size not in curve.sizes:
                    shown.append("-")
                else:
                    shown.append(f"{factor * getattr(curve, key)[curve.sizes.index(size)]:.{digits}f}")
        return shown

    return [(str(size), *cells(size)) for size in sizes]


def verdict(results: Results) -> str:
    """What is said first: copies, then how the networks compare with the baselines in both kinds of novelty."""
    measured = results.measured
    sentences = []
    if measured is not None and measured.copies is not None:
        sentences.append(measured.copies.sentence)
    if measured is not None and measured.training is not None and measured.training.kept == 0:
        sentences.append(f"Training gained nothing: what generates is {_untrained(results)}.")
    if measured is not None and measured.requests is not None:
        sentences.extend(measured.requests.verdicts)
        if measured.requests.unseen:  # its networks have tasks of their own: there is no frontier
            return " ".join(sentences)
    if measured is None or measured.frontier is None:
        sentences.append("No baselines were run, so there is no verdict on novelty.")
    else:
        sentences.append(measured.frontier.verdict)
        if measured.distance_frontier is not None:
            sentences.append(measured.distance_frontier.verdict)
    return " ".join(sentences)


def training_text(results: Results) -> str:
    """When the denoiser's training was ended, and what it gained over a Gaussian; empty if it is not known."""
    curve = None if results.measured is None else results.measured.training
    if curve is None:
        return ""
    lowest = min(curve.held_out)
    at = curve.steps[curve.held_out.index(lowest)]
    text = (
        f"The denoising loss on held-out checkpoints was lowest at step {at:,} ({lowest:.3f}; before training "
        f"{curve.held_out[0]:.3f}; after step {curve.steps[-1]:,} {curve.held_out[-1]:.3f})"
    )
    if curve.kept is None:
        return f"{text}; the weights of the last step were kept, by wish of the recipe."
    if curve.kept == 0:
        return f"{text}. Training gained nothing, so the denoiser is that of before it: {_untrained(results)}."
    text += f"; the weights of step {curve.kept:,} were kept"
    if curve.kept < at and curve.held_out[curve.steps.index(curve.kept)] > (1 + PLATEAU) * lowest:
        text += ", since later ones draw copies"
    elif curve.kept > at and curve.held_out[curve.steps.index(curve.kept)] > (1 + PLATEAU) * lowest:
        text += ", since earlier ones draw farther away than fresh networks lie"
    return f"{text}."


def _untrained(results: Results) -> str:
    """What a denoiser is before training: with velocity (`training.diffusion`), that of a normal distribution."""
    recipe = results.facts.recipe or {}
    epsilon = recipe.get("diffusion", {}).get("prediction") == "epsilon"
    return "a U-Net with random weights" if epsilon else "a Gaussian in latent space"


def seconds_text(results: Results) -> str:
    """The seconds that each stage took, on one line."""
    known = ((stage.replace("_", " "), value) for stage, value in results.seconds.items())
    return ", ".join(f"{stage} {value:.1f}" for stage, value in known if value is not None)


def label(variant: str) -> str:
    """The name of a variant in tables: the name of its method, and its setting."""
    if variant in METHOD_STYLE:
        return METHOD_STYLE[variant].label
    method, _, setting = variant.rpartition("_")
    return f"{METHOD_STYLE[method].label}, {setting}" if method in METHOD_STYLE else variant


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
