"""p-diff's figure 5b (arXiv 2402.13144): how much generated networks copy, by the number of checkpoints trained on.

Shapes: B generated networks, L levels (heights) of their points.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, footnote, limits, marker_look, page, plain_axes, save
from pdiff_hub.evaluation.points import check_fractions

_LEVELS = 60  # the axis is cut into this many heights; points of one height stand side by side
# Columns are 1 apart: distance of points in a row, and half the width of a full row, whose points move closer.
_SPACING, _HALF_WIDTH = 0.055, 0.4


def checkpoints_figure(similarity: Mapping[int, Tensor], stem: str | Path) -> list[Path]:
    """Highest similarity of each generated network to an original, one column per number of checkpoints K.

    similarity: by K, each [B], IoU 0..1. NaN (no errors on either side) is not drawn, but counted below the column; a
    K with NaN only has no column. Points of about the same height stand side by side. A line marks the mean, a box the
    middle half. Returns the paths of `stem`.png and `stem`.svg. Raises ValueError for no K, a K below 1, other shapes,
    numbers outside 0..1, and if all values are NaN.
    """
    drawn = _defined(similarity)
    all_values = torch.cat(list(drawn.values()))
    bottom, top = limits(float(all_values.min()), float(all_values.max()), 0.01)
    style = METHOD_STYLE["generated"]
    with page(max(3.4, 0.8 + 0.88 * len(drawn)), 3.6) as figure:
        axes = figure.add_subplot()
        plain_axes(axes)
        axes.grid(visible=False, axis="x")
        labels = []
        for column, (K, values_B) in enumerate(drawn.items()):
            first, third = torch.quantile(values_B, torch.tensor([0.25, 0.75]).double()).tolist()
            axes.bar(
                column,
                third - first,
                bottom=first,
                width=0.9,
                color="#e4e4e4",
                edgecolor="#888888",
                linewidth=0.6,
                zorder=2,
            )
            across_B = column + _side_by_side(values_B, (top - bottom) / _LEVELS)
            axes.scatter(
                across_B.numpy(),
                values_B.numpy(),
                s=0.7 * style.size**2,
                zorder=3,
                **{**marker_look(style), "linewidths": 0.0, "alpha": 0.7},
            )
            mean = float(values_B.mean())
            axes.hlines(mean, column - 0.45, column + 0.45, color="black", linewidth=1.4, zorder=4)
            undefined = len(similarity[K]) - len(values_B)
            note = f"\n{undefined} left out" if undefined else ""
            labels.append(f"{K:,}\nmean {mean:.3f}\nn = {len(values_B)}{note}")
        axes.set_xticks(range(len(drawn)), labels, fontsize=8)
        axes.set_xlim(-0.6, len(drawn) - 0.4)
        axes.set_xlabel("number of checkpoints trained on")
        axes.set_ylabel("highest similarity to an original\n(IoU of wrong predictions, 0 to 1)")
        axes.set_ylim(bottom, top)
        footnote(figure, "marker: one network; box: middle half; line: mean")
    return save(figure, stem)


def _side_by_side(values_B: Tensor, level: float) -> Tensor:
    """Sideways offsets, symmetric about 0, that keep points of one level from covering each other."""
    _, level_B = (values_B / level).round().unique(return_inverse=True)
    order_B = torch.argsort(level_B, stable=True)
    count_L = torch.bincount(level_B)
    start_L = count_L.cumsum(0) - count_L
    rank_B = torch.empty_like(level_B)
    rank_B[order_B] = torch.arange(len(values_B)) - start_L[level_B[order_B]]
    half_L = (count_L.double() - 1) / 2
    spacing_L = (_HALF_WIDTH / half_L).clamp_max(_SPACING)
    return spacing_L[level_B] * (rank_B - half_L[level_B])


def _defined(similarity: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The values that are not NaN, float64, by ascending K; a K without any is left out."""
    if not similarity or min(similarity) < 1:
        raise PdiffError(f"the numbers of checkpoints are {sorted(similarity)}; expected at least one, all positive.")
    drawn = {}
    for K, values_B in sorted(similarity.items()):
        if values_B.ndim != 1:
            raise PdiffError(f"K = {K}: similarities have shape {list(values_B.shape)}; expected one per network, [B].")
        defined_B = values_B[~values_B.isnan()].double()
        check_fractions(f"K = {K}: similarities", defined_B)
        if len(defined_B):
            drawn[K] = defined_B
    if not drawn:
        raise PdiffError("there is no similarity to draw; expected at least one that is not NaN.")
    return drawn
