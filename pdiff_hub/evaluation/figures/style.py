"""What all figures share: a colour and a marker for each method, the page, and how it is written to a file.

Colours come from the Okabe-Ito palette, and one from Paul Tol's; both are safe for colour-blind readers. Markers,
filled or open, tell methods apart in greyscale. The same data gives the same bytes: files hold no dates, and the SVG
has fixed ids.
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

_DPI = 300
_PIL = {"compress_level": 4}  # files are 1 % larger than at the default of 6, and encoded in two thirds of the time
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the picture is the same on every machine
    "font.size": 9.0,
    "axes.linewidth": 0.8,
    "svg.hashsalt": "pdiff-hub",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class MethodStyle:
    """How a method looks in every figure. filled: whether its marker is filled; filled and open differ in greyscale."""

    label: str
    color: str
    marker: str
    filled: bool = True
    size: float = 5.0

    @property
    def line(self) -> str:
        """Solid for filled markers, dashed for open ones, because some methods share a colour."""
        return "-" if self.filled else "--"


METHOD_STYLE: Mapping[str, MethodStyle] = {
    "original": MethodStyle("originals", "#0072B2", "o", filled=False),
    "generated": MethodStyle("generated", "#D55E00", "^", size=5.5),
    "fresh": MethodStyle("fresh networks", "#882255", "h", size=6.0),
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
    """A figure of width x height inches, laid out when it is saved. The settings of `_RC` apply inside the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_RC):
        yield Figure(figsize=(width, height), layout="constrained")


def marker_look(style: MethodStyle) -> dict[str, Any]:
    """Arguments of `scatter` for a method's markers. Filled markers get a white edge, which separates neighbours."""
    return {
        "marker": style.marker,
        "facecolors": style.color if style.filled else "none",
        "edgecolors": "white" if style.filled else style.color,
        "linewidths": 0.5 if style.filled else 1.0,
    }


def plain_axes(axes: Axes) -> None:
    """Give the axes a light grid below the data, no lines at the top and right, and numbers in full without offsets."""
    axes.ticklabel_format(useOffset=False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def limits(low: float, high: float, least: float) -> tuple[float, float]:
    """Ends of an axis for data from `low` to `high`, with a margin. An axis shorter than `least` is extended downwards.

    matplotlib would extend the axis of equal values by 5 % to both sides, to impossible accuracies and similarities.
    """
    low = min(low, high - least)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def footnote(figure: Figure, text: str) -> None:
    """Write how to read the figure, in small letters at its foot."""
    figure.supxlabel(text, fontsize=7.5)


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write stem.png and stem.svg without dates and program versions, each first under a temporary name.

    `savefig` would lay the figure out for each of the two, and draw it twice for each.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    paths = [Path(f"{stem}.{suffix}") for suffix in ("png", "svg")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_RC):
        figure.dpi = _DPI
        with replacing(paths[0]) as temporary:
            FigureCanvasAgg(figure).print_png(temporary, metadata={"Software": None}, pil_kwargs=_PIL)
        figure.set_layout_engine("none")  # it was laid out when it was drawn
        with replacing(paths[1]) as temporary:
            FigureCanvasSVG(figure).print_svg(temporary, metadata={"Date": None, "Creator": None})
    return paths
