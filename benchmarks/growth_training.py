"""The parts of a training whose time and memory are measured against size."""

from __future__ import annotations

import time
from pathlib import Path

from growth_process import Seconds

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline


def timed_training(folder: Path, diffusion: DiffusionConfig) -> Seconds:
    """Train both stages on the checkpoints in `folder` and write the pipeline there; `folder` has none yet."""
    began = time.perf_counter()
    summary = train_pipeline(
        CheckpointDataset.from_pretrained(folder / "checkpoints"), folder / "pipeline", AutoencoderConfig(), diffusion
    )
    total = time.perf_counter() - began
    # Both are known, because the folder was new.
    assert summary.seconds_autoencoder is not None and summary.seconds_diffusion is not None
    return {
        "fit autoencoder": summary.seconds_autoencoder,
        "U-Net steps": summary.seconds_diffusion,
        "write pipeline": total - summary.seconds_autoencoder - summary.seconds_diffusion,
    }
