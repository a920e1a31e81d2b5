"""Training the U-Net: latents encoded once, fused AdamW and Accelerate's loop against the plain way.

The plain way encodes a batch in every step, uses an AdamW that loops over the tensors, and averages the weights in
Python. Only its loop is timed, over some of the steps, and scaled up. Ours is timed whole, with encoding and saving.
Then a forward and backward pass alone is timed and compared with the machine's matrix-product rate; a note says what
bounds it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from harness import SHIPPED, Result, clock, compare, count_flops, main, result, timed, where_time_goes
from random_checkpoints import random_checkpoints
from torch import Tensor, nn

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.records import TrainingFolder
from pdiff_hub.training.autoencoder import fit_autoencoder
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.diffusion import build_scheduler, build_unet, train_unet
from pdiff_hub.training.loop import build_accelerator
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder

_PASSES = 10  # passes of the U-Net per round


def ours(autoencoder: ParamAutoencoder, params_KP: Tensor, config: DiffusionConfig) -> float:
    """Seconds for `config.steps` steps, including encoding, making the U-Net and the last save."""
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        with torch.no_grad():
            latent_KCL = autoencoder.encode(params_KP)
        train_unet(latent_KCL, latent_KCL[:0], config, seed=0, accelerator=build_accelerator(), directory=Path(folder))
        return time.perf_counter() - began


def plain(autoencoder: ParamAutoencoder, params_KP: Tensor, config: DiffusionConfig, steps: int) -> float:
    """Seconds for `config.steps` steps, scaled up from the `steps` that are done."""
    unet = build_unet(
        autoencoder.config.latent_channels, autoencoder.config.latent_length, config.widths, config.layers_per_block
    )
    weights, scheduler, generator = list(unet.parameters()), build_scheduler(), torch.Generator().manual_seed(0)
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(
        weights, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=False, fused=False
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
    began = time.perf_counter()
    for _ in range(steps):
        rows_B = torch.randint(len(params_KP), (config.batch_size,), generator=generator)
        with torch.no_grad():
            latent_BCL = autoencoder.encode(params_KP[rows_B])
        noise_BCL = torch.randn(latent_BCL.shape, generator=generator)
        time_B = torch.randint(scheduler.config.num_train_timesteps, rows_B.shape, generator=generator)
        predicted_BCL = unet(scheduler.add_noise(latent_BCL, noise_BCL, time_B), time_B).sample
        optimizer.zero_grad()
        nn.functional.mse_loss(predicted_BCL, noise_BCL).backward()
        nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for average, weight in zip(averages, weights, strict=True):
                average.mul_(config.ema_decay).add_(weight, alpha=1 - config.ema_decay)
    return (time.perf_counter() - began) * config.steps / steps


def compared(
    name: str, autoencoder: ParamAutoencoder, dataset: CheckpointDataset, options: argparse.Namespace
) -> Result:
    """Compares both ways on one data set."""
    config, params_KP = DiffusionConfig(steps=options.steps, save_every=options.steps), dataset.params_KP
    plain_steps = min(options.plain_steps, options.steps)
    seconds_plain, seconds_ours = compare(
        partial(plain, autoencoder, params_KP, config, plain_steps),
        partial(ours, autoencoder, params_KP, config),
        options.rounds,
    )
    shape = f"{autoencoder.config.latent_channels} x {autoencoder.config.latent_length}"
    return result(
        "training",
        f"{options.steps} steps of batch {config.batch_size} on {len(dataset)} {name}, latents {shape}",
        seconds_ours,
        plain=f"encode each batch, AdamW and EMA in a loop, scaled up from {plain_steps} steps",
        seconds_plain=seconds_plain,
        note="Making the U-Net and saving are in the seconds of ours only.",
    )


def one_pass(length: int, options: argparse.Namespace) -> Result:
    """Times a forward and backward pass at one latent length, with the default widths and batch size."""
    config, channels = DiffusionConfig(), AutoencoderConfig().latent_channels
    unet = build_unet(channels, length, config.widths, config.layers_per_block)
    noisy_BCL, noise_BCL = torch.randn(2, config.batch_size, channels, length)
    time_B = torch.randint(1000, (config.batch_size,))

    def step() -> None:
        unet.zero_grad()
        nn.functional.mse_loss(unet(noisy_BCL, time_B).sample, noise_BCL).backward()

    def steps() -> float:
        def passes() -> None:
            for _ in range(_PASSES):
                step()

        return clock(passes) / _PASSES

    return result(
        "training",
        f"U-Net {list(config.widths)}, forward and backward, batch {config.batch_size}, latents {channels} x {length}",
        timed(steps, options.rounds),
        flops=count_flops(step),
        note=where_time_goes(step),
    )


def measure(options: argparse.Namespace) -> Iterator[Result]:
    autoencoder = PDiffPipeline.from_pretrained(SHIPPED).autoencoder
    yield compared(
        "checkpoints of digits-mlp3", autoencoder, CheckpointDataset.from_pretrained(SHIPPED / "checkpoints"), options
    )
    large = random_checkpoints(options.hidden, options.checkpoints)
    with TemporaryDirectory() as folder:
        fitted, *_ = fit_autoencoder(
            large,
            AutoencoderConfig(),
            length_multiple=1,
            seed=0,
            accelerator=build_accelerator(),
            state=TrainingFolder(Path(folder)),
        )
        yield compared(f"checkpoints of {large.layout.num_params:,} numbers", fitted, large, options)
    for length in options.lengths:
        yield one_pass(length, options)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--plain-steps", type=int, default=40, help="of these the plain way does, per round")
    parser.add_argument("--hidden", type=int, nargs=2, default=[1000, 192], help="of the larger MLP")
    parser.add_argument("--checkpoints", type=int, default=40, help="of the larger MLP")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 64], help="of the latents, of the U-Net alone")


if __name__ == "__main__":
    main("training", measure, add_options)
