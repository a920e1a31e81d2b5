"""results.json as tables in the terminal: accuracy, then the audit beside it, good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_NAMES = {"original": "originals", "generated": "generated", "ensemble": "average of weights"}


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print accuracy in percent of the test split, similarity, audit, and seconds."""
    console = console or Console()
    accuracy = Table(title=f"Accuracy on test [%], {results['num_params']:,} parameters")
    accuracy.add_column("networks")
    for column in ("best*", "mean", "median", "std"):
        accuracy.add_column(column, justify="right")
    for name, row in results["accuracy"].items():
        accuracy.add_row(_NAMES.get(name, name),
                         *(f"{100 * row[key]:.2f}" for key in ("best", "mean", "median", "std")))
    console.print(accuracy)
    console.print("* chosen on the validation split, reported on the test split", style="dim")
    audit = Table(title="Does it generate, or copy and average?")
    audit.add_column("measure")
    audit.add_column("value", justify="right")
    audit.add_column("how to read it")
    for measure, value, reading in audit_rows(results):
        audit.add_row(measure, value, reading)
    console.print(audit)
    seconds = results.get("seconds", {})
    if seconds:
        console.print("Seconds: " + ", ".join(f"{name.replace('_', ' ')} {value:.1f}"
                                              for name, value in seconds.items() if value is not None))


def audit_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(measure, value, how to read it), for the terminal and the card."""
    similarity, audit = results["similarity"], results["audit"]

    def text(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3f}"

    return [
        ("IoU of errors, original-original", text(similarity["original_original"]), "how alike originals are"),
        ("IoU of errors, generated-generated", text(similarity["generated_generated"]), "1: all the same network"),
        ("IoU of errors, original-generated", text(similarity["original_generated"]), ""),
        ("max IoU of a generated one to any original", text(similarity["original_generated_max"]), "1: a copy"),
        ("max IoU of the weight average", text(audit["max_iou_ensemble"]), "generated near this: averaging"),
        ("L2 to the nearest original, generated", text(audit["nearest_l2_generated"]), "0: a copy"),
        ("L2 to the nearest original, originals", text(audit["nearest_l2_original"]), "leave-one-out"),
        ("deviation R2, held out", text(audit["deviation_r2"]), "0: the decoder answers with the mean"),
        ("spread, generated over original", text(audit["spread_ratio"]), "below 1: narrower than the originals"),
    ]
