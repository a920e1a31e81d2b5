"""Networks as points: what the figures of accuracy against similarity or novelty are given, checked and drawn from.

Shapes: B networks of a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError, require_known
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, MethodStyle, marker_look
from pdiff_hub.evaluation.points import MethodPoints

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def legend_label(points: MethodPoints, style: MethodStyle) -> str:
    """The method, how many networks it has, and below that how many have no similarity, so cannot be drawn."""
    count, undefined = len(points.similarity_B), points.num_undefined
    label = style.label if count == 1 else f"{style.label} ({count})"
    return f"{label},\n{undefined} without errors not drawn" if undefined else label


def scatter(axes: Axes, x_B: Tensor, y_B: Tensor, style: MethodStyle, look: Mapping[str, Any] | None = None) -> int:
    """Draw a marker a point with `style` and what `look` adds to it; -> the most networks that share one point.

    Test sets are small and networks alike: many points coincide. One marker for all that do, larger for more, shows
    them without moving them.
    """
    drawn, counts = torch.stack([x_B, y_B]).unique(dim=1, return_counts=True)
    sizes = style.size**2 * (1 + 0.5 * counts.double().log2())
    axes.scatter(drawn[0].numpy(), drawn[1].numpy(), s=sizes.numpy(), **{**marker_look(style), **(look or {})})
    return max(counts.tolist(), default=0)


def largest_note(largest: int) -> str | None:
    """What a figure says about the markers of `scatter`, if any stands for several networks."""
    return f"Larger markers: several networks at one point (up to {largest})" if largest > 1 else None


def check_points(points: Mapping[str, MethodPoints]) -> None:
    """ValueError for no method, and for an unknown one."""
    if not points:
        raise PdiffError("there are no points to draw; expected at least one method.")
    require_known("method", points, METHOD_STYLE)
