"""p-diff's figure 4b (arXiv 2402.13144): accuracy against the highest similarity to an original.

Shapes: B networks of a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.figures.points import check_points, largest_note, legend_label, scatter
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, marker_look, page, plain_axes, save
from pdiff_hub.evaluation.points import MethodPoints, shared_kind


def accuracy_similarity_figure(points: Mapping[str, MethodPoints], stem: str | Path, *, title: str = "") -> list[Path]:
    """Accuracy against the highest similarity to an original (p-diff's figure 4b), one point per network.

    points: from similarities, by name in `METHOD_STYLE`, drawn in its order. For "original", the similarity is to the
    other originals.
    Networks without a similarity (neither they nor any original make an error) are not drawn; the legend counts them.
    stem: path without suffix. Writes `stem`.png (300 dpi) and `stem`.svg, whole or not at all, and returns both paths.
    Raises ValueError for no method, for an unknown one, and for points from distances.
    """
    check_points(points)
    if shared_kind(points.values()) != "errors":
        raise PdiffError("the points come from distances; expected points from similarities (`from_similarities`).")
    legend_rows = (len(points) + 1) // 2
    with page(5.2, 3.4 + 0.18 * legend_rows) as figure:
        axes = figure.add_subplot()
        largest = 1
        for order, (name, style) in enumerate(METHOD_STYLE.items()):
            if name not in points:
                continue
            method = points[name]
            accuracy_B, similarity_B = method.accuracy_B, 1 - method.novelty_B
            defined_B = ~similarity_B.isnan()
            look: dict[str, Any] = {"alpha": 0.8 if len(defined_B) > 1 else 1.0, "zorder": 30 - order}
            count = scatter(axes, similarity_B[defined_B], 100 * accuracy_B[defined_B], style, look)
            largest = max(largest, count)
            # The legend shows the size of one network.
            axes.scatter([], [], s=style.size**2, label=legend_label(method, style), **marker_look(style), **look)
        axes.set_xlabel("highest similarity to an original (IoU of wrong predictions, 0 to 1)")
        axes.set_ylabel("accuracy on test (%)")
        axes.set_title(title, fontsize=10)
        plain_axes(axes)
        axes.margins(0.05)
        figure.legend(
            loc="outside lower center",
            ncols=2,
            frameon=False,
            handletextpad=0.3,
            title=largest_note(largest),
            title_fontsize=8,
        )
    return save(figure, stem)
