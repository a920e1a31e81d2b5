"""Networks as points: what the figures of accuracy against similarity or novelty are given, checked and drawn from.

Shapes: B networks of a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError, require_known
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, MethodStyle, marker_look

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class MethodPoints:
    """A point a network. accuracy_B: on test, fractions 0..1. similarity_B: highest IoU to an original, 0..1 or NaN."""

    accuracy_B: Tensor
    similarity_B: Tensor

    def label(self, style: MethodStyle) -> str:
        """The method, how many networks it has, and below that how many have no similarity, so cannot be drawn."""
        undefined = int(self.similarity_B.isnan().sum())
        label = style.label if len(self.similarity_B) == 1 else f"{style.label} ({len(self.similarity_B)})"
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


def check_fractions(name: str, what: str, values: Tensor) -> None:
    """ValueError unless all values lie in 0..1."""
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise PdiffError(f"{name}: {what} run outside 0..1; expected fractions.")


def check_points(points: Mapping[str, MethodPoints]) -> None:
    """ValueError for no method, an unknown one, shapes other than two equal [B], and numbers outside 0..1."""
    if not points:
        raise PdiffError("there are no points to draw; expected at least one method.")
    require_known("method", points, METHOD_STYLE)
    for name, method in points.items():
        accuracy_B, similarity_B = method.accuracy_B, method.similarity_B
        if accuracy_B.ndim != 1 or accuracy_B.shape != similarity_B.shape or len(accuracy_B) == 0:
            raise PdiffError(
                f"{name}: accuracies have shape {list(accuracy_B.shape)}, similarities {list(similarity_B.shape)}; "
                "expected one of each a network, [B]."
            )
        check_fractions(name, "accuracies", accuracy_B)
        check_fractions(name, "similarities", similarity_B[~similarity_B.isnan()])
