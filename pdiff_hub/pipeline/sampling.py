"""Networks by seed. The command, reports and published networks make "network 3 of 10 from seed 7" in this way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pdiff_hub.travelling.pipeline_pdiff import PDiffPipeline


def sample(
    pipe: PDiffPipeline,
    num_models: int,
    *,
    seed: int,
    output_type: Literal["params", "latent"] = "params",
    num_inference_steps: int | None = None,
    condition: Mapping[str, Any] | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """The networks that `seed` gives, float32: parameters [num_models, P] in raw weight units, or scaled latents.

    condition, guidance_scale: as in a call of the pipeline.
    """
    pipe.set_progress_bar_config(desc="generate", unit="step", disable=None)
    generator = torch.Generator().manual_seed(seed)
    output: tuple[Tensor, ...] = pipe(
        num_models,
        num_inference_steps,
        generator,
        output_type=output_type,
        return_dict=False,
        condition=condition,
        guidance_scale=guidance_scale,
    )
    return output[0]
