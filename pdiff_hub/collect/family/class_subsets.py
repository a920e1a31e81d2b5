"""The family "class-subsets": is the label one of these classes? The condition is a bit per class.

Shapes: T seen tasks, U held-out ones, K networks, B batch, X one input, D classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdiff_hub.collect.family.split import TaskSplit
from pdiff_hub.errors import PdiffError
from pdiff_hub.seeds import generator_of
from pdiff_hub.tasks import Task
from pdiff_hub.travelling.conditioner import ConditionSpec

_MOST_CLASSES = 1024
_LISTED = 12  # up to so many classes, all subsets are listed and drawn from; of more, subsets are drawn at random


class ClassSubsets:
    """Two answers: 1 for the classes of a subset, 0 for the others. The empty and the full subset are no tasks.

    A subset and its complement are the same partition with the answers swapped. So both are held out, or neither is:
    published splits in which one of the two was seen measure memory (`docs/measurements.md`, "Asking").
    """

    num_classes = 2

    def __init__(self, task: Task) -> None:
        if not 3 <= task.num_classes <= _MOST_CLASSES:
            raise PdiffError(
                f"the task has {task.num_classes} classes, expected 3 to {_MOST_CLASSES} to make subsets of."
            )
        names = task.spec.get("resolved", {}).get("classes") or [str(index) for index in range(task.num_classes)]
        self._size = task.num_classes
        self._names = tuple(map(str, names))

    def split(self, num_tasks: int, num_held_out: int, seed: int) -> TaskSplit:
        """Draws partitions for the held-out tasks first, then seen tasks from the others."""
        generator = generator_of(seed, "class-subsets")
        partitions = self._partitions(num_tasks + num_held_out, generator)
        most = 2 * len(partitions)
        if num_tasks + num_held_out + num_held_out % 2 > most:
            raise PdiffError(
                f"{num_tasks} seen and {num_held_out} held-out tasks are asked for, and {self._size} classes have "
                f"{most} subsets; ask for fewer."
            )
        num_out = (num_held_out + 1) // 2
        held_out = self._both(partitions[:num_out])[:num_held_out]
        others = self._both(partitions[num_out:])
        seen = others[torch.randperm(len(others), generator=generator)[:num_tasks]]
        return TaskSplit(
            ConditionSpec("classes", "bits", self._size, self._names),
            seen,
            held_out,
            tuple(map(_partition_name, seen)),
            tuple(map(_partition_name, held_out)),
            "No held-out subset was seen, and neither was its complement.",
        )

    def view(self, inputs_KBX: Tensor, labels_KB: Tensor, conditions_KD: Tensor) -> tuple[Tensor, Tensor]:
        """The same images; labels 1 where the label's bit is set."""
        return inputs_KBX, torch.gather(conditions_KD, 1, labels_KB).long()

    def _partitions(self, least: int, generator: torch.Generator) -> Tensor:
        """Different partitions in random order, each by its subset without class 0; at least half of `least`."""
        if self._size <= _LISTED:
            numbers = torch.arange(1, 2 ** (self._size - 1))[:, None]
            bits = (numbers >> torch.arange(self._size - 1)) & 1
        else:
            bits = torch.randint(2, (4 * least, self._size - 1), generator=generator)
            bits = torch.unique(bits[bits.any(dim=1)], dim=0)
        bits = torch.cat([torch.zeros(len(bits), 1, dtype=bits.dtype), bits], dim=1).float()
        return bits[torch.randperm(len(bits), generator=generator)]

    def _both(self, subsets: Tensor) -> Tensor:
        """Each subset, followed by its complement."""
        return torch.stack([subsets, 1 - subsets], dim=1).reshape(-1, self._size)


def _partition_name(subset_D: Tensor) -> str:
    """The same for a subset and its complement."""
    side = subset_D if subset_D[0] == 0 else 1 - subset_D
    return "partition-" + "".join(str(int(bit)) for bit in side)
