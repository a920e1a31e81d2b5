"""results.json as rows, for the terminal, the report and the card: accuracy, then the audit beside it, good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pdiff_hub.evaluation.figures import METHOD_STYLE

Rows = list[tuple[str, ...]]

ACCURACY_COLUMNS = ("networks", "best*", "mean", "median", "std")
ACCURACY_NOTE = "* chosen on the validation split, reported on the test split"
AUDIT_COLUMNS = ("measure", "value", "how to read it")
METHOD_COLUMNS = (
    "networks",
    "count",
    "mean accuracy [%]",
    "max IoU",
    "nearest L2",
    "p-diff's accuracy less this one's at the same novelty [points]",
    "is p-diff better?",
)
METHOD_NOTE = (
    "max IoU: mean of the highest overlap of errors with an original; novelty is 1 less that. Nearest L2: "
    "mean distance to the nearest original, in raw weight units. The difference is between step frontiers "
    "over the novelties that both reach, at equal numbers of networks, with a 95 % bootstrap interval; "
    "methods at several settings are compared as one."
)
ENSEMBLE_COLUMNS = (
    "networks averaged",
    "accuracy, originals [%]",
    "accuracy, generated [%]",
    "NLL, originals",
    "NLL, generated",
    "calibration error, originals [%]",
    "calibration error, generated [%]",
)
# A terminal has 80 columns.
_SHORT_METHOD = ("networks", "n", "mean", "IoU", "L2", "p-diff less this", "better?")
_SHORT_NOTE = (
    "mean: accuracy [%]. IoU: highest overlap of errors with an original. L2: to the nearest original. "
    "p-diff less this: difference in accuracy at the same novelty, in points, with its 95 % interval."
)
_SHORT_ENSEMBLE = ("n", "acc orig", "acc gen", "NLL orig", "NLL gen", "ECE orig", "ECE gen")


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print accuracy in percent of the test split, the audit and its verdict, ensembles, seconds."""
    console = console or Console()
    if results["accuracy"]:
        _print(
            console,
            f"Accuracy on test [%], {results['num_params']:,} parameters",
            ACCURACY_COLUMNS,
            accuracy_rows(results),
        )
        console.print(ACCURACY_NOTE, style="dim")
    if results.get("audit"):
        _print(console, "Does it generate, or copy and average?", AUDIT_COLUMNS, audit_rows(results))
    if results.get("frontier"):
        _print(console, "Against simple baselines", _SHORT_METHOD, method_rows(results))
        console.print(_SHORT_NOTE, style="dim")
        console.print(verdict(results), style="bold")
    if results.get("ensembles"):
        _print(
            console,
            "As ensembles of n: accuracy [%], NLL, calibration error [%]",
            _SHORT_ENSEMBLE,
            ensemble_rows(results),
        )
    for note in results.get("notes", []):
        console.print(f"Note: {note}")
    console.print(f"Seconds: {seconds_text(results)}")


def accuracy_rows(results: Mapping[str, Any]) -> Rows:
    """A row a variant, percent."""
    return [
        (label(name), *(f"{100 * row[key]:.2f}" for key in ("best", "mean", "median", "std")))
        for name, row in results["accuracy"].items()
    ]


def audit_rows(results: Mapping[str, Any]) -> Rows:
    """(measure, value, how to read it)."""
    similarity, audit = results["similarity"], results["audit"]
    return [
        ("IoU of errors, original-original", _text(similarity["original_original"]), "how alike originals are"),
        ("IoU of errors, generated-generated", _text(similarity["generated_generated"]), "1: all the same network"),
        ("IoU of errors, original-generated", _text(similarity["original_generated"]), ""),
        ("max IoU of a generated one to any original", _text(similarity["original_generated_max"]), "1: a copy"),
        ("max IoU of an original to any other", _text(audit["max_iou_original"]), "what relatives have"),
        ("max IoU of the weight average", _text(audit["max_iou_ensemble"]), "generated near this: averaging"),
        ("L2 to the nearest original, generated", _text(audit["nearest_l2_generated"]), "0: a copy"),
        ("L2 to the nearest original, originals", _text(audit["nearest_l2_original"]), "leave-one-out"),
        ("deviation R2, held out", _text(audit["deviation_r2"]), "0: the decoder answers with the mean"),
        ("spread, generated over original", _text(audit["spread_ratio"]), "below 1: narrower than the originals"),
    ]


def method_rows(results: Mapping[str, Any]) -> Rows:
    """A row a variant: what its networks are, and what the frontier says of its method."""
    versus = results["frontier"]["versus"]
    rows: Rows = []
    for name, row in results["methods"].items():
        against = versus.get(row["method"])
        difference, better = "", ""
        if against is not None and against["difference"] is not None:
            low, middle, high = (f"{100 * against[key]:+.2f}" for key in ("low", "difference", "high"))
            difference = f"{middle} ({low} to {high})"
        if against is not None:
            better = against["verdict"]
        rows.append(
            (
                label(name),
                str(row["count"]),
                f"{100 * results['accuracy'][name]['mean']:.2f}",
                _text(row["max_iou"]),
                _text(row["nearest_l2"]),
                difference,
                better,
            )
        )
    return rows


def verdict(results: Mapping[str, Any]) -> str:
    """The sentence that the audit ends in, or why there is none."""
    if not results.get("frontier"):
        return "No baselines were run, so there is no verdict on novelty."
    return str(results["frontier"]["verdict"])


def ensemble_rows(results: Mapping[str, Any]) -> Rows:
    """A row a size of ensemble; a dash where there are not so many networks."""
    curves = results["ensembles"]
    sizes = sorted({size for curve in curves.values() for size in curve["sizes"]})

    def at(method: str, key: str, size: int, factor: float, digits: int) -> str:
        curve = curves.get(method)
        if curve is None or size not in curve["sizes"]:
            return "-"
        return f"{factor * curve[key][curve['sizes'].index(size)]:.{digits}f}"

    shown = (("accuracy", 100, 2), ("nll", 1, 4), ("calibration_error", 100, 2))
    return [
        (
            str(size),
            *(
                at(method, key, size, factor, digits)
                for key, factor, digits in shown
                for method in ("original", "generated")
            ),
        )
        for size in sizes
    ]


def seconds_text(results: Mapping[str, Any]) -> str:
    """What each stage took, on one line."""
    return ", ".join(
        f"{stage.replace('_', ' ')} {value:.1f}" for stage, value in results["seconds"].items() if value is not None
    )


def label(variant: str) -> str:
    """How a variant is called in tables: the name of its method, and its setting."""
    if variant in METHOD_STYLE:
        return METHOD_STYLE[variant].label
    method, _, setting = variant.rpartition("_")
    return f"{METHOD_STYLE[method].label}, {setting}" if method in METHOD_STYLE else variant


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _print(console: Console, title: str, columns: tuple[str, ...], rows: Rows) -> None:
    table = Table(title=title, box=SIMPLE_HEAD)
    for index, (column, cells) in enumerate(zip(columns, zip(*rows, strict=True), strict=True)):
        numeric = index > 0 and all(cell[:1].isdigit() or cell[:1] in "+-u" for cell in cells if cell)
        # Names are told apart by their ends, so in a narrow terminal the first column is wrapped, never cut.
        least = max(len(word) for cell in cells for word in cell.split()) if index == 0 else None
        table.add_column(column, justify="right" if numeric else "left", min_width=least)
    for row in rows:
        table.add_row(*row)
    console.print(table)
