"""How far from its training latents a denoiser draws, beside held-out ones, measured by drawing some.

The held-out loss alone does not always tell: on the norms of a ResNet-18 it sank by another 3 % while half of what was
drawn became copies, and elsewhere it is flat while what is drawn comes nearer (docs/measurements.md, "Copying").
Shapes: K training latents, H held-out ones, N drawn ones, C channels, L length.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from pdiff_hub.seeds import generator_of

_DRAWS, _STEPS = 256, 50  # as a pipeline draws by default; fewer steps, and no noise in them, lie farther away


@torch.no_grad()
def nearness_of_draws(
    model: nn.Module, latent_KCL: Tensor, held_out_HCL: Tensor, scheduler: DDPMScheduler, *, seed: int
) -> float:
    """Mean distance of 256 drawn latents to the nearest training latent, over the same of held-out ones: ideally 1.

    1, too, where held-out ones equal training latents, which says nothing.
    """
    sampler = DDPMScheduler.from_config(scheduler.config)
    sampler.set_timesteps(_STEPS, device=latent_KCL.device)
    generator = generator_of(seed, "measure", "copies", device=latent_KCL.device)
    shape = (_DRAWS, *latent_KCL.shape[1:])
    sample_NCL = torch.randn(shape, generator=generator, device=latent_KCL.device)
    for time in sampler.timesteps:
        predicted_NCL = model(sample_NCL, time.expand(_DRAWS), return_dict=False)[0].float()
        sample_NCL = sampler.step(predicted_NCL, time, sample_NCL, generator=generator).prev_sample
    drawn, fresh = (
        torch.cdist(each.flatten(1), latent_KCL.flatten(1)).amin(dim=1).mean() for each in (sample_NCL, held_out_HCL)
    )
    return float(drawn / fresh) if fresh > 0 else 1.0
