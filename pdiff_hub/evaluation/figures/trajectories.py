"""p-diff's figure 5a (arXiv 2402.13144): the paths from noise to networks, in the plane that shows most of them.

Shapes: T steps, S noises, K originals, D numbers per network (parameters or a flat latent), d a slice of D; E = K + 2 S
points that the plane is fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, page, plain_axes, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection

_SLICE_BYTES = 64 << 20  # for the float64 copies of one slice of D
_SHADES = ("#FBDCC4", "#D55E00", "#4A1F00")  # light to dark, for greyscale; middle: the colour of "generated"


def trajectories_figure(trajectory_TSD: Tensor, originals_KD: Tensor, stem: str | Path, *, unit: str) -> list[Path]:
    """The reverse process from S noises, darker with every step, beside the originals with their mean and spread.

    trajectory_TSD: [T+1, S, ...], from the noise to the end: `PDiffPipelineOutput.trajectory`, as it is or decoded.
    originals_KD: [K, ...], latents or parameters of the originals, the same as in the trajectory.
    unit: the unit of both, for the axes: "scaled latent units" or "weight units".
    The plane is that of the first two principal components of originals, starts and ends, about the mean of the
    originals; the originals weigh as much as all starts and ends together (p-diff does not say what it uses). Ellipses
    show 1 and 2 standard deviations of the originals in that plane. Each axis has its own scale. Works in slices of D.
    Returns the paths of `stem`.png and `stem`.svg. Raises ValueError for other shapes, fewer than 1 step, 1 noise or
    3 originals, different D or D < 2, NaN or Inf, and points that span less than a plane.
    """
    if trajectory_TSD.ndim < 3 or originals_KD.ndim < 2:
        raise PdiffError(
            f"the trajectory has shape {list(trajectory_TSD.shape)}, the originals "
            f"{list(originals_KD.shape)}; expected [steps + 1, noises, ...] and [networks, ...]."
        )
    trajectory_TSD, originals_KD = trajectory_TSD.detach().cpu().flatten(2), originals_KD.detach().cpu().flatten(1)
    _check(trajectory_TSD, originals_KD)
    path_TS2, original_K2, shares = _project(trajectory_TSD, originals_KD)
    with page(5.2, 4.9) as figure:
        axes = figure.add_subplot()
        _draw_originals(axes, original_K2)
        lines = _draw_paths(axes, path_TS2)
        figure.colorbar(lines, ax=axes, fraction=0.04, aspect=30).set_label("step of the reverse process")
        plain_axes(axes)
        axes.set_xlabel(f"first principal component ({unit}; {100 * shares[0]:.0f} % of variance)")
        axes.set_ylabel(f"second principal component ({unit}; {100 * shares[1]:.0f} %)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, handletextpad=0.5)
    return save(figure, stem)


def _draw_originals(axes: Axes, original_K2: Tensor) -> None:
    from matplotlib.patches import Ellipse

    style = METHOD_STYLE["original"]
    _dots(
        axes,
        original_K2,
        s=7,
        marker="o",
        facecolors=style.color,
        alpha=0.4,
        linewidths=0,
        zorder=2,
        label=f"{style.label} ({len(original_K2)})",
    )
    mean_2 = original_K2.mean(dim=0)
    variances_2, directions_22 = torch.linalg.eigh(original_K2.T.cov())
    width, height = (2 * variances_2.clamp_min(0).sqrt()).tolist()
    angle = float(torch.rad2deg(torch.atan2(directions_22[1, 0], directions_22[0, 0])))
    for deviations, line in ((1, "-"), (2, "--")):
        axes.add_patch(
            Ellipse(
                (float(mean_2[0]), float(mean_2[1])),
                deviations * width,
                deviations * height,
                angle=angle,
                fill=False,
                edgecolor=style.color,
                linewidth=1.4,
                linestyle=line,
                zorder=6,
            )
        )
        plural = "s" if deviations > 1 else ""
        axes.plot(
            [],
            [],
            color=style.color,
            linewidth=1.4,
            linestyle=line,
            label=f"{deviations} standard deviation{plural} of originals",
        )
    _dots(axes, mean_2[None], s=70, marker="+", facecolors="black", linewidths=1.8, zorder=9, label="mean of originals")


def _draw_paths(axes: Axes, path_TS2: Tensor) -> LineCollection:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    num_steps, num_noises = len(path_TS2) - 1, path_TS2.shape[1]
    segments = torch.stack([path_TS2[:-1], path_TS2[1:]], dim=2).flatten(0, 1)  # ordered by step: the last lie on top
    step = (torch.arange(num_steps) + 0.5).repeat_interleave(num_noises)
    shades = LinearSegmentedColormap.from_list("steps", _SHADES)
    lines = LineCollection(list(segments.numpy()), cmap=shades, linewidths=1.1, zorder=5, capstyle="round")
    lines.set_array(step.numpy())
    lines.set_clim(0, num_steps)
    axes.add_collection(lines)
    _dots(
        axes,
        path_TS2[0],
        s=32,
        marker="s",
        facecolors="white",
        edgecolors="black",
        linewidths=1.0,
        zorder=7,
        label=f"noise (step 0), {num_noises} drawn",
    )
    end = METHOD_STYLE["generated"]
    _dots(
        axes,
        path_TS2[-1],
        s=64,
        marker=end.marker,
        facecolors=_SHADES[-1],
        edgecolors="white",
        linewidths=0.8,
        zorder=8,
        label=f"{end.label} (step {num_steps})",
    )
    return lines


def _dots(axes: Axes, points_M2: Tensor, **look: Any) -> None:
    axes.scatter(points_M2[:, 0].numpy(), points_M2[:, 1].numpy(), **look)


def _project(trajectory_TSD: Tensor, originals_KD: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """Coordinates in the plane, float64 [T+1,S,2] and [K,2], and the share of the variance along each axis."""
    num_originals, num_noises = len(originals_KD), trajectory_TSD.shape[1]
    weight_E = (
        torch.cat(
            [torch.full((num_originals,), 1 / num_originals), torch.full((2 * num_noises,), 1 / (2 * num_noises))]
        )
        .double()
        .sqrt()
    )
    # D is large, so the small Gram matrix is diagonalised; its eigenvectors u give the axes of the plane, points^T u.
    gram_EE = torch.zeros(len(weight_E), len(weight_E), dtype=torch.float64)
    for path_TSd, original_Kd in _slices(trajectory_TSD, originals_KD):
        spanning_Ed = weight_E[:, None] * torch.cat([original_Kd, path_TSd[0], path_TSd[-1]])
        gram_EE += spanning_Ed @ spanning_Ed.T
    values_E, vectors_EE = torch.linalg.eigh(gram_EE)
    size_2, directions_E2 = values_E[-2:].flip(0), vectors_EE[:, -2:].flip(1)
    if float(size_2[1]) <= 1e-12 * float(size_2[0]):
        raise PdiffError("originals and trajectories lie on one line or point; there is no plane to draw them in.")
    # The sign of an eigenvector is arbitrary: a positive largest entry makes the picture the same everywhere.
    largest_2 = directions_E2.gather(0, directions_E2.abs().argmax(dim=0, keepdim=True))
    directions_E2 = directions_E2 * largest_2.sign() / size_2.sqrt()
    path_TS2 = torch.zeros(*trajectory_TSD.shape[:2], 2, dtype=torch.float64)
    original_K2 = torch.zeros(num_originals, 2, dtype=torch.float64)
    for path_TSd, original_Kd in _slices(trajectory_TSD, originals_KD):
        spanning_Ed = weight_E[:, None] * torch.cat([original_Kd, path_TSd[0], path_TSd[-1]])
        axes_d2 = spanning_Ed.T @ directions_E2
        path_TS2 += path_TSd @ axes_d2
        original_K2 += original_Kd @ axes_d2
    return path_TS2, original_K2, (size_2 / values_E.sum()).tolist()


def _slices(trajectory_TSD: Tensor, originals_KD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices of both over D in float64, less the mean of the originals."""
    num_steps, num_noises, size = trajectory_TSD.shape
    width = max(1, _SLICE_BYTES // (8 * (num_steps * num_noises + len(originals_KD))))
    for start in range(0, size, width):
        original_Kd = originals_KD[:, start : start + width].double()
        mean_d = original_Kd.mean(dim=0)
        yield trajectory_TSD[..., start : start + width].double() - mean_d, original_Kd - mean_d


def _check(trajectory_TSD: Tensor, originals_KD: Tensor) -> None:
    steps, noises, size = trajectory_TSD.shape
    if steps < 2 or noises < 1 or len(originals_KD) < 3 or size < 2 or originals_KD.shape[1] != size:
        raise PdiffError(
            f"the trajectory is [{steps}, {noises}, {size}] (steps + 1, noises, numbers per network) and the originals "
            f"are {list(originals_KD.shape)}; expected at least 2, 1, 2 and 3 originals of as many numbers."
        )
    for what, values in (("the trajectory", trajectory_TSD), ("the originals", originals_KD)):
        if not bool(torch.isfinite(values).all()):
            raise PdiffError(f"{what} holds NaN or Inf; expected finite numbers.")
