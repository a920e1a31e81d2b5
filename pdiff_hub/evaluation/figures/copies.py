"""How near networks lie to what the generator was trained on: the picture of copying.

Shapes: B networks of a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pdiff_hub.evaluation.copies import copy_distance
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, page, plain_axes, save

COPIES_SHOWN = ("original", "generated", "fresh", "interpolation", "autoencoder")
"""The methods that the picture shows, if they were measured."""


def copies_figure(nearest: Mapping[str, Tensor], stem: str | Path) -> list[Path]:
    """The share of the networks of each method that are no farther from their nearest original than a distance.

    nearest: distances in scaled latents, [B] each, by method out of `COPIES_SHOWN`. A dotted line shows up to where a
    network is called a copy. Returns the paths of the pictures.
    """
    with page(5.2, 3.6) as figure:
        axes = figure.add_subplot()
        for name, style in METHOD_STYLE.items():
            if name not in nearest:
                continue
            distance_B = nearest[name].double().sort().values
            share_B = torch.arange(1, len(distance_B) + 1) / len(distance_B)
            axes.step(
                [0.0, *distance_B.tolist()],
                [0.0, *(100 * share_B).tolist()],
                where="post",
                color=style.color,
                linestyle=style.line,
                linewidth=1.4,
                label=f"{style.label} ({len(distance_B)})",
            )
        if "fresh" in nearest:
            axes.axvline(copy_distance(nearest["fresh"]), color="#555555", linewidth=1.0, linestyle=":", label="copies")
        axes.set_xlabel("distance to the nearest original in scaled latents")
        axes.set_ylabel("networks up to that distance (%)")
        axes.set_ylim(0, 103)
        axes.set_xlim(left=0)
        plain_axes(axes)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return save(figure, stem)
