"""Sampling networks: a batch at the pipeline's own number of steps against 1,000 steps of DDPM, one after another.

The plain way is what the authors' code does. It is timed on a few networks and scaled up. Then the U-Net's forward pass
alone is timed and compared with the machine's matrix-product rate; a note says what bounds it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial

import torch
from diffusers import UNet1DModel
from harness import SHIPPED, Result, clock, compare, count_flops, main, result, timed, where_time_goes

from pdiff_hub import PDiffPipeline
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.diffusion import build_scheduler, build_unet

_PLAIN_STEPS = 1000
_BATCH = 64
_PASSES = 10  # passes of the U-Net per round


@torch.no_grad()
def one_by_one(pipe: PDiffPipeline, networks: int, plain_networks: int) -> float:
    """Seconds for `networks` networks, scaled up from the `plain_networks` that are sampled."""
    scheduler, config = build_scheduler(), pipe.autoencoder.config
    scheduler.set_timesteps(_PLAIN_STEPS)
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    for _ in range(plain_networks):
        latent_1CL = torch.randn(1, config.latent_channels, config.latent_length, generator=generator)
        for timestep in scheduler.timesteps:
            epsilon_1CL = pipe.unet(latent_1CL, timestep).sample
            latent_1CL = scheduler.step(epsilon_1CL, timestep, latent_1CL, generator=generator).prev_sample
        pipe.autoencoder.state_dicts(pipe.autoencoder.decode(latent_1CL))
    return (time.perf_counter() - began) * networks / plain_networks


def forward(unet: UNet1DModel, batch: int, length: int) -> None:
    """Does one forward pass on noise."""
    with torch.no_grad():
        unet(torch.randn(batch, unet.config.in_channels, length), torch.randint(1000, (batch,)))


def one_pass(length: int, options: argparse.Namespace) -> Result:
    """Times the forward pass at one latent length, with the default widths."""
    config, channels = DiffusionConfig(), AutoencoderConfig().latent_channels
    unet = build_unet(channels, length, config.widths, config.layers_per_block).eval()
    work = partial(forward, unet, _BATCH, length)

    def passes() -> float:
        return clock(lambda: [work() for _ in range(_PASSES)]) / _PASSES

    return result(
        "sampling",
        f"U-Net {list(config.widths)}, forward, batch {_BATCH}, latents {channels} x {length}",
        timed(passes, options.rounds),
        flops=count_flops(work),
        note=where_time_goes(work),
    )


def measure(options: argparse.Namespace) -> Iterator[Result]:
    pipe = PDiffPipeline.from_pretrained(SHIPPED)
    pipe.set_progress_bar_config(disable=True)
    steps, networks = pipe.config.default_num_inference_steps, options.networks
    seconds_plain, seconds_ours = compare(
        partial(one_by_one, pipe, networks, options.plain_networks),
        lambda: pipe(networks, generator=torch.Generator().manual_seed(0)),
        options.rounds,
    )
    length = pipe.autoencoder.config.latent_length
    yield result(
        "sampling",
        f"{networks} networks of digits-mlp3, {steps} steps",
        seconds_ours,
        plain=f"DDPM of {_PLAIN_STEPS:,} steps, batch 1, scaled up from {options.plain_networks}",
        seconds_plain=seconds_plain,
        flops=steps * count_flops(lambda: forward(pipe.unet, networks, length)),
        note="What the accuracy of both is, on networks of the authors' sizes: under `against the authors`.",
    )
    for each in options.lengths:
        yield one_pass(each, options)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--plain-networks", type=int, default=2, help="of these the plain way samples, per round")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 64], help="of the latents, of the U-Net alone")


if __name__ == "__main__":
    main("sampling_speed", measure, add_options)
