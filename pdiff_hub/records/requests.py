"""What came of requests: networks for tasks that nobody trained, by their description and from a few examples."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdiff_hub.records.ensemble_curve import EnsembleCurve


@dataclass(frozen=True)
class FitRequests:
    """Networks from a few labelled examples of tasks that nobody trained.

    Attributes:
        labels: number of labelled examples -> method -> mean accuracy over the tasks.
        intervals: the same -> ends of the 95 % bootstrap interval over tasks.
        ensembles: the same -> ensembles of networks of this method.
        num_tasks: on how many held-out tasks.
    """

    labels: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    ensembles: dict[str, dict[str, EnsembleCurve]]
    num_tasks: int


@dataclass(frozen=True)
class Requests:
    """Networks that were asked for, on tasks that nothing was trained on. Accuracies are fractions of test images.

    Attributes:
        unseen: method -> mean accuracy over the held-out tasks, of one network each unless the method's name says else.
        intervals: method -> ends of the 95 % bootstrap interval over tasks.
        ensembles: method -> ensembles of several networks.
        fit: from examples; None if not asked for.
        num_seen, num_unseen: tasks. rule: how the split keeps held-out tasks from leaking.
        inside: `unseen` over those held-out tasks alone that lie inside the range of what was seen; empty if all do.
        verdicts: a sentence for each question.
        slope: for a scalar condition that can be measured: how much of what is asked for is measured; None for others.
    """

    unseen: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    ensembles: dict[str, EnsembleCurve]
    fit: FitRequests | None
    num_seen: int
    num_unseen: int
    rule: str
    inside: dict[str, float] = field(default_factory=dict)
    verdicts: list[str] = field(default_factory=list)
    slope: float | None = None
