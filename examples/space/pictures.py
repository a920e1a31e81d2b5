"""The pictures of a sample. The package's own figures draw all of them except accuracy against step.

Shapes: s judged steps, M followed networks, K originals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from sampling import FOLLOWED, Sample, settings_name
from torch import Tensor

from pdiff_hub.evaluation.figures import (
    METHOD_STYLE,
    accuracy_similarity_figure,
    frontier_figure,
    trajectories_figure,
)
from pdiff_hub.evaluation.figures.style import limits, page, plain_axes, save
from pdiff_hub.evaluation.points import MethodPoints


def novelty_pictures(drawn: Sample, points: Mapping[str, MethodPoints], directory: Path) -> tuple[str, str]:
    """PNG paths of accuracy against similarity and of the frontier. points: from `method_points`, not empty."""
    stem = directory / settings_name(drawn)
    similarity, _ = accuracy_similarity_figure(points, f"{stem}-similarity")
    frontier, _ = frontier_figure(points, f"{stem}-frontier")
    return str(similarity), str(frontier)


def accuracy_picture(drawn: Sample, steps: Sequence[int], accuracy_sM: Tensor, directory: Path) -> str:
    """PNG path of a picture: accuracy on test of the first networks after each judged step, and their mean.

    steps, accuracy_sM: from `accuracy_by_step`.
    """
    percent_sM = 100 * accuracy_sM
    style, original = METHOD_STYLE["generated"], METHOD_STYLE["original"]
    shown = [float(percent_sM.min()), float(percent_sM.max())]
    with page(5.2, 4.4) as figure:
        axes = figure.add_subplot()
        axes.plot(steps, percent_sM.numpy(), color=style.color, alpha=0.35, linewidth=1.0)
        axes.plot(
            steps,
            percent_sM.mean(dim=1).numpy(),
            color=style.color,
            linewidth=2.2,
            marker=style.marker,
            label=f"{style.label}, mean of {percent_sM.shape[1]}",
        )
        originals = drawn.opened.judged_originals
        if originals is not None:
            shown.append(100 * float(originals.test.accuracy_B.mean()))
            axes.axhline(
                shown[-1], color=original.color, linestyle=original.line, linewidth=1.4, label=f"{original.label}, mean"
            )
        axes.set_ylim(*limits(min(shown), max(shown), 0.5))
        axes.set_xlabel("step of the reverse process (0 is noise)")
        axes.set_ylabel("accuracy on test (%)")
        plain_axes(axes)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, handletextpad=0.5)
    png, _ = save(figure, directory / f"{settings_name(drawn)}-steps")
    return str(png)


def path_picture(drawn: Sample, directory: Path) -> str | None:
    """PNG path of a picture: the path from noise to networks among the originals' latents. None without originals."""
    originals = drawn.opened.originals
    if originals is None:
        return None
    with torch.no_grad():
        originals_KCL = drawn.opened.pipe.autoencoder.encode(originals.params_KP)
    png, _ = trajectories_figure(
        drawn.trajectory_TNCL[:, :FOLLOWED],
        originals_KCL,
        directory / f"{settings_name(drawn)}-path",
        unit="scaled latent units",
    )
    return str(png)
