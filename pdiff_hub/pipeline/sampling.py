"""Networks by seed. The command, reports and published networks make "network 3 of 10 from seed 7" in this way."""

from __future__ import annotations

from typing import Literal

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
) -> Tensor:
    """The networks that `seed` gives, float32: parameters [num_models, P] in raw weight units, or scaled latents."""
    pipe.set_progress_bar_config(desc="generate", unit="step", disable=None)
    generator = torch.Generator().manual_seed(seed)
    output: tuple[Tensor, ...] = pipe(
        num_models, num_inference_steps, generator, output_type=output_type, return_dict=False
    )
    return output[0]
