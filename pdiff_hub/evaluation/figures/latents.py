"""p-diff's figure 4c (arXiv 2402.13144): where the latents of originals, generated and other networks lie, by t-SNE.

Shapes: B networks of a method, M networks of all methods, D numbers per latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError, require_known
from pdiff_hub.evaluation.figures.points import scatter
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, marker_look, page, plain_axes, save

_PERPLEXITY = 30.0  # of t-SNE; lower for few networks, of which there must be more than three times as many


def latents_figure(latents: Mapping[str, Tensor], stem: str | Path) -> list[Path]:
    """t-SNE of the latents, one point per network. Near points are alike; larger distances and the axes mean nothing.

    latents: by name in `METHOD_STYLE`, each [B, ...] of the same shape but for B; drawn in the order of `METHOD_STYLE`.
    t-SNE starts from the first two principal components, with a fixed random state. It runs on one thread, because the
    number of threads changes the picture. It takes about 3 seconds for 600 networks.
    Returns the paths of `stem`.png and `stem`.svg. Raises ValueError for no or an unknown method, different shapes,
    fewer than 4 networks in all, fewer than 2 numbers per latent, NaN or Inf, and latents that are all the same.
    """
    _check(latents)
    drawn = {name: style for name, style in METHOD_STYLE.items() if name in latents}
    flat_MD = torch.cat([latents[name].detach().cpu().double().flatten(1) for name in drawn])
    embedded_M2 = _embed(flat_MD)
    with page(4.6, 4.2 + 0.18 * len(drawn)) as figure:
        axes = figure.add_subplot()
        start = 0
        for order, (name, style) in enumerate(drawn.items()):
            count = len(latents[name])
            part_B2 = embedded_M2[start : start + count]
            start += count
            # Clusters are dense, so edges are thin, and originals and generated networks lie on top.
            look: dict[str, Any] = {"alpha": 0.85, "linewidths": 0.25 if style.filled else 0.9, "zorder": 30 - order}
            scatter(axes, part_B2[:, 0], part_B2[:, 1], replace(style, size=0.8 * style.size), look)
            axes.scatter([], [], s=style.size**2, label=f"{style.label} ({count})", **{**marker_look(style), **look})
        plain_axes(axes)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticklabels([])  # the numbers mean nothing
        axes.set_yticklabels([])
        axes.tick_params(length=0)
        axes.set_xlabel("t-SNE of latents, first dimension (no unit)")
        axes.set_ylabel("second dimension (no unit)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, handletextpad=0.3)
    return save(figure, stem)


def _embed(flat_MD: Tensor) -> Tensor:
    """Latents float64 [M,D] -> float32 [M,2]."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(flat_MD) - 1) / 3)
    with threadpool_limits(limits=1):
        tsne = TSNE(init="pca", perplexity=perplexity, random_state=0)
        embedded = tsne.fit_transform(flat_MD.numpy())
    return torch.from_numpy(embedded)


def _check(latents: Mapping[str, Tensor]) -> None:
    if not latents:
        raise PdiffError("there are no latents to draw; expected at least one method.")
    require_known("method", latents, METHOD_STYLE)
    first = next(iter(latents))
    for name, latent in latents.items():
        if latent.ndim < 2 or len(latent) == 0 or latent[0].numel() < 2 or latent.shape[1:] != latents[first].shape[1:]:
            raise PdiffError(
                f"{name}: latents have shape {list(latent.shape)}; expected [networks, ...] with at least 2 numbers a "
                f"network, as many for every method ({first} has {list(latents[first].shape)})."
            )
        if not bool(torch.isfinite(latent).all()):
            raise PdiffError(f"{name}: latents hold NaN or Inf; expected finite numbers.")
    total = sum(len(latent) for latent in latents.values())
    if total < 4:
        raise PdiffError(f"there are {total} latents; t-SNE needs at least 4.")
    reference = latents[first][0]
    if all(bool((latent == reference).all()) for latent in latents.values()):
        raise PdiffError("all latents are the same; there is nothing to spread out.")
