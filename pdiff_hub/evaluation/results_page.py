"""The report of one pipeline: results.json as a page of tables and pictures (`report.write_report`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdiff_hub.evaluation.report import Figure, Section, Table, write_report
from pdiff_hub.evaluation.table import result_tables, training_text, verdict
from pdiff_hub.records import Results, RunFolder
from pdiff_hub.safe_files import flattened

_TITLES = {
    "requests": "Networks for tasks never seen, by their description",
    "fit": "Networks for tasks never seen, from a few examples",
    "copies": "How near networks lie to what the generator was trained on",
    "training": "When training was ended",
    "accuracy-similarity": "Accuracy against the highest similarity to an original",
    "frontier": "The accuracy-novelty frontier",
    "frontier-distance": "Accuracy against distance",
    "similarity": "Similarity of networks by their errors",
    "ensembles": "Ensembles of originals and of generated networks",
}
_ALTS = {
    "requests": "One row for each way to get a network for a task never seen: a point at its mean accuracy, with its "
    "interval.",
    "fit": "Accuracy against the number of labelled examples, one line for each way to use them.",
    "copies": "One rising line per method: the share of its networks up to a distance from the nearest original, with "
    "a dotted line at the distance of a copy.",
    "training": "The denoising loss on held-out and on training checkpoints over the steps of training, with a line at "
    "the step whose weights were kept.",
    "accuracy-similarity": "A scatter plot: one point per network, accuracy on test against its highest IoU of errors "
    "with an original, for originals, generated networks, their average and others.",
    "frontier": "Accuracy on test against novelty, one less the highest IoU, with one step line per method.",
    "frontier-distance": "Accuracy on test against the distance to the nearest original, as a multiple of the "
    "originals' own, with one step line per method.",
    "similarity": "Distributions of IoU of errors: among originals, among generated networks, between both, and the "
    "highest of each generated network.",
    "ensembles": "Accuracy, negative log-likelihood and calibration error against the number of networks averaged.",
}


def write_results_page(results: Results, folder: RunFolder) -> Path:
    """Write the report of measured results, with the pictures found in `folder`, into `folder`; return its path."""
    facts, measured = results.facts, results.measured
    assert measured is not None
    sections = result_sections(results, folder)
    settings = {**(facts.recipe or {}), "environment": results.environment, "seed of the evaluation": results.seed}
    known = ((stage.replace("_", " "), value) for stage, value in results.seconds.items())
    seconds = [(stage, f"{value:.1f}") for stage, value in known if value is not None]
    sections.append(
        Section("Settings", "", [settings_table(settings), Table("Seconds", ("stage", "seconds"), seconds)])
    )
    lead = (
        f"{measured.num_generated} generated {facts.network} networks for {facts.task}, "
        f"{facts.num_params:,} numbers each (select: {facts.select})"
    )
    if measured.num_checkpoints:
        held_out = 0 if measured.copies is None else measured.copies.num_fresh
        lead += f", beside {measured.num_checkpoints} checkpoints"
        lead += f", {held_out} of which the generator was not trained on" if held_out else ""
    write_report(folder.report, facts.name, f"{lead}.\n\n{verdict(results)}", sections)
    return folder.report


def _about_requests(results: Results) -> str:
    """What was asked, why nothing leaks, and when training was ended; empty if nothing was asked."""
    requests = None if results.measured is None else results.measured.requests
    if requests is None:
        return ""
    asked = f"{requests.num_seen} tasks were seen, {requests.num_unseen} held out. {requests.rule}"
    return "\n\n".join(each for each in (asked, training_text(results)) if each)


def result_figure(folder: RunFolder, stem: str) -> Figure | None:
    """The picture `stem`, one of `FIGURES`, with its title and its description; None if it was not drawn."""
    png = folder.picture(stem)
    return Figure(png, _TITLES[stem], _ALTS[stem]) if png.exists() else None


def settings_table(settings: Mapping[str, Any]) -> Table:
    """Nested settings as a table, one row per dotted name."""
    return Table("Settings", ("setting", "value"), [(name, str(value)) for name, value in flattened(settings)])


def result_sections(results: Results, folder: RunFolder) -> list[Section]:
    """The sections of what was measured: accuracy, audit, baselines with the frontiers, ensembles."""
    measured = results.measured
    assert measured is not None

    def figures(*stems: str) -> list[Figure]:
        return [drawn for stem in stems if (drawn := result_figure(folder, stem)) is not None]

    tables = result_tables(measured)
    verdicts = [each.verdict for each in (measured.frontier, measured.distance_frontier) if each is not None]
    copied = "" if measured.copies is None else measured.copies.sentence
    practical = "Probabilities of several networks averaged: the practical use."
    texts = {
        "copies": (
            "Does it copy?",
            "\n\n".join(each for each in (copied, training_text(results)) if each),
            figures("copies", "training"),
        ),
        "accuracy": ("How good they are", "\n\n".join(measured.notes), figures("accuracy-similarity")),
        "audit": ("Do they only copy and average?", "", figures("similarity")),
        "methods": ("Against simple baselines", "\n\n".join(verdicts), figures("frontier", "frontier-distance")),
        "ensembles": ("As ensembles", practical, figures("ensembles")),
        "requests": ("Asked for by description", _about_requests(results), figures("requests", "training")),
        "warm_start": ("Trained further", "", []),
        "request_ensembles": ("As ensembles", practical, []),
        "fit": ("Fitted to a few examples", "", figures("fit")),
        "fit_ensembles": ("Ensembles from examples", practical, []),
    }
    return [Section(*texts[name][:2], [table, *texts[name][2]]) for name, table in tables.items()]
