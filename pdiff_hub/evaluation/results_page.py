"""The report of one pipeline: results.json as a page with tables and pictures (`report.write_report`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pdiff_hub.evaluation.evaluate import FIGURES
from pdiff_hub.evaluation.report import Figure, Section, Table, write_report
from pdiff_hub.evaluation.table import (
    ACCURACY_COLUMNS,
    ACCURACY_NOTE,
    AUDIT_COLUMNS,
    ENSEMBLE_COLUMNS,
    METHOD_COLUMNS,
    METHOD_NOTE,
    accuracy_rows,
    audit_rows,
    ensemble_rows,
    method_rows,
    verdict,
)

REPORT_FILE = "report.html"
_TITLES = {
    "accuracy-similarity": "Accuracy against the highest similarity to an original",
    "frontier": "The accuracy-novelty frontier",
    "similarity": "Similarity of networks by their errors",
    "ensembles": "Ensembles of originals and of generated networks",
}
_ALTS = {
    "accuracy-similarity": "A scatter plot: one point a network, accuracy on test against its highest IoU of errors "
    "with an original, for originals, generated networks, their average and others.",
    "frontier": "Accuracy on test against novelty, one less the highest IoU, with a step line a method.",
    "similarity": "Distributions of IoU of errors: among originals, among generated networks, between both, and the "
    "highest of each generated network.",
    "ensembles": "Accuracy, negative log-likelihood and calibration error against the number of networks averaged.",
}


def write_results_page(
    results: Mapping[str, Any], directory: Path, name: str, recipe: Mapping[str, Any] | None = None
) -> Path:
    """Write `directory`/report.html from results and the pictures that lie there; returns its path."""
    sections = result_sections(results, directory)
    settings = {**(recipe or {}), "environment": results["environment"], "seed of the evaluation": results["seed"]}
    seconds = [
        (stage.replace("_", " "), f"{value:.1f}") for stage, value in results["seconds"].items() if value is not None
    ]
    sections.append(
        Section("Settings", "", [settings_table(settings), Table("Seconds", ("stage", "seconds"), seconds)])
    )
    lead = (
        f"{results['num_generated']} generated {results['network']} networks for {results['task']}, "
        f"{results['num_params']:,} numbers each (select: {results['select']})"
    )
    if results["num_checkpoints"]:
        lead += f", beside the {results['num_checkpoints']} checkpoints that their generator was trained on"
    path = directory / REPORT_FILE
    write_report(path, name, f"{lead}.\n\n{verdict(results)}", sections)
    return path


def settings_table(settings: Mapping[str, Any]) -> Table:
    """Nested settings, a row a dotted name."""
    return Table("Settings", ("setting", "value"), list(_flat(settings, "")))


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def result_sections(results: Mapping[str, Any], directory: Path) -> list[Section]:
    """The sections that results have: accuracy, audit, baselines and frontier, ensembles."""

    def figure(stem: str) -> list[Figure]:
        png = directory / f"{stem}.png"
        return [Figure(png, _TITLES[stem], _ALTS[stem])] if png.exists() else []

    accuracy, frontier, similarity, ensembles = FIGURES
    sections = []
    if results["accuracy"]:
        sections.append(
            Section(
                "How good they are",
                "\n\n".join(results["notes"]),
                [
                    Table("Accuracy on test [%]", ACCURACY_COLUMNS, accuracy_rows(results), ACCURACY_NOTE),
                    *figure(accuracy),
                ],
            )
        )
    if results["audit"]:
        sections.append(
            Section(
                "Do they only copy and average?",
                "",
                [Table("Audit", AUDIT_COLUMNS, audit_rows(results)), *figure(similarity)],
            )
        )
    if results["frontier"]:
        sections.append(
            Section(
                "Against simple baselines",
                verdict(results),
                [Table("Baselines", METHOD_COLUMNS, method_rows(results), METHOD_NOTE), *figure(frontier)],
            )
        )
    if results["ensembles"]:
        sections.append(
            Section(
                "As ensembles",
                "Probabilities of several networks averaged: the practical use.",
                [
                    Table(
                        "Ensembles",
                        ENSEMBLE_COLUMNS,
                        ensemble_rows(results),
                        "Means over disjoint groups out of 20 networks. NLL in nats; calibration error with 15 bins.",
                    ),
                    *figure(ensembles),
                ],
            )
        )
    return sections
