"""Requests for tasks that nobody trained: accuracy by way, and against the number of labelled examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pdiff_hub.evaluation.figures.style import page, plain_axes, save
from pdiff_hub.evaluation.request_names import CEILING, DATA_FREE, FIT_NAMES, UNSEEN_NAMES
from pdiff_hub.records import FitRequests, Requests

_OURS, _SIMPLE, _MORE, _BEST = "#D55E00", "#0072B2", "#555555", "#000000"
_OWN = ("generated", "ensemble", "gaussian", "warm_start", "fit")


def requests_figure(requests: Requests, stem: str | Path) -> list[Path]:
    """One row for each way to get a network for a held-out task: mean accuracy and its 95 % interval over tasks.

    Returns the paths of `stem`.png and `stem`.svg.
    """
    names = [name for name in UNSEEN_NAMES if name in requests.unseen]
    names.sort(key=requests.unseen.__getitem__)
    with page(6.4, 0.9 + 0.27 * len(names)) as figure:
        axes = figure.subplots()
        plain_axes(axes)
        for row, name in enumerate(names):
            low, high = (100 * end for end in requests.intervals[name])
            color, marker = (_OURS, "^") if name in _OWN else (_BEST, "*") if name == CEILING else (_SIMPLE, "o")
            axes.plot([low, high], [row, row], color=color, linewidth=1.2)
            axes.scatter([100 * requests.unseen[name]], [row], color=color, marker=marker, s=36, zorder=3)
        axes.set_yticks(range(len(names)), [UNSEEN_NAMES[name] for name in names])
        axes.set_xlabel(f"accuracy on test, mean over {requests.num_unseen} tasks never seen (%)")
        axes.margins(y=0.04)
    return save(figure, stem)


def fit_figure(fit: FitRequests, stem: str | Path) -> list[Path]:
    """Accuracy against the number of labelled examples, one line for each way to use them.

    Returns the paths of `stem`.png and `stem`.svg.
    """
    numbers = sorted(fit.labels, key=int)
    markers: Mapping[str, str] = dict(zip(FIT_NAMES, "^osDvPXhp<>", strict=True))
    with page(7.0, 5.0) as figure:
        axes = figure.subplots()
        plain_axes(axes)
        for name, label in FIT_NAMES.items():
            there = [number for number in numbers if name in fit.labels[number]]
            if not there:
                continue
            color = _OURS if name in _OWN else _SIMPLE if name in DATA_FREE else _MORE
            values = [100 * fit.labels[number][name] for number in there]
            style = "-" if name in _OWN else "--" if name in DATA_FREE else ":"
            axes.plot(
                list(map(int, there)), values, style, color=color, marker=markers[name], linewidth=1.1, label=label
            )
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(list(map(int, numbers)), numbers)
        axes.set_xlabel("labelled examples")
        axes.set_ylabel(f"accuracy on test, {fit.num_tasks} tasks never seen (%)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return save(figure, stem)
