"""What came of requests, as tables."""

from __future__ import annotations

from collections.abc import Mapping

from pdiff_hub.evaluation.report import Table
from pdiff_hub.evaluation.request_names import FIT_NAMES, STARTS, STEPS, UNSEEN_NAMES
from pdiff_hub.records import EnsembleCurve, Requests

_REQUEST_NOTE = (
    "Mean over tasks that nothing was trained on, with a 95 % bootstrap interval over tasks. Each costs as much at use "
    "as one network. The ways that choose something (how many neighbours, how much ridge) chose it on seen tasks. "
    "Networks were asked for with the guidance scale of the recipe's section evaluate."
)
_FIT_NOTE = (
    "Nothing is told of the task but the examples. Below the line of the fit, all but the last two know what it knows: "
    "the checkpoints and the examples, and cost one network at use. A multi-task trunk needs the images and labels of "
    "all seen tasks; stacking runs a network of every seen task at use."
)


def request_tables(requests: Requests) -> dict[str, Table]:
    """Tables "requests", "warm_start", "request_ensembles", "fit" and "fit_ensembles", as far as measured."""
    tables = {
        "requests": Table(
            "Asked for by description",
            ("network", "accuracy [%]", "95 %", *(["inside the seen range [%]"] if requests.inside else [])),
            _unseen(requests),
            _REQUEST_NOTE,
        ),
        "warm_start": Table(
            "Trained further",
            ("start", *(f"{steps} steps [%]" for steps in STEPS)),
            [
                (label, *(f"{100 * requests.unseen[f'{name}_{steps}']:.1f}" for steps in STEPS))
                for name, label in STARTS.items()
                if f"{name}_{STEPS[0]}" in requests.unseen
            ],
        ),
        "request_ensembles": _ensembles(
            "Ensembles of generated networks", {(): requests.ensembles["generated"]} if requests.ensembles else {}
        ),
    }
    if (fit := requests.fit) is not None:
        tables["fit"] = Table(
            "Fitted to a few examples",
            ("network", *(f"{number} labels [%]" for number in fit.labels)),
            [
                (label, *(f"{100 * each[name]:.1f}" if name in each else "-" for each in fit.labels.values()))
                for name, label in FIT_NAMES.items()
                if any(name in each for each in fit.labels.values())
            ],
            _FIT_NOTE,
        )
        curves: dict[tuple[str, ...], EnsembleCurve] = {
            (number, FIT_NAMES[name]): curve for number, each in fit.ensembles.items() for name, curve in each.items()
        }
        tables["fit_ensembles"] = _ensembles("Ensembles from examples", curves, "labels", "members")
    return {name: table for name, table in tables.items() if table.rows}


def _unseen(requests: Requests) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, label in UNSEEN_NAMES.items():
        if name in requests.unseen:
            low, high = (100 * end for end in requests.intervals[name])
            inside = [f"{100 * requests.inside[name]:.1f}"] if requests.inside else []
            rows.append((label, f"{100 * requests.unseen[name]:.1f}", f"{low:.1f} to {high:.1f}", *inside))
    return rows


def _ensembles(title: str, curves: Mapping[tuple[str, ...], EnsembleCurve], *first: str) -> Table:
    """One row for each method and size. curves: by what the first columns say."""
    rows = [
        (*key, str(size), f"{100 * accuracy:.1f}", f"{nll:.3f}", f"{100 * error:.1f}")
        for key, curve in curves.items()
        for size, accuracy, nll, error in zip(
            curve.sizes, curve.accuracy, curve.nll, curve.calibration_error, strict=True
        )
    ]
    columns = (*first, "networks", "accuracy [%]", "NLL", "calibration error [%]")
    return Table(title, columns, rows, "Probabilities averaged. Means over tasks and groups.")
