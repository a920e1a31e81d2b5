"""Accuracy against novelty, with the step frontier of every method (arXiv 2506.07998).

Shapes: B networks of a method, F corners of its frontier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdiff_hub.evaluation.figures.points import check_points, largest_note, legend_label, scatter
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, MethodStyle, limits, marker_look, page, plain_axes, save
from pdiff_hub.evaluation.points import MethodPoints

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMALL = 0.55  # size of a marker that is not on a frontier, relative to one on it
_ZOOM_FROM = 2.5  # a second panel is drawn if it enlarges the axis of accuracies by more than this factor


@dataclass(frozen=True)
class _Panel:
    """The title of a panel and the ends of its two axes."""

    title: str
    novelty: tuple[float, float]
    accuracy: tuple[float, float]


def frontier_figure(points: Mapping[str, MethodPoints], stem: str | Path) -> list[Path]:
    """Accuracy on test against novelty = 1 - highest IoU to an original, one small faint point per network.

    A line per method shows the highest accuracy at each novelty or more, with full markers at its corners.

    points: by name in `METHOD_STYLE`, as for `accuracy_similarity_figure`. Networks without a similarity are not drawn;
    the legend counts them. If methods of low accuracy press the others together, a second panel shows the accuracies
    from the lowest original or generated network on.
    Returns the paths of `stem`.png and `stem`.svg. Raises ValueError for no method and for an unknown one.
    """
    check_points(points)
    drawn = {name: style for name, style in METHOD_STYLE.items() if name in points}
    panels = _panels(points)
    columns = 2 if len(panels) == 1 else 3
    with page((5.2, 7.0)[len(panels) - 1], 3.5 + 0.18 * -(-len(drawn) // columns)) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        largest = 1
        for axes, panel in zip(grid, panels, strict=True):
            for order, (name, style) in enumerate(drawn.items()):
                largest = max(largest, _draw(axes, points[name], style, order))
            plain_axes(axes)
            axes.set_xlim(*panel.novelty)
            axes.set_ylim(*panel.accuracy)
            axes.set_xlabel("novelty (1 - highest IoU to an original, 0 to 1)")
            if len(panels) > 1:
                axes.set_title(panel.title, fontsize=9)
        grid[0].set_ylabel("accuracy on test (%)")
        for name, style in drawn.items():
            grid[0].scatter([], [], s=style.size**2, label=legend_label(points[name], style), **marker_look(style))
        notes = ["Lines: highest accuracy at that novelty or more", largest_note(largest)]
        figure.legend(
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            handletextpad=0.3,
            title="\n".join(note for note in notes if note),
            title_fontsize=8,
        )
    return save(figure, stem)


def _draw(axes: Axes, method: MethodPoints, style: MethodStyle, order: int) -> int:
    defined_B = ~method.similarity_B.isnan()
    novelty_B, accuracy_B = 1 - method.similarity_B[defined_B].double(), 100 * method.accuracy_B[defined_B].double()
    if not len(novelty_B):
        return 0
    # zorder falls with `order`, so that originals and generated networks lie on top of the baselines.
    faint: dict[str, Any] = {"alpha": 0.3, "zorder": 20 - order}
    largest = scatter(axes, novelty_B, accuracy_B, replace(style, size=_SMALL * style.size), faint)
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


def _panels(points: Mapping[str, MethodPoints]) -> list[_Panel]:
    """One panel with all networks that can be drawn, and perhaps one with the high accuracies."""
    defined = {name: ~method.similarity_B.isnan() for name, method in points.items()}
    accuracies = {name: 100 * method.accuracy_B[defined[name]].double() for name, method in points.items()}
    accuracy_M = torch.cat(list(accuracies.values()))
    novelty_M = torch.cat([1 - method.similarity_B[defined[name]].double() for name, method in points.items()])
    if not len(accuracy_M):
        return [_Panel("", (0.0, 1.0), (0.0, 100.0))]
    lowest, highest = accuracy_M.aminmax()
    novelty = limits(0.0, max(0.01, float(novelty_M.max())), 0.0)
    panels = [_Panel("all networks", novelty, limits(float(lowest), float(highest), 0.1))]
    judged = [accuracies[name] for name in ("original", "generated") if name in points and len(accuracies[name])]
    if judged:
        low, high = limits(float(torch.cat(judged).min()), float(highest), 0.1)
        if float(highest - lowest) > _ZOOM_FROM * (high - low):
            width = limits(0.0, max(0.01, float(novelty_M[accuracy_M >= low].max())), 0.0)
            panels.append(_Panel(f"accuracies from {low:.1f} % on", width, (low, high)))
    return panels
