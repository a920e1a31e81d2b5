"""What ensembles of networks reach, by their size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnsembleCurve:
    """What ensembles reach on average, per size. nll: in nats. calibration_error: ECE, 0..1."""

    sizes: tuple[int, ...]
    accuracy: tuple[float, ...]
    nll: tuple[float, ...]
    calibration_error: tuple[float, ...]
