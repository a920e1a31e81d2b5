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
    rows: range | None = None,
) -> Tensor:
    """The networks that `seed` gives, float32: parameters [num_models, P] in raw weight units, or scaled latents.

    condition, guidance_scale: as in a call of the pipeline. rows: only these of the networks, of which there may be
    none; a network is the same whatever others are made with it, but for float rounding.
    """
    pipe.set_progress_bar_config(desc="generate", unit="step", disable=None)
    generator: torch.Generator | list[torch.Generator] = torch.Generator().manual_seed(seed)
    latents = None
    if rows is not None:
        # All is drawn as for all networks, which costs little, and each network takes its part.
        shape = (pipe.autoencoder.config.latent_channels, pipe.autoencoder.config.latent_length)
        drawn_NCL, generators = pipe._noise(num_models, shape, generator, None)
        own = slice(rows.start, rows.stop)
        latents, generator, num_models = drawn_NCL[own], generators[own], len(rows)
        if not rows:
            return latents if output_type == "latent" else torch.empty(0, pipe.autoencoder.layout.num_params)
    output: tuple[Tensor, ...] = pipe(
        num_models,
        num_inference_steps,
        generator,
        output_type=output_type,
        return_dict=False,
        latents=latents,
        condition=condition,
        guidance_scale=guidance_scale,
    )
    return output[0]
