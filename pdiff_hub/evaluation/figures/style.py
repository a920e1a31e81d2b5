"""What all figures share: a colour and a marker for every method, the page they are drawn on, and how it is written.

Colours come from the Okabe-Ito palette (safe for colour-blind readers); markers, filled or open, tell methods apart in
greyscale. The same data gives the same bytes: no dates, fixed ids in the SVG.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdiff_hub.safe_files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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

    @property
    def line(self) -> str:
        """Solid for filled markers, dashed for open ones: some methods share a colour."""
        return "-" if self.filled else "--"


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


@contextmanager
def page(width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches, laid out when it is saved; the house's fonts and lines hold inside the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_RC):
        yield Figure(figsize=(width, height), layout="constrained")


def marker_look(style: MethodStyle) -> dict[str, Any]:
    """Arguments of `scatter` for a method's markers. Filled ones get a white edge, so that neighbours stay apart."""
    return {
        "marker": style.marker,
        "facecolors": style.color if style.filled else "none",
        "edgecolors": "white" if style.filled else style.color,
        "linewidths": 0.5 if style.filled else 1.0,
    }


def plain_axes(axes: Axes) -> None:
    """A light grid below the data, no box around it, and numbers in full instead of offsets."""
    axes.ticklabel_format(useOffset=False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def limits(low: float, high: float, least: float) -> tuple[float, float]:
    """Ends of an axis for data from `low` to `high`, with a margin; data closer together than `least` stay at the top.

    matplotlib would spread equal values by 5 % to either side, so to accuracies and similarities that cannot be.
    """
    low = min(low, high - least)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def footnote(figure: Figure, text: str) -> None:
    """How to read the figure, in small letters at its foot."""
    figure.supxlabel(text, fontsize=7.5)


def save(figure: Figure, stem: str | Path) -> list[Path]:
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
