"""The typed content of `results.json`: evaluation makes it; tables, reports, cards and the Space read it.

Accuracies are fractions 0..1 of the test split. An undefined number is None, and null in the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pdiff_hub.errors import PdiffError, shortened
from pdiff_hub.records.ensemble_curve import EnsembleCurve
from pdiff_hub.records.requests import Requests
from pdiff_hub.records.training_summary import LossCurve
from pdiff_hub.safe_files.checking import checked

Verdict = Literal["yes", "no", "within the interval", "undefined"]


def defined(value: float) -> float | None:
    """The number, or None where it is NaN or infinite."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class AccuracySummary:
    """Accuracies of several networks. best: that of the best on *validation*. std: unbiased, 0 for one network."""

    best: float
    mean: float
    median: float
    std: float


@dataclass(frozen=True)
class SimilaritySummary:
    """Mean IoU of errors over pairs of networks, as in p-diff's figure 4a (arXiv 2402.13144).

    original_generated_max: the mean over generated networks of their highest IoU to any original.
    """

    original_original: float | None = None
    generated_generated: float | None = None
    original_generated: float | None = None
    original_generated_max: float | None = None


@dataclass(frozen=True)
class AuditSummary:
    """Numbers that show whether generated networks are copies or averages.

    Attributes:
        nearest_l2_generated: mean L2 distance to the nearest original, in raw weight units.
        nearest_l2_original: the same for originals, each compared with the other originals.
        deviation_r2: held-out deviation R2 of the autoencoder, as training measured it.
        spread_ratio: standard deviation of the generated networks over that of the originals.
        max_iou_ensemble: highest IoU of errors to an original, for the network with the average of all weights.
        max_iou_original: mean over originals of their highest IoU of errors to another original.
    """

    nearest_l2_generated: float | None
    nearest_l2_original: float | None
    deviation_r2: float | None
    spread_ratio: float | None
    max_iou_ensemble: float | None
    max_iou_original: float | None


@dataclass(frozen=True)
class Nearness:
    """How near networks lie to checkpoints that the generator was trained on, in scaled latents.

    Attributes:
        copies: how many are copies, as in `CopyCount`; None without fresh networks.
        distance: mean distance to the nearest checkpoint.
        ratio, median_ratio: that distance over the same of fresh networks, of means and of medians; None without them.
        nearest_over_second: mean distance to the nearest over that to the second-nearest checkpoint: 0 for copies, near
            1 for networks that lie among many.
    """

    copies: int | None
    distance: float
    ratio: float | None
    median_ratio: float | None
    nearest_over_second: float


@dataclass(frozen=True)
class CopyCount:
    """How many generated networks are copies, beside fresh networks.

    Attributes:
        copies, fresh_copies: how many of num_generated and of num_fresh networks are no farther than `distance` from a
            checkpoint that the generator was trained on. All None without fresh networks.
        distance: in scaled latents; 5 % of fresh networks are as near, and one of fewer than 19.
        chance: that as many of as many fresh networks would be so near.
        copier: whether that chance is 1 % or less.
        sentence: the outcome in words.
    """

    copies: int | None
    num_generated: int
    fresh_copies: int | None
    num_fresh: int
    distance: float | None
    chance: float | None
    copier: bool | None
    sentence: str


@dataclass(frozen=True)
class MethodSummary:
    """One variant of a method. max_iou, nearest_l2: means over its `count` networks.

    nearness: None without the autoencoder. told_apart: None if these or fresh networks are fewer than 5.
    """

    method: str
    count: int
    max_iou: float | None
    nearest_l2: float | None
    nearness: Nearness | None = None
    told_apart: Telling | None = None


@dataclass(frozen=True)
class Area:
    """The area under a method's step frontier, its 95 % interval, and how many of its networks have no novelty."""

    area: float | None
    low: float | None
    high: float | None
    undefined: int


@dataclass(frozen=True)
class Comparison:
    """Generated networks compared with those of a method at the same novelty.

    Attributes:
        difference, low, high: median and ends of the 95 % interval of accuracy (generated - baseline), a fraction.
        shared_novelty: both methods reach novelties 0..shared_novelty; the median over the resamples.
        verdict: whether the generated networks are better.
    """

    difference: float | None
    low: float | None
    high: float | None
    shared_novelty: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Frontier:
    """Accuracy against novelty. area: per method. versus: generated networks against each method. verdict: text."""

    area: dict[str, Area]
    versus: dict[str, Comparison]
    verdict: str


@dataclass(frozen=True)
class Telling:
    """How well a classifier tells generated networks from fresh ones, which a generator has not seen.

    Attributes:
        auc: share of pairs (generated, fresh) in which the generated network looks more generated. .5: nobody can
            tell; 1: always.
        low, high: ends of its 95 % bootstrap interval.
    """

    auc: float
    low: float
    high: float


@dataclass(frozen=True)
class Checkpoints:
    """The data set on the Hub that a pipeline was trained on, and the commit."""

    repo_id: str
    revision: str | None = None


