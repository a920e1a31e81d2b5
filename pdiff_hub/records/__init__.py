"""What a run leaves on disk: the names of its files, and the typed content of its JSON files."""

from pdiff_hub.records.ensemble_curve import EnsembleCurve
from pdiff_hub.records.requests import FitRequests, Requests
from pdiff_hub.records.results import (
    AccuracySummary,
    Area,
    AuditSummary,
    Checkpoints,
    Comparison,
    CopyCount,
    Facts,
    Frontier,
    Measurements,
    MethodSummary,
    Nearness,
    Results,
    SimilaritySummary,
    Telling,
)
from pdiff_hub.records.run_folder import (
    FIGURES,
    REQUEST_FIGURES,
    AutoencoderFacts,
    NetworksFolder,
    RunFolder,
    TrainingFolder,
)
from pdiff_hub.records.training_summary import LossCurve, TrainingSummary

__all__ = [
    "FIGURES",
    "REQUEST_FIGURES",
    "AccuracySummary",
    "Area",
    "AuditSummary",
    "AutoencoderFacts",
    "Checkpoints",
    "Comparison",
    "CopyCount",
    "EnsembleCurve",
    "Facts",
    "FitRequests",
    "Frontier",
    "LossCurve",
    "Measurements",
    "MethodSummary",
    "Nearness",
    "NetworksFolder",
    "Requests",
    "Results",
    "RunFolder",
    "SimilaritySummary",
    "Telling",
    "TrainingFolder",
    "TrainingSummary",
]
