"""Draws the networks that an audit of requests judges. Shapes: N networks, P parameters, D numbers of a condition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    pipe: PDiffPipeline, condition_ND: Tensor | None, num_models: int, *, guidance_scale: float, seed: int
) -> Tensor:
    """Networks [N,P], one for each row of conditions; without conditions num_models of them."""
    out = pipe(
        num_models,
        condition=condition_ND,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        output_type="params",
    )
    assert not isinstance(out, tuple) and out.params is not None
    return out.params
