"""What a family of tasks is: the same images, which each task sees or labels in its own way.

Shapes: T tasks that are seen, U that are held out, K networks, B batch, X one input, D numbers of a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Protocol

from torch import Tensor

from pdiff_hub.collect.family.class_subsets import ClassSubsets
from pdiff_hub.collect.family.rotation import Rotation
from pdiff_hub.collect.family.split import TaskSplit
from pdiff_hub.errors import PdiffError, require_known, unknown_name
from pdiff_hub.tasks import Task


class Family(Protocol):
    """A family, made for the images of one task."""

    num_classes: int
    """How many answers a network of the family has."""

    def split(self, num_tasks: int, num_held_out: int, seed: int) -> TaskSplit:
        """Which tasks are seen and which are held out, chosen before anything is trained, so that none leaks."""
        ...

    def view(self, inputs_KBX: Tensor, labels_KB: Tensor, conditions_KD: Tensor) -> tuple[Tensor, Tensor]:
        """The images and labels of K networks as their tasks have them. Batched: no loop over networks."""
        ...


_FAMILIES: Mapping[str, Callable[..., Family]] = {"class-subsets": ClassSubsets, "rotation": Rotation}


def build_family(name: str, options: Mapping[str, Any], task: Task) -> Family:
    """The family `name` on the images of `task`. ValueError for an unknown name or option, and for images that it
    cannot use."""
    if name not in _FAMILIES:
        raise unknown_name("collect.family", name, _FAMILIES)
    make = _FAMILIES[name]
    require_known(f"option of family {name!r}", options, list(signature(make).parameters)[1:])
    try:
        return make(task, **options)
    except TypeError as error:
        raise PdiffError(f"collect.options of family {name!r} have a wrong type: {error}.") from error
