"""p-diff's figure 4a (arXiv 2402.13144): similarity among originals, among generated networks, and between both.

Shapes: M comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError, require_known
from pdiff_hub.evaluation.figures.style import (
    METHOD_STYLE,
    MethodStyle,
    footnote,
    limits,
    marker_look,
    page,
    plain_axes,
    save,
)
from pdiff_hub.evaluation.points import check_fractions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GENERATED = METHOD_STYLE["generated"]
_ROWS: Mapping[str, MethodStyle] = {
    "original_original": replace(METHOD_STYLE["original"], label="originals with\neach other"),
    "generated_generated": replace(_GENERATED, label="generated with\neach other"),
    "original_generated": MethodStyle("originals with\ngenerated", "#555555", "d", size=6.0),
    "original_generated_max": replace(_GENERATED, label="generated with the\nmost similar original"),
}
_BINS = 50


def similarity_figure(similarity: Mapping[str, Tensor], stem: str | Path) -> list[Path]:
    """Four distributions of IoU, each as a histogram (scaled to its own highest bar) above a box of its quartiles.

    similarity: [M] each, 0..1, under the names that `similarity_summary` gives their means: original_original (all
    pairs), generated_generated, original_generated, and original_generated_max (the highest of each generated network).
    Any of them may be missing. NaN (a pair without any error) is not drawn, but counted in the label.
    Returns the paths of `stem`.png and `stem`.svg. Raises ValueError for an unknown name, for nothing to draw, for
    other shapes, and for numbers outside 0..1.
    """
    drawn = _defined(similarity)
    lowest = min(0.99, *(float(defined_M.min()) for defined_M in drawn.values()))
    edges = torch.linspace(lowest, 1.0, _BINS + 1, dtype=torch.float64)
    with page(5.2, 0.9 + 0.75 * len(drawn)) as figure:
        axes = figure.add_subplot()
        plain_axes(axes)
        labels = []
        for row, (name, defined_M) in enumerate(drawn.items()):
            style = _ROWS[name]
            _draw_row(axes, row, defined_M, edges, style)
            undefined = len(similarity[name]) - len(defined_M)
            note = f"\n({undefined:,} without errors left out)" if undefined else ""
            labels.append(f"{style.label}\nmean {float(defined_M.mean()):.3f}, n = {len(defined_M):,}{note}")
        axes.set_yticks(range(len(drawn)), labels, fontsize=7.5)
        axes.set_xlim(*limits(lowest, 1.0, 0.0))
        axes.set_ylim(len(drawn) - 0.55, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("similarity (IoU of wrong predictions, 0 to 1)")
        footnote(figure, "box: middle half and median; line: lowest to highest; marker: mean")
    return save(figure, stem)


def _draw_row(axes: Axes, row: int, values_M: Tensor, edges: Tensor, style: MethodStyle) -> None:
    counts = torch.histogram(values_M, edges).hist
    top = row - 0.04
    axes.stairs(
        (top - 0.45 * counts / counts.max()).numpy(),
        edges.numpy(),
        baseline=top,
        fill=True,
        color=style.color,
        alpha=0.5,
    )
    middle = row + 0.14
    shares = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    low, first, median, third, high = torch.quantile(values_M, shares).tolist()
    axes.hlines(middle, low, high, color="black", linewidth=0.8)
    axes.barh(
        middle, third - first, left=first, height=0.2, facecolor="white", edgecolor="black", linewidth=0.8, zorder=3
    )
    axes.vlines(median, middle - 0.1, middle + 0.1, color="black", linewidth=1.6, zorder=4)
    axes.scatter([float(values_M.mean())], [middle], s=2 * style.size**2, zorder=5, **marker_look(style))


def _defined(similarity: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values that are not NaN, float64, in the order of the figure; a row without any is left out."""
    require_known("comparison", similarity, _ROWS)
    for name, values_M in similarity.items():
        if values_M.ndim != 1:
            raise PdiffError(
                f"{name}: similarities have shape {list(values_M.shape)}; expected one per comparison, [M]."
            )
        check_fractions(f"{name}: similarities", values_M[~values_M.isnan()])
    drawn = {name: similarity[name].double() for name in _ROWS if name in similarity}
    drawn = {name: values_M[~values_M.isnan()] for name, values_M in drawn.items()}
    drawn = {name: values_M for name, values_M in drawn.items() if len(values_M)}
    if not drawn:
        raise PdiffError("there is no similarity to draw; expected at least one that is not NaN.")
    return drawn
