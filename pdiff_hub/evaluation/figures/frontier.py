"""Accuracy against novelty, with the step frontier of every method (arXiv 2506.07998).

Shapes: B networks of a method, F corners of its frontier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdiff_hub.evaluation.figures.points import check_points, largest_note, legend_label, scatter
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, MethodStyle, limits, marker_look, page, plain_axes, save
from pdiff_hub.evaluation.points import MethodPoints, Novelty, shared_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMALL = 0.55  # size of a marker that is not on a frontier, relative to one on it
_ZOOM_FROM = 2.5  # a second panel is drawn if it enlarges the axis of accuracies by more than this factor


@dataclass(frozen=True)
class _Axis:
    """How a kind of novelty is drawn. farthest: the axis ends here, where points lie beyond it."""

    word: str
    label: str
    farthest: float


_AXES: Mapping[Novelty, _Axis] = {
    "errors": _Axis("novelty", "novelty (1 - highest IoU to an original, 0 to 1)", math.inf),
    "distance": _Axis(
        "distance",
        "distance to the nearest original /\nthe originals' own (1: as far as\noriginals are from each other)",
        3.0,  # noise may lie at 50 while all others lie at 0..2
    ),
}


@dataclass(frozen=True)
class _Panel:
    """The title of a panel and the ends of its two axes."""

    title: str
    novelty: tuple[float, float]
    accuracy: tuple[float, float]


def frontier_figure(points: Mapping[str, MethodPoints], stem: str | Path) -> list[Path]:
    """Accuracy on test against novelty of errors or by distance, one small faint point per network.

    A line per method shows the highest accuracy at each novelty or more, with full markers at its corners.

    points: by name in `METHOD_STYLE`, all with one kind of novelty. Networks without a novelty are not drawn; the
    legend counts them. An axis of distances ends at 3; a note counts the networks beyond, whose lines run out of the
    picture. If methods of low accuracy press the others together, a second panel shows the accuracies from the lowest
    original or generated network on.
    Returns the paths of `stem`.png and `stem`.svg. Raises ValueError for no method, for an unknown one, and for
    different kinds of novelty.
    """
    check_points(points)
    axis = _AXES[shared_kind(points.values())]
    drawn = {name: style for name, style in METHOD_STYLE.items() if name in points}
    panels = _panels(points, axis.farthest)
    columns = 2 if len(panels) == 1 else 3
    with page((5.2, 7.0)[len(panels) - 1], 3.5 + 0.18 * -(-len(drawn) // columns)) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        largest = 1
        for axes, panel in zip(grid, panels, strict=True):
            for order, (name, style) in enumerate(drawn.items()):
                largest = max(largest, _draw(axes, points[name], style, order, axis.farthest))
            plain_axes(axes)
            axes.set_xlim(*panel.novelty)
            axes.set_ylim(*panel.accuracy)
            axes.set_xlabel(axis.label)
            if len(panels) > 1:
                axes.set_title(panel.title, fontsize=9)
        grid[0].set_ylabel("accuracy on test (%)")
        for name, style in drawn.items():
            grid[0].scatter([], [], s=style.size**2, label=legend_label(points[name], style), **marker_look(style))
        lines_note = f"Lines: highest accuracy at that {axis.word} or more"
        notes = [lines_note, largest_note(largest), _beyond_note(points, axis.farthest)]
        figure.legend(
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=8,
            handletextpad=0.3,
            columnspacing=1.0,
            title="\n".join(note for note in notes if note),
            title_fontsize=8,
        )
    return save(figure, stem)


def _draw(axes: Axes, method: MethodPoints, style: MethodStyle, order: int, farthest: float) -> int:
    """Draw a method's networks and its frontier; return the highest number of networks that share a point."""
    defined_B = ~method.novelty_B.isnan()
    novelty_B, accuracy_B = method.novelty_B[defined_B], 100 * method.accuracy_B[defined_B]
    if not len(novelty_B):
        return 0
    near_B = novelty_B <= farthest
    # zorder falls with `order`, so that originals and generated networks lie on top of the baselines.
    faint: dict[str, Any] = {"alpha": 0.3, "zorder": 20 - order}
    largest = scatter(axes, novelty_B[near_B], accuracy_B[near_B], replace(style, size=_SMALL * style.size), faint)
    novelty_F, accuracy_F = _frontier(novelty_B, accuracy_B)
    # The line runs level from novelty 0 to the first corner; at each corner it steps down to the height of the next.
    axes.plot(
        [0.0, *novelty_F.tolist()],
        [float(accuracy_F[0]), *accuracy_F.tolist()],
        color=style.color,
        drawstyle="steps-pre",
        linewidth=1.3,
        linestyle=style.line,
        zorder=40 - order,
    )
    axes.scatter(novelty_F.numpy(), accuracy_F.numpy(), s=style.size**2, zorder=60 - order, **marker_look(style))
    return largest


def _frontier(novelty_B: Tensor, accuracy_B: Tensor) -> tuple[Tensor, Tensor]:
    """Novelty and accuracy, [F] each, of networks that no other beats in both, by rising novelty, falling accuracy."""
    order_B = torch.argsort(accuracy_B, descending=True)
    order_B = order_B[torch.argsort(novelty_B[order_B], descending=True, stable=True)]
    best_B = accuracy_B[order_B].cummax(dim=0).values
    corner_B = torch.cat([torch.ones(1, dtype=torch.bool), best_B[1:] > best_B[:-1]])
    corners_F = order_B[corner_B].flip(0)
    return novelty_B[corners_F], accuracy_B[corners_F]


def _beyond_note(points: Mapping[str, MethodPoints], farthest: float) -> str | None:
    """How many networks lie beyond the end of the axis, and how far; None if there are none."""
    novelty_M = torch.cat([method.novelty_B for method in points.values()])
    beyond_M = novelty_M[novelty_M > farthest]
    if not len(beyond_M):
        return None
    return f"Networks beyond {farthest:g}, not drawn: {len(beyond_M)} (up to {float(beyond_M.max()):.3g})"


def _panels(points: Mapping[str, MethodPoints], farthest: float) -> list[_Panel]:
    """One panel with all networks that can be drawn, and perhaps one with the high accuracies."""
    defined = {name: ~method.novelty_B.isnan() for name, method in points.items()}
    accuracies = {name: 100 * method.accuracy_B[defined[name]] for name, method in points.items()}
    accuracy_M = torch.cat(list(accuracies.values()))
    novelty_M = torch.cat([method.novelty_B[defined[name]] for name, method in points.items()])
    if not len(accuracy_M):
        return [_Panel("", (0.0, 1.0), (0.0, 100.0))]
    lowest, highest = accuracy_M.aminmax()
    panels = [_Panel("all networks", _ends(novelty_M, farthest), limits(float(lowest), float(highest), 0.1))]
    judged = [accuracies[name] for name in ("original", "generated") if name in points and len(accuracies[name])]
    if judged:
        low, high = limits(float(torch.cat(judged).min()), float(highest), 0.1)
        if float(highest - lowest) > _ZOOM_FROM * (high - low):
            ends = _ends(novelty_M[accuracy_M >= low], farthest)
            panels.append(_Panel(f"accuracies from {low:.1f} % on", ends, (low, high)))
    return panels


def _ends(novelty_M: Tensor, farthest: float) -> tuple[float, float]:
    """The ends of an axis of novelties."""
    low, high = limits(0.0, min(max(0.01, float(novelty_M.max())), farthest), 0.0)
    return low, min(high, farthest)
