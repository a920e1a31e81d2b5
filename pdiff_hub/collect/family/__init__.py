"""Checkpoints of many networks, each trained on a task of its own out of a family of related tasks."""

from pdiff_hub.collect.family.collecting import FamilyConfig, collect_family, family_classes
from pdiff_hub.collect.family.family import Family, build_family
from pdiff_hub.collect.family.split import TaskSplit
from pdiff_hub.collect.family.trunk import last_layer, train_trunk

__all__ = [
    "Family",
    "FamilyConfig",
    "TaskSplit",
    "build_family",
    "collect_family",
    "family_classes",
    "last_layer",
    "train_trunk",
]
