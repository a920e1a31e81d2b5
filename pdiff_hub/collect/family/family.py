"""What a family of tasks is: the same images, which each task sees or labels in its own way.

A family has a name, or is the user's own: a dotted path to a function or class that makes one.
Shapes: T tasks that are seen, U that are held out, K networks, B batch, X one input, D numbers of a condition.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor

from pdiff_hub.collect.family.class_subsets import ClassSubsets
from pdiff_hub.collect.family.rotation import Rotation
from pdiff_hub.collect.family.split import TaskSplit
from pdiff_hub.errors import PdiffError, require, require_known, unknown_name
from pdiff_hub.networks import factory
from pdiff_hub.tasks import Task

_TRIED_NETWORKS, _TRIED_IMAGES = 2, 4


class Family(Protocol):
    """A family, made for the images of one task."""

    num_classes: int
    """How many answers a network of the family has."""

    def split(self, num_tasks: int, num_held_out: int, seed: int) -> TaskSplit:
        """Which tasks are seen and which are held out, chosen before anything is trained, so that none leaks."""
        ...

    def view(self, inputs_KBX: Tensor, labels_KB: Tensor, conditions_KD: Tensor) -> tuple[Tensor, Tensor]:
        """The images and labels of K networks as their tasks have them. Batched: no loop over networks.

        All are on the device that trains. The same arguments must give the same answer, or a killed run cannot resume.
        """
        ...


_FAMILIES: Mapping[str, Callable[..., Family]] = {"class-subsets": ClassSubsets, "rotation": Rotation}


def build_family(name: str, options: Mapping[str, Any], task: Task, *, allow_factory: bool = True) -> Family:
    """The family `name` on the images of `task`.

    name: "class-subsets", "rotation", or `some.module:factory`, which is called with the task and the options.
    allow_factory: as in `networks.build_network`: False for a name that came from elsewhere.

    ValueError for an unknown name or option, for images that the family cannot use, and for an object that is no family
    (it names what is missing).
    """
    if name not in _FAMILIES:
        if not factory.is_dotted(name):
            raise unknown_name("collect.family", name, _FAMILIES)
        return _own_family(name, options, task, allow_factory)
    make = _FAMILIES[name]
    require_known(f"option of family {name!r}", options, list(signature(make).parameters)[1:])
    try:
        return make(task, **options)
    except TypeError as error:
        raise PdiffError(f"collect.options of family {name!r} have a wrong type: {error}.") from error


def split_of(family: Family, name: str, num_tasks: int, num_held_out: int, seed: int) -> TaskSplit:
    """The family's split; ValueError if it is not of as many tasks."""
    split = family.split(num_tasks, num_held_out, seed)
    require(isinstance(split, TaskSplit), f"what split of family {name!r} gives", split, "a TaskSplit")
    found, asked = (len(split.seen_TD), len(split.held_out_UD)), (num_tasks, num_held_out)
    require(found == asked, f"the number of tasks (seen, held out) of family {name!r}", found, f"{asked}, as asked for")
    return split


def require_view(family: Family, name: str, task: Task, split: TaskSplit) -> None:
    """Tries `view` on a few images, before anything is trained; ValueError if its answer cannot be trained on."""
    conditions_KD = split.seen_TD[:_TRIED_NETWORKS]
    few, networks = slice(0, _TRIED_IMAGES), len(conditions_KD)
    inputs_KBX = task.inputs(task.train, few).expand(networks, -1, -1, -1, -1)
    labels_KB = task.train.labels_N[few].expand(networks, -1)
    seen = family.view(inputs_KBX, labels_KB, conditions_KD)
    pair = isinstance(seen, tuple) and len(seen) == 2
    require(pair, f"what view of family {name!r} gives", type(seen).__name__, "a tuple of images and labels")
    for what, found, dtype, shape in zip(
        ("images", "labels"), seen, (torch.float32, torch.int64), (inputs_KBX.shape, labels_KB.shape), strict=True
    ):
        text = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        expected = f"{dtype} {list(shape)}"
        require(text == expected, f"what view of family {name!r} makes of {what}", text, expected)
    classes = seen[1].unique().tolist()
    known = set(classes) <= set(range(family.num_classes))
    require(known, f"labels of family {name!r}", classes, f"from 0 to num_classes - 1, {family.num_classes - 1}")


def _own_family(name: str, options: Mapping[str, Any], task: Task, allow_factory: bool) -> Family:
    if not allow_factory:
        raise PdiffError(
            f"the family {name!r} is made by calling that function, which is not allowed here because its name came "
            "from somewhere else; look at it, then give --trust-remote-code, or trust_remote_code=True "
            "(allow_factory=True of this function)"
        )
    try:
        json.dumps(dict(options), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PdiffError(
            f"collect.options of family {name!r} must be JSON values (they are stored): {error}."
        ) from error
    make: Callable[..., Family] = factory._import(name, "collect.family")
    try:
        expected = signature(make)
    except ValueError:  # some built-in callables have no signature
        expected = None
    try:
        if expected is not None:
            expected.bind(task, **options)
    except TypeError as error:
        raise PdiffError(
            f"collect.family {name!r} cannot be called with the task and the options {list(options)}: {error}; its "
            f"signature is {expected}."
        ) from error
    family = make(task, **options)
    parts = {"num_classes": type(getattr(family, "num_classes", None)) is int}
    parts |= {method: callable(getattr(family, method, None)) for method in ("split", "view")}
    if lacking := [part for part, there in parts.items() if not there]:
        raise PdiffError(
            f"collect.family {name!r} gives a {type(family).__name__} without {' and '.join(lacking)}; expected an "
            "object with num_classes (an integer), split and view, as pdiff_hub.collect.family.Family has them."
        )
    return family
