"""Networks as points: checks and drawing for the figures of accuracy against similarity and against novelty.

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
    """The method, its number of networks, and below it the number that have no novelty and so are not drawn."""
    count, undefined = len(points.novelty_B), points.num_undefined
    label = style.label if count == 1 else f"{style.label} ({count})"
    return f"{label},\n{undefined} without errors not drawn" if undefined else label


def scatter(axes: Axes, x_B: Tensor, y_B: Tensor, style: MethodStyle, look: Mapping[str, Any] | None = None) -> int:
    """Draw one marker per point; `look` adds to `style`. Return the highest number of networks that share a point.

    Test sets are small and networks alike, so many points coincide. Networks at one point share a marker, which grows
    with their number; so they are seen, and no point is moved.
    """
    drawn, counts = torch.stack([x_B, y_B]).unique(dim=1, return_counts=True)
    sizes = style.size**2 * (1 + 0.5 * counts.double().log2())
    axes.scatter(drawn[0].numpy(), drawn[1].numpy(), s=sizes.numpy(), **{**marker_look(style), **(look or {})})
    return max(counts.tolist(), default=0)


def largest_note(largest: int) -> str | None:
    """What a figure says about the markers of `scatter`; None if each stands for one network."""
    return f"Larger markers: several networks at one point (up to {largest})" if largest > 1 else None


def check_points(points: Mapping[str, MethodPoints]) -> None:
    """Raise ValueError for no method, and for an unknown one."""
    if not points:
        raise PdiffError("there are no points to draw; expected at least one method.")
    require_known("method", points, METHOD_STYLE)
