"""The images and labels that an ensemble is chosen and judged by: those of a task, or of what a condition makes of it.

Shapes: N images, n of them, D numbers of a condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdiff_hub.collect.family import build_family
from pdiff_hub.collect.family.family import Family
from pdiff_hub.errors import PdiffError, require
from pdiff_hub.prediction.predictions import SplitImages
from pdiff_hub.records.made_here import calls_of, made_here
from pdiff_hub.tasks import Split, Task, load_recorded_task, load_task
from pdiff_hub.tasks.normalization import recorded_statistics
from pdiff_hub.travelling.conditioner import ConditionSpec
from pdiff_hub.travelling.pipeline_pdiff import PDiffPipeline

_IMAGES = 1024


class View:
    """The normalised images of a split, and their labels; of a family's task as its networks see them."""

    def __init__(self, task: Task, split: Split, family: Family | None, condition_D: Tensor | None):
        self._images, self._split = SplitImages(task, split), split
        self._family, self._condition_D = family, condition_D
        parts = [self._seen(slice(start, start + _IMAGES))[1] for start in range(0, len(split), _IMAGES)]
        self.labels_N = torch.cat(parts) if parts else split.labels_N

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: slice, /) -> Tensor:
        return self._seen(index)[0]

    def _seen(self, index: slice) -> tuple[Tensor, Tensor]:
        inputs_nX, labels_n = self._images[index], self._split.labels_N[index]
        if self._family is None or self._condition_D is None:
            return inputs_nX, labels_n
        inputs_1nX, labels_1n = self._family.view(inputs_nX[None], labels_n[None], self._condition_D[None])
        return inputs_1nX[0], labels_1n[0]


@dataclass(frozen=True, eq=False)
class Judging:
    """The task that a pipeline's networks are for. condition_D: what was asked for, as a data set has it."""

    task: Task
    validation: View
    test: View
    condition_D: Tensor | None
    classes: list[str]

    @classmethod
    def of(
        cls,
        pipe: PDiffPipeline,
        spec: Mapping[str, Any],
        task: Task | str | Mapping[str, Any] | None,
        condition: Mapping[str, Any] | None,
        recipe: Mapping[str, Any] | None,
        folder: Path | None,
        *,
        images: str | Path | None,
        trust_remote_code: bool,
    ) -> Judging:
        """Args as in `PDiffPipeline.ensemble`. spec: the network's. recipe, folder: the pipeline's, if known."""
        loaded = _task(pipe, task, images)
        family, condition_D = None, None
        if condition is not None and pipe.conditions is not None:
            known = pipe.conditions.name
            require(list(condition) == [known], "the condition", list(condition), f"{[known]}, all that it knows")
            condition_D = pipe.conditions.encode(condition[known])
            family = _family(recipe, loaded, folder, trust_remote_code)
        answers = loaded.num_classes if family is None else family.num_classes
        found = (loaded.in_channels, loaded.image_size, answers)
        expected = (spec["in_channels"], spec["image_size"], spec["num_classes"])
        if found != expected:
            raise PdiffError(
                f"the task {loaded.spec['dataset']} has (channels, pixels, classes) {found}, and the networks are for "
                f"{expected}; give the task that they were trained for."
            )
        if len(loaded.validation) == 0:
            raise PdiffError("the task has no validation images, by which an ensemble is chosen.")
        names = [str(each) for each in loaded.spec["resolved"]["classes"]]
        if family is not None and condition_D is not None:
            names = _answer_names(pipe.conditions, condition_D, answers)
        validation = View(loaded, loaded.validation, family, condition_D)
        return cls(loaded, validation, View(loaded, loaded.test, family, condition_D), condition_D, names)


def _answer_names(spec: ConditionSpec, condition_D: Tensor, number: int) -> list[str]:
    """Of the networks of a family, which are asked by a bit for each class or in another way."""
    if spec.kind != "bits" or number != 2 or not spec.names:
        return [str(each) for each in range(number)]
    listed = ", ".join(name for name, bit in zip(spec.names, condition_D.tolist(), strict=True) if bit)
    return [f"none of {listed}", f"one of {listed}"]


def _task(pipe: PDiffPipeline, task: Task | str | Mapping[str, Any] | None, images: str | Path | None) -> Task:
    """Normalised as the pipeline's, unless the user's own spec says how."""
    if isinstance(task, Task):
        return task
    own = pipe.autoencoder.config.task
    if task is None:
        if own is None:
            raise PdiffError("this pipeline does not say which task its networks are for; give task=...")
        return load_recorded_task(dict(own), images=images)
    loaded = load_task(task, seed=(own or {}).get("seed", 0))
    recorded = recorded_statistics(own or {})
    if recorded is None or len(recorded[0]) != loaded.in_channels or "normalize" in loaded.spec:
        return loaded
    return replace(loaded, mean=recorded[0], std=recorded[1])


def _family(
    recipe: Mapping[str, Any] | None, task: Task, folder: Path | None, trust_remote_code: bool
) -> Family | None:
    """What a condition makes of the task, by the pipeline's recipe; None if its networks all have the same task."""
    collect = (recipe or {}).get("collect", {})
    if collect.get("method") != "family":
        return None
    calls = calls_of({}, collect)
    allowed = trust_remote_code or all(made_here(folder, what, call) for what, call in calls.items())
    return build_family(str(collect.get("family")), collect.get("options") or {}, task, allow_factory=allowed)