@dataclass(frozen=True)
class Facts:
    """What is known about a pipeline without measuring it.

    Attributes:
        name: its name in the report and on the card.
        task, network: names; None if unknown. task_dataset: the task's data set on the Hub, if there is one.
        base_model: the pretrained model on the Hub that the network starts from, if any.
        select, num_params: which tensors are generated, and how many numbers they hold.
        num_inference_steps: sampling steps per network.
        recipe: the whole recipe, if it is known. figures: stems of the pictures beside the results.
        checkpoints: the data set that it was trained on, if that is on the Hub.
        conditions: `ConditionSpec.to_dict()` of what its networks can be asked for; None if they cannot.
        normalize: what the task's option says of how images are normalised; None if it says nothing.
    """

    name: str
    task: str | None
    task_dataset: str | None
    network: str | None
    base_model: str | None
    select: str | list[str]
    num_params: int
    num_inference_steps: int
    recipe: dict[str, Any] | None
    figures: list[str]
    checkpoints: Checkpoints | None
    conditions: dict[str, Any] | None = None
    normalize: str | None = None


@dataclass(frozen=True)
class Measurements:
    """What was measured on generated networks.

    Attributes:
        num_checkpoints: originals and fresh networks together; None without originals.
        num_generated: number of networks judged.
        accuracy, methods: per variant of a method. audit: None without originals.
        similarity: without originals None, or `generated_generated` only.
        copies: None without originals, and in results of older versions. training: None if it is not known.
        requests: of a conditional pipeline; None for others.
        frontier, ensembles: None if not asked for; ensembles per method. frontier: by novelty of errors.
        distance_frontier: by distance to the nearest original, in units of the originals' own; None if not asked for,
            and if the originals are exact copies of each other. notes: sentences for the reader.
    """

    num_checkpoints: int | None
    num_generated: int
    accuracy: dict[str, AccuracySummary] = field(default_factory=dict)
    similarity: SimilaritySummary | None = None
    audit: AuditSummary | None = None
    copies: CopyCount | None = None
    training: LossCurve | None = None
    methods: dict[str, MethodSummary] = field(default_factory=dict)
    frontier: Frontier | None = None
    distance_frontier: Frontier | None = None
    ensembles: dict[str, EnsembleCurve] | None = None
    requests: Requests | None = None
    notes: list[str] = field(default_factory=list)

    def contradiction(self) -> str | None:
        """Names the parts that do not fit together; None if all fit."""
        if self.audit is not None and self.similarity is None:
            return "there is an audit, and no similarity"
        if (losses := self.training) is not None and (
            not losses.steps or not len(losses.steps) == len(losses.held_out) == len(losses.train)
        ):
            return "the losses of training have other numbers of values than of steps, or none"
        if strangers := self.methods.keys() - self.accuracy.keys():
            return f"there is no accuracy of {shortened(min(strangers))}, which is among the methods"
        for name, curve in (self.ensembles or {}).items():
            if len({len(each) for each in (curve.sizes, curve.accuracy, curve.nll, curve.calibration_error)}) > 1:
                return f"the ensembles of {shortened(name)} have other numbers of values than of sizes"
        return None


@dataclass(frozen=True)
class Results:
    """The content of `results.json`: facts, and measurements if there are any.

    Attributes:
        seed: that of the evaluation. environment: versions and machine. seconds: per stage, None if not known.
    """

    facts: Facts
    measured: Measurements | None = None
    seed: int | None = None
    environment: dict[str, str | int | None] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The content of `results.json`: one object with the keys of all parts."""
        data = asdict(self.facts)
        if self.facts.conditions is None:  # as results were before there were any
            del data["conditions"]
        if self.facts.normalize is None:
            del data["normalize"]
        if self.measured is not None:
            measured = asdict(self.measured)
            # An empty object says that nothing was measured; null says that a number is undefined.
            measured |= {key: measured[key] or {} for key in ("similarity", "audit")}
            if self.measured.requests is None:  # as results were before there were any
                del measured["requests"]
            data |= measured | {"seed": self.seed, "environment": self.environment, "seconds": self.seconds}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], what: str = "these results") -> Results:
        """The results that `to_dict` wrote; PdiffError names `what` and the key that is missing or of another type."""
        remedy = "remove the file, then evaluate the pipeline again."
        facts = checked(Facts, data, what, remedy)
        measured = {each.name: data[each.name] for each in fields(Measurements) if each.name in data}
        if not measured:
            return cls(facts)
        measured |= {key: measured.get(key) or None for key in ("similarity", "audit")}
        rest = {"facts": asdict(facts), **{key: data[key] for key in ("seed", "environment", "seconds") if key in data}}
        results = checked(cls, {**rest, "measured": measured}, what, remedy)
        assert results.measured is not None
        if wrong := results.measured.contradiction():
            raise PdiffError(f"{what}: {wrong}; {remedy}")
        return results
