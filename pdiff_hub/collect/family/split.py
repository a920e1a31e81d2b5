"""Seen and held-out tasks of a family. Shapes: T seen tasks, U held-out ones, D numbers of a condition."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pdiff_hub.checkpoints.held_out import leaked
from pdiff_hub.errors import require
from pdiff_hub.travelling.conditioner import ConditionSpec


@dataclass(frozen=True)
class TaskSplit:
    """Tasks by their conditions.

    Attributes:
        spec: of the conditions; its range is that of the seen tasks.
        seen_TD, held_out_UD: float32.
        seen_groups, held_out_groups: a name per task. Tasks of one name ask the same in other words, such as a subset
            and its complement, so they stay on one side of every split.
        rule: a sentence that says how nothing held out was seen.

    Raises ValueError if the parts do not fit together, or a held-out task is seen.
    """

    spec: ConditionSpec
    seen_TD: Tensor
    held_out_UD: Tensor
    seen_groups: tuple[str, ...]
    held_out_groups: tuple[str, ...]
    rule: str

    def __post_init__(self) -> None:
        require(isinstance(self.spec, ConditionSpec), "spec of a family", self.spec, "a ConditionSpec")
        for what, conditions, groups in (
            ("seen_TD", self.seen_TD, self.seen_groups),
            ("held_out_UD", self.held_out_UD, self.held_out_groups),
        ):
            fits = isinstance(conditions, Tensor) and conditions.is_floating_point()
            expected = f"float [{len(groups)}, {self.spec.size}]: {self.spec.name!r} for each of the groups"
            found = f"{conditions.dtype} {list(conditions.shape)}" if isinstance(conditions, Tensor) else conditions
            require(fits and conditions.shape == (len(groups), self.spec.size), f"{what} of a family", found, expected)
            require(bool(conditions.isfinite().all()), f"{what} of a family", conditions.tolist(), "finite")
        seen = leaked(self.seen_groups, self.seen_TD, self.held_out_groups, self.held_out_UD)
        require(not seen, "the held-out tasks of a family", seen[:1], "tasks that are not seen")
