"""`TrainingSummary`: what training found, kept in `training/summary.json`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSummary:
    """What training found.

    Attributes:
        deviation_r2: held-out deviation R2, None where nothing was held out.
        num_components: components of a linear autoencoder; numbers per latent of a convolutional one.
        latent_shape: channels and length.
        loss: the last average of the denoising loss.
        seconds_autoencoder, seconds_diffusion: on this machine; None for a stage that was stopped and resumed, since
            its time before the stop is not known.
        num_processes: the number of processes that trained.
    """

    deviation_r2: float | None
    num_components: int
    latent_shape: tuple[int, int]
    loss: float
    seconds_autoencoder: float | None
    seconds_diffusion: float | None
    num_processes: int
