"""When the denoiser's training was ended: its loss on held-out checkpoints, beside that on training checkpoints."""

from __future__ import annotations

from pathlib import Path

from pdiff_hub.evaluation.figures.style import METHOD_STYLE, page, plain_axes, save
from pdiff_hub.records import LossCurve


def training_figure(curve: LossCurve, stem: str | Path) -> list[Path]:
    """The denoising losses over the steps, and the step whose weights were kept. Returns the paths of the pictures."""
    with page(5.2, 3.2) as figure:
        axes = figure.add_subplot()
        fresh, originals = METHOD_STYLE["fresh"], METHOD_STYLE["original"]
        axes.plot(
            curve.steps, curve.held_out, color=fresh.color, marker="o", markersize=3, label="held-out checkpoints"
        )
        axes.plot(
            curve.steps,
            curve.train,
            color=originals.color,
            linestyle="--",
            marker="s",
            markersize=3,
            label="trained on",
        )
        if curve.kept is not None:
            axes.axvline(curve.kept, color="#555555", linewidth=1.0, linestyle=":", label=f"kept: step {curve.kept:,}")
        axes.set_xlabel("step of training")
        axes.set_ylabel("denoising loss of averaged weights")
        plain_axes(axes)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return save(figure, stem)
