"""Stage two: a `UNet1DModel` learns to denoise latents (p-diff, arXiv 2402.13144, sec. 3.3).

Shapes: K latents to train on, H held-out ones, B batch, C channels, L length, E channels of a condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet1DModel
from torch import Tensor, nn

from pdiff_hub.errors import require
from pdiff_hub.seeds import generator_of
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.training.loop import LoopConfig, Stopping, Trained, run_loop, share
from pdiff_hub.training.nearness import nearness_of_draws
from pdiff_hub.travelling.conditioner import Conditioner

_HELD_OUT_BATCHES, _TRAIN_BATCHES = 16, 4  # per measurement; together a tenth of the time between two of them
_AT_ONCE = 1 << 20  # numbers of latents, when a GPU measures
_GROUPS = 8  # of the normalisation in each block of diffusers' one-dimensional U-Net


def build_unet(
    channels: int, length: int, widths: Sequence[int], layers_per_block: int, condition_channels: int = 0
) -> UNet1DModel:
    """A `UNet1DModel` of those blocks that work on sequences and see the time step at every level.

    condition_channels: E further input channels, which hold the condition at every position.

    ValueError for a level of one number per group of its normalisation: a single latent would be all zeros there.
    """
    levels = len(widths)
    lowest = length >> (levels - 1)
    require(
        min(widths[-2:]) // _GROUPS * lowest > 1,
        "diffusion.widths",
        list(widths),
        f"more than {_GROUPS} channels at the last two levels, where latents of length {length} have one position",
    )
    return UNet1DModel(
        sample_size=length,
        in_channels=channels + condition_channels,
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


def build_scheduler(prediction: str = DiffusionConfig.prediction) -> DDPMScheduler:
    """T=1000, linear betas 1e-4..2e-2 (p-diff sec. 3.3). Nothing is clipped, because latents are unbounded.

    With "trailing", sampling in few steps also begins at pure noise, which is the last time step of training. The
    variance is that which is right for normally distributed data of variance 1, as scaled latents are (DDPM, arXiv
    2006.11239, sec. 3.2): the other one, which is right for a single point, makes what 50 steps generate narrower.
    """
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=2e-2,
        beta_schedule="linear",
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="trailing",
        variance_type="fixed_large",
    )


def train_unet(
    latent_KCL: Tensor,
    held_out_HCL: Tensor,
    config: DiffusionConfig,
    *,
    seed: int,
    accelerator: Accelerator,
    directory: Path,
    conditioner: Conditioner | None = None,
    condition_KE: Tensor | None = None,
    held_out_condition_HE: Tensor | None = None,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[UNet1DModel, Trained]:
    """The trained denoiser (averaged weights, eval mode), its last average loss and the losses that were measured.

    latent_KCL, held_out_HCL: scaled latents, encoded once and kept on the device for all steps. If none is held out
    (H = 0), all steps are taken. conditioner, condition_KE, held_out_condition_HE: what the networks can be asked for,
    and `ConditionSpec.channels` of both; None if they have no conditions.
    """
    # Forked, so that the caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        condition_channels = 0 if condition_KE is None else condition_KE.shape[1]
        channels, length = latent_KCL.shape[1:]
        unet = build_unet(channels, length, config.widths, config.layers_per_block, condition_channels)
    scheduler = build_scheduler(config.prediction)
    if config.prediction == "v_prediction":
        # v = 0 is the denoiser of N(0, I), which the scaled latents' mean and standard deviations are.
        for parameter in unet.out_block.final_conv1d_2.parameters():
            nn.init.zeros_(parameter)
    if config.compile:
        unet.compile()
    num_steps = scheduler.config.num_train_timesteps
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(accelerator.device)
    latent_KCL, held_out_HCL = latent_KCL.to(accelerator.device), held_out_HCL.to(accelerator.device)
    batch, device = (config.batch_size, *latent_KCL.shape[1:]), accelerator.device
    if conditioner is not None and condition_KE is not None and held_out_condition_HE is not None:
        conditioner = conditioner.to(device)
        condition_KE, held_out_condition_HE = condition_KE.to(device), held_out_condition_HE.to(device)

    def squared_error(
        model: nn.Module,
        clean_BCL: Tensor,
        noise_BCL: Tensor,
        time_B: Tensor,
        condition_BE: Tensor | None,
        *,
        of_noise: bool,
    ) -> Tensor:
        """Mean squared error of what the model predicts, or of the noise that follows from it."""
        noisy_BCL = model_input = scheduler.add_noise(clean_BCL, noise_BCL, time_B)
        if condition_BE is not None:
            model_input = torch.cat([noisy_BCL, condition_BE[:, :, None].expand(-1, -1, batch[2])], dim=1)
        with accelerator.autocast():
            predicted_BCL = model(model_input, time_B, return_dict=False)[0].float()
        if conditioner is not None and condition_BE is not None:
            alpha_B11 = scheduler.alphas_cumprod[time_B, None, None]
            expected = conditioner.gaussian(condition_BE)
            predicted_BCL = predicted_BCL + conditioner.prediction(noisy_BCL, alpha_B11, *expected, config.prediction)
        if config.prediction == "epsilon":
            return nn.functional.mse_loss(predicted_BCL, noise_BCL)
        error_BCL = predicted_BCL - scheduler.get_velocity(clean_BCL, noise_BCL, time_B)
        if of_noise:  # epsilon = sqrt(alpha) v + sqrt(1 - alpha) x
            error_BCL = error_BCL * scheduler.alphas_cumprod[time_B, None, None].sqrt()
        return error_BCL.square().mean()

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        rows_B = share(torch.randint(len(latent_KCL), batch[:1], generator=generator, device=device), accelerator)
        noise_BCL = share(torch.randn(batch, generator=generator, device=device), accelerator)
        # One time step per network, not one per batch.
        time_B = share(torch.randint(num_steps, batch[:1], generator=generator, device=device), accelerator)
        clean_BCL = latent_KCL[rows_B]
        if config.latent_noise > 0:
            blur_BCL = share(torch.randn(batch, generator=generator, device=device), accelerator)
            # Divided, so that the standard deviation stays 1.
            clean_BCL = (clean_BCL + config.latent_noise * blur_BCL) / math.hypot(1, config.latent_noise)
        condition_BE = None
        if condition_KE is not None:
            # Some are left out, so that the model also learns the networks as a whole, which guidance needs.
            asked_B = share(torch.rand(batch[:1], generator=generator, device=device), accelerator)
            condition_BE = condition_KE[rows_B] * (asked_B >= config.condition_dropout)[:, None]
        return squared_error(model, clean_BCL, noise_BCL, time_B, condition_BE, of_noise=False)

    def denoising_loss(
        model: nn.Module, clean_KCL: Tensor, condition_KE: Tensor | None, num_batches: int, name: str
    ) -> float:
        """Mean squared error of the noise, over the same noise and evenly spread times at every call."""
        generator, total = generator_of(seed, "measure", name, device=device), torch.zeros((), device=device)
        # A GPU takes as many batches at once as are worth starting its kernels for; the numbers drawn are the same.
        at_once = 1 if device.type == "cpu" else max(1, _AT_ONCE // math.prod(batch))
        for first in range(0, num_batches, at_once):
            indices = range(first, min(first + at_once, num_batches))
            number_N = torch.cat(
                [share(torch.arange(index * batch[0], (index + 1) * batch[0]), accelerator) for index in indices]
            ).to(device)
            # The golden ratio spreads the times evenly, for each network and all together.
            time_N = (number_N * 0.6180339887498949 % 1 * num_steps).long()
            noise_NCL = torch.cat(
                [share(torch.randn(batch, generator=generator, device=device), accelerator) for _ in indices]
            )
            row_N = number_N % len(clean_KCL)
            condition_NE = None if condition_KE is None else condition_KE[row_N]
            error = squared_error(model, clean_KCL[row_N], noise_NCL, time_N, condition_NE, of_noise=True)
            total += error * len(indices) / num_batches
        return float(accelerator.reduce(total, reduction="mean"))

    def measure(model: nn.Module) -> dict[str, float]:
        return {
            "held_out": denoising_loss(model, held_out_HCL, held_out_condition_HE, _HELD_OUT_BATCHES, "held_out"),
            "train": denoising_loss(model, latent_KCL, condition_KE, _TRAIN_BATCHES, "train"),
        }

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

    def nearness(model: nn.Module) -> float:
        if condition_KE is not None:  # what is asked for lies near its own networks, so these distances say nothing
            return 1.0
        return nearness_of_draws(model.eval(), latent_KCL, held_out_HCL, scheduler, seed=seed)

    stopping = Stopping(measure, config.eval_every, config.patience, nearness) if len(held_out_HCL) else None
    trained = run_loop(
        unet, loss_of, loop, directory, accelerator, seed=seed, captured=True, stopping=stopping, on_log=on_log
    )
    return unet.to("cpu").eval(), trained


def length_multiple(config: DiffusionConfig) -> int:
    """The latent length must be a multiple of this number, because every level but the last halves it."""
    return int(math.pow(2, len(config.widths) - 1))
