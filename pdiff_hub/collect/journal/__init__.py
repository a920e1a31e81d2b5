"""Keeps checkpoints safe while they are collected, so that a killed run resumes exactly."""

from pdiff_hub.collect.journal.background import BackgroundJournal
from pdiff_hub.collect.journal.journal import CheckpointJournal, TrainingState, tidy_finished

__all__ = ["BackgroundJournal", "CheckpointJournal", "TrainingState", "tidy_finished"]
