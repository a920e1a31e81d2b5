"""From points to pictures, and to the page that says what was measured, how, and on which machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growth_axes import Axis
from growth_peer import about, peer_rows
from growth_points import LEAST_MEMORY, Point, line, parts, slope, upper_half, working_memory
from whole_size_page import section

from pdiff_hub.evaluation.figures.style import MethodStyle, footnote, marker_look, page, plain_axes, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOKS = {
    look.label: look
    for look in (  # looks in one panel differ in greyscale too
        MethodStyle("save", "#0072B2", "o", filled=False),
        MethodStyle("train", "#D55E00", "^", size=5.5),
        MethodStyle("fit autoencoder", "#D55E00", "^", size=5.5),
        MethodStyle("U-Net steps", "#009E73", "s", filled=False),
        MethodStyle("write pipeline", "#CC79A7", "D"),
        MethodStyle("sample", "#E69F00", "v", size=5.5),
        MethodStyle("sample and write", "#0072B2", "o", filled=False),
        MethodStyle("judge", "#56B4E9", "X", size=6.0),
        MethodStyle("similarity", "#555555", "P", filled=False, size=6.0),
    )
}
_MIB = 2**20
_NOISE = f"{LEAST_MEMORY // _MIB} MiB"


def draw(axis: Axis, points: Sequence[Point], stem: Path) -> list[Path]:
    """Draws seconds and working memory against `axis`, on logarithmic axes, into `stem`.png and `stem`.svg."""
    xs = [float(point.x) for point in points]
    memory = {name: [each / _MIB for each in values] for name, values in working_memory(points).items()}
    with page(7.0, 3.9) as figure:
        left, right = figure.subplots(1, 2)
        _panel(left, xs, parts(points), 0.0)
        left.set_ylabel("time (seconds)")
        _panel(right, xs, memory, LEAST_MEMORY / _MIB)
        right.set_ylabel("working memory (MiB)")
        for axes in (left, right):
            axes.set_xlabel(axis.label)
        footnote(
            figure,
            "Dotted: least squares on logarithms over the upper half of the range; its slope is in the "
            f"legend. Memory under {_NOISE} is not drawn.",
        )
        return save(figure, stem)


def _panel(axes: Axes, xs: Sequence[float], lines: Mapping[str, Sequence[float]], least: float) -> None:
    from matplotlib.ticker import NullFormatter

    plain_axes(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(xs) / 1.5, max(xs) * 1.5)
    axes.xaxis.set_minor_formatter(NullFormatter())  # labels of minor ticks would overlap
    drawn = False
    for name, ys in lines.items():
        shown = [(x, y) for x, y in zip(xs, ys, strict=True) if y > least]
        if not shown:
            continue
        drawn, look = True, _LOOKS[name]
        shown_xs, shown_ys = zip(*shown, strict=True)
        axes.plot(shown_xs, shown_ys, color=look.color, linewidth=1.1, linestyle=look.line, zorder=2)
        axes.scatter(
            shown_xs,
            shown_ys,
            s=look.size**2,
            zorder=4,
            label=f"{name} ({_exponent(xs, ys, least)})",
            **marker_look(look),
        )
        if fitted := line(xs, ys, least):
            scale, exponent = fitted
            ends = [min(x for x in shown_xs if x >= upper_half(xs)), max(xs)]
            axes.plot(ends, [scale * x**exponent for x in ends], color="black", linewidth=0.9, linestyle=":", zorder=3)
    if drawn:
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=2,
            frameon=False,
            fontsize=7.5,
            handletextpad=0.2,
            columnspacing=1.0,
        )
    else:
        axes.text(0.5, 0.5, f"all under {_NOISE}", transform=axes.transAxes, ha="center", color="#555555")


def _exponent(xs: Sequence[float], ys: Sequence[float], least: float) -> str:
    found = slope(xs, ys, least)
    return "no slope" if found is None else f"{found:.2f}"


def summary(axes: Sequence[Axis], points: Mapping[str, Sequence[Point]]) -> list[list[str]]:
    """Rows of text, header first: what grows, which cost, how much it is at the largest size, and its slope."""
    rows = [["against", "cost", "at the largest", "slope"]]
    for axis in axes:
        found = points[axis.name]
        xs, against = [point.x for point in found], f"{axis.name} ({found[0].x:,} to {found[-1].x:,})"
        for name, seconds in parts(found).items():
            rows.append([against, f"{name}, time", f"{_seconds(seconds[-1])} s", _exponent(xs, seconds, 0.0)])
        for name, memory in working_memory(found).items():
            rows.append(
                [against, f"{name}, memory", f"{round(memory[-1] / _MIB):,} MiB", _exponent(xs, memory, LEAST_MEMORY)]
            )
    return rows


def render(
    axes: Sequence[Axis],
    points: Mapping[str, Sequence[Point]],
    machine: Mapping[str, Any],
    pictures: str,
    whole_networks: Sequence[Mapping[str, Any]] = (),
    peer: Sequence[Point] = (),
) -> str:
    """The page as Markdown.

    points: by name of the axis, smallest first. machine: what the page says about machine and versions, by name.
    pictures: the relative path or URL of the folder with the pictures. whole_networks: the runs of `whole_size.py`.
    peer: its points on the axis of parameters.
    """
    days = sorted(point.measured[:10] for found in points.values() for point in found)
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    text = [
        "# How it grows",
        "",
        "Time and memory against the size of the network, the number of checkpoints and the number of generated "
        f"networks. Made by `make bench-scale`; measured {when}.",
        "",
        "Every point is one run in a fresh process, not a median of several. Seconds leave out the start of Python and "
        "imports, but not what a first call costs. *Working memory* is the peak of resident memory (pages of mapped "
        "files included) less that of the smallest case on the same axis, which stands for interpreter and libraries; "
        f"under {_NOISE} it is noise, and is neither drawn nor fitted. *Slope* is the exponent b of a x^b, by least "
        "squares on logarithms over the upper half of the (logarithmic) range, since constants dominate below: 0 is "
        'flat, 1 is proportional, 2 is the square. "No slope": fewer than two points in that half to fit.',
        "",
        "## In short",
        "",
        *_table(summary(axes, points)),
        "",
    ]
    for axis in axes:
        found = points[axis.name]
        text += [
            f"## {axis.title}",
            "",
            *axis.what.split("\n"),
            "",
            f"![Time and working memory against {axis.title.lower()}]({pictures}/growth-{axis.name}.png)",
            "",
            *_table(_time_rows(axis, found)),
            "",
            *_table(_memory_rows(axis, found)),
            "",
        ]
    if peer:
        text += ["## Beside a peer", "", *about(peer), "", *_table(peer_rows(points["parameters"], peer)), ""]
    text += [
        *section(whole_networks),
        "## Machine and versions",
        "",
        *_table([["", ""], *([name, str(value)] for name, value in machine.items())]),
        "",
    ]
    return "\n".join(text)


def _time_rows(axis: Axis, points: Sequence[Point]) -> list[list[str]]:
    found = parts(points)
    return [
        [axis.name, *(f"{name} (s)" for name in found)],
        *([f"{point.x:,}", *(_seconds(point.seconds[name]) for name in found)] for point in points),
        ["slope", *(_exponent([point.x for point in points], seconds, 0.0) for seconds in found.values())],
    ]


def _memory_rows(axis: Axis, points: Sequence[Point]) -> list[list[str]]:
    """One row per process and size."""
    header = [axis.name, "process", "peak (MiB)", "working (MiB)"]
    rows = [[*header, "less one network (MiB)"] if axis.per_network else header]
    for name, memory in working_memory(points).items():
        for point, working in zip(points, memory, strict=True):
            numbers = [point.peak[name], working, *([working - 4 * point.x] if axis.per_network else [])]
            rows.append([f"{point.x:,}", name, *(f"{round(number / _MIB):,}" for number in numbers)])
    return rows


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table. The first row is its header, and columns of numbers are right-aligned."""
    right = [all(row[column][:1] in "-0123456789" for row in rows[1:-1]) for column in range(len(rows[0]))]
    rule = ["---:" if each else "---" for each in right]
    return [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
