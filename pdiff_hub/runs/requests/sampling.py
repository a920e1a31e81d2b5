"""Draws the networks that an audit of requests judges.

Shapes: N networks, P parameters, D numbers of a condition, C x L latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from pdiff_hub.pipeline import PDiffPipeline


@contextmanager
def quiet(pipe: PDiffPipeline) -> Iterator[None]:
    """Without the pipeline's own progress bars: an audit calls it many times, under one bar of its own."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


def sampled(
    pipe: PDiffPipeline,
    condition_ND: Tensor | None,
    num_models: int,
    *,
    guidance_scale: float,
    seed: int,
    output_type: Literal["params", "latent"] = "params",
) -> Tensor:
    """Networks [N,P] or latents [N,C,L], one for each row of conditions; without conditions num_models of them."""
    out = pipe(
        num_models,
        condition=condition_ND,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        output_type=output_type,
    )
    assert not isinstance(out, tuple)
    made = out.params if output_type == "params" else out.latents
    assert made is not None
    return made
