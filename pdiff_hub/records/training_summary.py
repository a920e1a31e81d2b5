"""`TrainingSummary`: what training found, kept in `training/summary.json`."""

from __future__ import annotations

from dataclasses import dataclass

PLATEAU = 0.02
"""Held-out losses that differ by a smaller share cannot be told apart (docs/measurements.md, "Copying")."""


@dataclass(frozen=True)
class LossCurve:
    """The denoising loss (mean squared error of the noise) of the averaged weights, in the course of training.

    Attributes:
        steps: when it was measured, from 0.
        held_out, train: on latents of held-out and of training checkpoints, one number per measurement.
        kept: the step whose weights the pipeline has: that of the lowest held-out loss, and of several that are equal
            within 2 % the middle one; an earlier one if those weights draw copies, a later one if they
            draw too far away. None if the last were kept.
    """

    steps: tuple[int, ...]
    held_out: tuple[float, ...]
    train: tuple[float, ...]
    kept: int | None


@dataclass(frozen=True)
class TrainingSummary:
    """What training found.

    Attributes:
        deviation_r2: held-out deviation R2, None where nothing was held out.
        num_components: components of a linear autoencoder; numbers per latent of a convolutional one.
        latent_shape: channels and length.
        loss: the last average of what the denoiser was trained to lower.
        seconds_autoencoder, seconds_diffusion: on this machine; None for a stage that was stopped and resumed, since
            its time before the stop is not known.
        num_processes: the number of processes that trained.
        curve: None where nothing was held out.
    """

    deviation_r2: float | None
    num_components: int
    latent_shape: tuple[int, int]
    loss: float
    seconds_autoencoder: float | None
    seconds_diffusion: float | None
    num_processes: int
    curve: LossCurve | None = None
