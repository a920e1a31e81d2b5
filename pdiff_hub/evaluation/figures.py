"""The figures, as PNG and SVG: drawn on matplotlib's object interface, with one colour and marker a method everywhere.

Colours come from the Okabe-Ito palette (safe for colour-blind readers); markers, filled or open, tell methods apart in
greyscale. The same data gives the same bytes: no dates, fixed ids in the SVG.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdiff_hub.names import unknown_name
from pdiff_hub.safe_files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # travels with matplotlib: the same picture on every machine
    "font.size": 9.0,
    "axes.linewidth": 0.8,
    "svg.hashsalt": "pdiff-hub",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class MethodStyle:
    """How a method looks in every figure. filled: whether its marker is; filled and open ones differ in greyscale."""

    label: str
    color: str
    marker: str
    filled: bool = True
    size: float = 5.0


METHOD_STYLE: Mapping[str, MethodStyle] = {
    "original": MethodStyle("originals", "#0072B2", "o", filled=False),
    "generated": MethodStyle("generated", "#D55E00", "^", size=5.5),
    "ensemble": MethodStyle("average of all originals", "#000000", "*", size=11.0),
    "average_16": MethodStyle("averages of 16", "#555555", "P", filled=False, size=6.0),
    "gaussian": MethodStyle("Gaussian per coordinate", "#009E73", "s", filled=False),
    "low_rank_gaussian": MethodStyle("low-rank Gaussian", "#009E73", "s"),
    "noise_raw": MethodStyle("noise in raw units", "#E69F00", "X", filled=False, size=6.0),
    "noise_standardised": MethodStyle("noise after standardising", "#E69F00", "X", size=6.0),
    "interpolation": MethodStyle("interpolations of two", "#CC79A7", "D", filled=False),
    "fine_tuned": MethodStyle("originals fine-tuned further", "#56B4E9", "v", filled=False),
    "autoencoder": MethodStyle("Gaussian in latent space", "#CC79A7", "D"),
}


@dataclass(frozen=True, eq=False)
class MethodPoints:
    """A point a network. accuracy_B: on test, fractions 0..1. similarity_B: highest IoU to an original, 0..1 or NaN."""

    accuracy_B: Tensor
    similarity_B: Tensor


def accuracy_similarity_figure(points: Mapping[str, MethodPoints], stem: str | Path, *, title: str = "") -> list[Path]:
    """Accuracy against the highest similarity to an original (p-diff's figure 4b), one point a network.

    points: by name of `METHOD_STYLE`, drawn in its order; for "original" the similarity leaves the network itself out.
    Networks without a similarity (neither they nor any original have an error) cannot be drawn: the legend counts them.
    stem: path without suffix. Writes `stem`.png (300 dpi) and `stem`.svg, whole or not at all, and returns both paths.
    Raises ValueError for an unknown method, shapes other than two equal [B], and numbers outside 0..1.
    """
    _check(points)
    return _save(_draw_accuracy_similarity(points, title), stem)


def _draw_accuracy_similarity(points: Mapping[str, MethodPoints], title: str) -> Figure:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_RC):
        legend_rows = (len(points) + 1) // 2
        figure = Figure(figsize=(5.2, 3.4 + 0.18 * legend_rows), layout="constrained")
        axes = figure.add_subplot()
        largest = 1
        for order, (name, style) in enumerate(METHOD_STYLE.items()):
            if name not in points:
                continue
            accuracy_B, similarity_B = points[name].accuracy_B.double(), points[name].similarity_B.double()
            defined = ~similarity_B.isnan()
            label = style.label if len(defined) == 1 else f"{style.label} ({len(defined)})"
            if not bool(defined.all()):
                label += f", {int((~defined).sum())} without errors not drawn"
            # Test sets are small and checkpoints alike: many points coincide. One marker for all that do, larger for
            # more, shows them without moving them.
            drawn, counts = torch.stack([similarity_B, 100 * accuracy_B])[:, defined].unique(dim=1, return_counts=True)
            largest = max([largest, *counts.tolist()])
            look: dict[str, Any] = {
                "marker": style.marker,
                "facecolors": style.color if style.filled else "none",
                "edgecolors": "white" if style.filled else style.color,
                "linewidths": 0.5 if style.filled else 1.0,
                "alpha": 0.8 if len(defined) > 1 else 1.0,
                "zorder": 3 + order,
            }
            sizes = style.size**2 * (1 + 0.5 * counts.double().log2())
            axes.scatter(drawn[0].numpy(), drawn[1].numpy(), s=sizes.numpy(), **look)
            axes.scatter([], [], s=style.size**2, label=label, **look)  # the legend shows the size of one network
        axes.set_xlabel("highest similarity to an original (IoU of wrong predictions, 0 to 1)")
        axes.set_ylabel("accuracy on test (%)")
        axes.set_title(title, fontsize=10)
        axes.ticklabel_format(useOffset=False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.05)
        note = f"Larger markers: several networks at one point (up to {largest})" if largest > 1 else None
        figure.legend(
            loc="outside lower center", ncols=2, frameon=False, handletextpad=0.3, title=note, title_fontsize=8
        )
    return figure


def _save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write stem.png and stem.svg without dates or program versions, each under a temporary name first."""
    from matplotlib import rc_context

    paths = []
    with rc_context(_RC):
        undated: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
        for suffix, metadata in undated.items():
            path = Path(f"{stem}.{suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                figure.savefig(temporary, format=suffix, dpi=300, metadata=metadata)
            paths.append(path)
    return paths


def _check(points: Mapping[str, MethodPoints]) -> None:
    if not points:
        raise ValueError("there are no points to draw; expected at least one method.")
    for name, method in points.items():
        if name not in METHOD_STYLE:
            raise unknown_name("method", name, METHOD_STYLE)
        accuracy_B, similarity_B = method.accuracy_B, method.similarity_B
        if accuracy_B.ndim != 1 or accuracy_B.shape != similarity_B.shape or len(accuracy_B) == 0:
            raise ValueError(
                f"{name}: accuracies have shape {list(accuracy_B.shape)}, similarities {list(similarity_B.shape)}; "
                "expected one of each a network, [B]."
            )
        defined = similarity_B[~similarity_B.isnan()]
        for what, values in (("accuracies", accuracy_B), ("similarities", defined)):
            if not bool(((values >= 0) & (values <= 1)).all()):
                raise ValueError(f"{name}: {what} run outside 0..1; expected fractions.")
