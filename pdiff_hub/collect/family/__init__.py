"""Checkpoints of many networks, each trained on a task of its own out of a family of related tasks."""

from pdiff_hub.collect.family.collecting import (
    FamilyConfig,
    collect_family,
    family_classes,
    unseen_of,
)

__all__ = ["FamilyConfig", "collect_family", "family_classes", "unseen_of"]
