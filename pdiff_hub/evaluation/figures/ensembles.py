"""What averaging the predictions of several networks gives, for originals and generated networks.

A curve has one number per size of ensemble.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pdiff_hub.errors import PdiffError, require_known
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, marker_look, page, plain_axes, save

if TYPE_CHECKING:
    from pdiff_hub.records import EnsembleCurve

# Per panel: the field of EnsembleCurve, the factor that its values are multiplied by, the label of the axis.
_PANELS = (
    ("accuracy", 100.0, "accuracy on test (%)"),
    ("nll", 1.0, "negative log-likelihood (nats)"),
    ("calibration_error", 100.0, "calibration error (ECE, %)"),
)


def ensembles_figure(curves: Mapping[str, EnsembleCurve], stem: str | Path) -> list[Path]:
    """Accuracy, negative log-likelihood and calibration error against the number of networks averaged; three panels.

    curves: by name in `METHOD_STYLE`, usually "original" and "generated", drawn in its order. Accuracy and calibration
    error are fractions, drawn in percent.
    Returns the paths of `stem`.png and `stem`.svg. Raises ValueError for no or an unknown method, no sizes, a size
    below 1, a number of values that differs from that of sizes, and NaN or Inf.
    """
    _check(curves)
    sizes = sorted({int(size) for curve in curves.values() for size in curve.sizes})
    with page(7.0, 2.7 + 0.18 * ((len(curves) + 2) // 3)) as figure:
        for axes, (field, factor, label) in zip(figure.subplots(1, 3), _PANELS, strict=True):
            for name, style in METHOD_STYLE.items():
                if name not in curves:
                    continue
                values = [factor * float(value) for value in getattr(curves[name], field)]
                axes.plot(curves[name].sizes, values, color=style.color, linewidth=1.3, linestyle=style.line)
                look = marker_look(style)
                if not style.filled:
                    look["facecolors"] = "white"  # so that the line does not show through
                axes.scatter(curves[name].sizes, values, s=1.6 * style.size**2, zorder=3, label=style.label, **look)
            plain_axes(axes)
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.set_xlabel("networks averaged")
            axes.set_ylabel(label)
            axes.margins(0.08)
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, handletextpad=0.3
        )
    return save(figure, stem)


def _check(curves: Mapping[str, EnsembleCurve]) -> None:
    if not curves:
        raise PdiffError("there are no curves to draw; expected at least one method.")
    require_known("method", curves, METHOD_STYLE)
    for name, curve in curves.items():
        if len(curve.sizes) == 0 or min(curve.sizes) < 1:
            raise PdiffError(f"{name}: the sizes of ensembles are {list(curve.sizes)}; expected positive numbers.")
        for field, _, _ in _PANELS:
            values = torch.as_tensor(getattr(curve, field), dtype=torch.float64)
            if values.shape != (len(curve.sizes),) or not bool(torch.isfinite(values).all()):
                raise PdiffError(
                    f"{name}: {field} is {values.tolist()} for sizes {list(curve.sizes)}; expected one finite number "
                    "each."
                )
