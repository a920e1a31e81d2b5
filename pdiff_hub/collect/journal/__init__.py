"""Keeps checkpoints safe while they are collected, so that a killed run resumes exactly."""

from pdiff_hub.collect.journal.background import BackgroundJournal
from pdiff_hub.collect.journal.journal import CheckpointJournal, TrainingState, settings_of, tidy_finished

__all__ = ["BackgroundJournal", "CheckpointJournal", "TrainingState", "settings_of", "tidy_finished"]
