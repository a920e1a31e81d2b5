"""What a run leaves on disk: the names of its files, and the typed content of its JSON files."""

from pdiff_hub.records.results import (
    AccuracySummary,
    Area,
    AuditSummary,
    Checkpoints,
    Comparison,
    CopyCount,
    EnsembleCurve,
    Facts,
    Frontier,
    Measurements,
    MethodSummary,
    Nearness,
    Results,
    SimilaritySummary,
    Telling,
)
from pdiff_hub.records.run_folder import FIGURES, NetworksFolder, RunFolder, TrainingFolder
from pdiff_hub.records.training_summary import LossCurve, TrainingSummary

__all__ = [
    "FIGURES",
    "AccuracySummary",
    "Area",
    "AuditSummary",
    "Checkpoints",
    "Comparison",
    "CopyCount",
    "EnsembleCurve",
    "Facts",
    "Frontier",
    "LossCurve",
    "Measurements",
    "MethodSummary",
    "Nearness",
    "NetworksFolder",
    "Results",
    "RunFolder",
    "SimilaritySummary",
    "Telling",
    "TrainingFolder",
    "TrainingSummary",
]
