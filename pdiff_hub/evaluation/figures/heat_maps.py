"""p-diff's figure 3 (arXiv 2402.13144): the parameters of a network trained from several seeds, side by side.

Shapes: S seeds; R x C rows and columns of a tensor that is laid flat.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.figures.style import page, save

_WIDE, _FLAT = 0.85, 0.3  # heights in inches: of a matrix, and of a vector, which is drawn as one strip


def parameter_heat_maps(tensors: Mapping[str, Tensor], stem: str | Path) -> list[Path]:
    """One column per seed, one row per tensor; each tensor is scaled to 0..1 by its lowest and highest value.

    tensors: by name, each [S, ...] with the same S, any real dtype, drawn in their order. The scale of a tensor is the
    same for all seeds. Convolution kernels are laid flat, [out, in * height * width]; vectors and scalars are strips.
    A tensor of equal numbers is drawn in the middle colour, and its label gives the number.
    Returns the paths of `stem`.png and `stem`.svg. Raises ValueError for no tensor, tensors without entries, different
    numbers of seeds, and NaN or Inf.
    """
    num_seeds = _num_seeds(tensors)
    heights = [_WIDE if tensor.ndim > 2 else _FLAT for tensor in tensors.values()]
    with page(max(1.5 + 1.5 * num_seeds, 4.0), 0.9 + 1.1 * sum(heights)) as figure:
        grid = figure.subplots(len(tensors), num_seeds, squeeze=False, gridspec_kw={"height_ratios": heights})
        for axes_row, (name, tensor) in zip(grid, tensors.items(), strict=True):
            scaled_SRC, note = _scaled(tensor)
            for axes, scaled_RC in zip(axes_row, scaled_SRC, strict=True):
                image = axes.imshow(scaled_RC.numpy(), vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
                axes.set_xticks([])
                axes.set_yticks([])
            shape = " x ".join(str(size) for size in tensor.shape[1:]) or "1"
            # Long names break after their dots.
            lines = [line.replace(" ", "") for line in wrap(name.replace(".", ". "), 28)] + [f"{shape}{note}"]
            axes_row[0].set_ylabel("\n".join(lines), rotation=0, ha="right", va="center", fontsize=7)
        for seed, axes in enumerate(grid[0]):
            axes.set_title(f"seed {seed + 1}", fontsize=9)
        bar = figure.colorbar(image, ax=grid, location="bottom", fraction=0.1, aspect=40)
        bar.set_label("parameter, scaled per tensor (0: lowest, 1: highest)", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return save(figure, stem)


def _scaled(tensor: Tensor) -> tuple[Tensor, str]:
    """[S, ...] -> float64 [S,R,C] in 0..1, and an addition to its label."""
    flat_SRC = tensor.detach().cpu().double().reshape(len(tensor), tensor.shape[1] if tensor.ndim > 2 else 1, -1)
    low, high = flat_SRC.min(), flat_SRC.max()
    if low == high:
        return torch.full_like(flat_SRC, 0.5), f", all {float(low):.3g}"
    return (flat_SRC - low) / (high - low), ""


def _num_seeds(tensors: Mapping[str, Tensor]) -> int:
    if not tensors:
        raise PdiffError("there are no tensors to draw; expected at least one, by name.")
    num_seeds = None
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or tensor.numel() == 0 or (num_seeds is not None and len(tensor) != num_seeds):
            raise PdiffError(
                f"{name} has shape {list(tensor.shape)}; expected [seeds, ...] with entries"
                f"{'' if num_seeds is None else f' and {num_seeds} seeds, as the tensors before it'}."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise PdiffError(f"{name} holds NaN or Inf; expected finite parameters.")
        num_seeds = len(tensor)
    assert num_seeds is not None
    return num_seeds
