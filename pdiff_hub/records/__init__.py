"""What a run leaves on disk: the names of its files, and the typed content of its JSON files."""

from pdiff_hub.records.results import (
    AccuracySummary,
    Area,
    AuditSummary,
    Checkpoints,
    Comparison,
    EnsembleCurve,
    Facts,
    Frontier,
    Measurements,
    MethodSummary,
    Results,
    SimilaritySummary,
)
from pdiff_hub.records.run_folder import FIGURES, NetworksFolder, RunFolder, TrainingFolder
from pdiff_hub.records.training_summary import TrainingSummary

__all__ = [
    "FIGURES",
    "AccuracySummary",
    "Area",
    "AuditSummary",
    "Checkpoints",
    "Comparison",
    "EnsembleCurve",
    "Facts",
    "Frontier",
    "Measurements",
    "MethodSummary",
    "NetworksFolder",
    "Results",
    "RunFolder",
    "SimilaritySummary",
    "TrainingFolder",
    "TrainingSummary",
]
