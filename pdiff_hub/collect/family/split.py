"""Seen and held-out tasks of a family. Shapes: T seen tasks, U held-out ones, D numbers of a condition."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pdiff_hub.travelling.pipeline_pdiff import ConditionSpec


@dataclass(frozen=True)
class TaskSplit:
    """Tasks by their conditions.

    Attributes:
        spec: of the conditions; its range is that of the seen tasks.
        seen_TD, held_out_UD: float32.
        seen_groups, held_out_groups: a name per task. Tasks of one name ask the same in other words, such as a subset
            and its complement, so they stay on one side of every split.
        rule: a sentence that says how nothing held out was seen.
    """

    spec: ConditionSpec
    seen_TD: Tensor
    held_out_UD: Tensor
    seen_groups: tuple[str, ...]
    held_out_groups: tuple[str, ...]
    rule: str
