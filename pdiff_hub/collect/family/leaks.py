"""Whether what is called held out was held out: a set from elsewhere may say so of tasks that it has seen."""

from __future__ import annotations

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.family.split import TaskSplit
from pdiff_hub.errors import PdiffError


def require_unseen(seen: CheckpointDataset, unseen: CheckpointDataset) -> None:
    """PdiffError if the networks of `unseen` are not for other tasks of the same family, of the same architecture."""
    alike = ("layout", "network", "task", "conditions")
    different = [name for name in alike if getattr(seen, name) != getattr(unseen, name)]
    if different or seen.conditions is None or seen.conditions_KD is None or unseen.conditions_KD is None:
        raise PdiffError(
            f"the networks of held-out tasks do not go with the data set: {', '.join(different) or 'conditions'} "
            "differ; give the ones that were collected with it."
        )
    # Checks that no task is on both sides, by its condition or its group.
    TaskSplit(seen.conditions, seen.conditions_KD, unseen.conditions_KD, _groups(seen), _groups(unseen), rule="")


def _groups(dataset: CheckpointDataset) -> tuple[str, ...]:
    """The group of each network's task; where none is known, one that no other has."""
    known = (row.get("run") for row in dataset.metadata)
    return tuple(f"{id(dataset)} {index}" if each is None else str(each) for index, each in enumerate(known))
