"""Checkpoints kept safely while they are being collected, so that a killed run goes on exactly."""

from pdiff_hub.collect.journal.background import BackgroundJournal
from pdiff_hub.collect.journal.journal import CheckpointJournal, TrainingState

__all__ = ["BackgroundJournal", "CheckpointJournal", "TrainingState"]
