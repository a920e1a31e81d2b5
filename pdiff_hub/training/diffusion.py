"""Stage two: a `UNet1DModel` learns to denoise latents (p-diff, arXiv 2402.13144, sec. 3.3).

Shapes: K latents to train on, B batch, C channels, L length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet1DModel
from torch import Tensor, nn

from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.training.loop import LoopConfig, run_loop, share


def build_unet(channels: int, length: int, widths: Sequence[int], layers_per_block: int) -> UNet1DModel:
    """A `UNet1DModel` of those blocks that work on sequences and see the time step at every level."""
    levels = len(widths)
    return UNet1DModel(
        sample_size=length,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=layers_per_block,
        down_block_types=("DownResnetBlock1D",) * levels,
        mid_block_type="MidResTemporalBlock1D",
        up_block_types=("UpResnetBlock1D",) * (levels - 1),
        out_block_type="OutConv1DBlock",
        use_timestep_embedding=True,
        time_embedding_type="positional",
        flip_sin_to_cos=False,
        freq_shift=1,
        act_fn="mish",
    )


def build_scheduler() -> DDPMScheduler:
    """T=1000, linear betas 1e-4..2e-2, epsilon (p-diff sec. 3.3). Nothing is clipped, because latents are unbounded.

    With "trailing", sampling in few steps also begins at pure noise, which is the last time step of training.
    """
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=2e-2,
        beta_schedule="linear",
        prediction_type="epsilon",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def train_unet(
    latent_KCL: Tensor,
    config: DiffusionConfig,
    *,
    seed: int,
    accelerator: Accelerator,
    directory: Path,
    on_log: Callable[[int, float], None] | None = None,
) -> tuple[UNet1DModel, float]:
    """The trained denoiser (averaged weights, eval mode) and its last average loss.

    `latent_KCL`: scaled latents, encoded once and kept on the device for all steps.
    """
    # Forked, so that the caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = build_unet(latent_KCL.shape[1], latent_KCL.shape[2], config.widths, config.layers_per_block)
    if config.compile:
        unet.compile()
    scheduler = build_scheduler()
    num_steps = scheduler.config.num_train_timesteps
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(accelerator.device)
    latent_KCL = latent_KCL.to(accelerator.device)
    batch, device = (config.batch_size, *latent_KCL.shape[1:]), accelerator.device

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        rows_B = share(torch.randint(len(latent_KCL), batch[:1], generator=generator, device=device), accelerator)
        noise_BCL = share(torch.randn(batch, generator=generator, device=device), accelerator)
        # One time step per network, not one per batch.
        time_B = share(torch.randint(num_steps, batch[:1], generator=generator, device=device), accelerator)
        noisy_BCL = scheduler.add_noise(latent_KCL[rows_B], noise_BCL, time_B)
        with accelerator.autocast():
            predicted_BCL = model(noisy_BCL, time_B, return_dict=False)[0]
        return nn.functional.mse_loss(predicted_BCL.float(), noise_BCL)

    loop = LoopConfig(
        name="diffusion",
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        ema_decay=config.ema_decay,
        save_every=config.save_every,
        save_limit=config.save_limit,
        log_every=config.log_every,
    )
    loss = run_loop(unet, loss_of, loop, directory, accelerator, seed=seed, on_log=on_log)
    return unet.to("cpu").eval(), loss


def length_multiple(config: DiffusionConfig) -> int:
    """The latent length must be a multiple of this number, because every level but the last halves it."""
    return int(math.pow(2, len(config.widths) - 1))
