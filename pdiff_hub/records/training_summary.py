"""`TrainingSummary`: what training found, kept in `training/summary.json`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSummary:
    """What training found.

    Attributes:
        deviation_r2: held-out deviation R2, None where nothing was held out.
        num_components: components of the autoencoder's linear form; numbers of a latent of the other.
        latent_shape: channels and length.
        loss: the last average of the denoising loss.
        seconds_autoencoder, seconds_diffusion: on this machine; None for a stage that was stopped and went on, since
            what it took before is not known.
        num_processes: that trained.
    """

    deviation_r2: float | None
    num_components: int
    latent_shape: tuple[int, int]
    loss: float
    seconds_autoencoder: float | None
    seconds_diffusion: float | None
    num_processes: int
