"""`load_recorded_task`: the task that a data set of checkpoints or a pipeline records, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdiff_hub.errors import PdiffError
from pdiff_hub.tasks.listing import local_folder
from pdiff_hub.tasks.loading import load_task
from pdiff_hub.tasks.memory import is_in_memory
from pdiff_hub.tasks.named_folders import was_named
from pdiff_hub.tasks.spec import RESOLVED, TASK_NAMES, is_hub_id
from pdiff_hub.tasks.task import Task


def load_recorded_task(spec: Mapping[str, Any], *, images: str | Path | None = None, seed: int = 0) -> Task:
    """As `load_task`, of a spec out of a file, which may name a folder that the user knows nothing of.

    A folder is read if the user has named it before (`named_folders`). If the folder that the spec names is not here,
    the absolute path that was recorded with it is tried.

    Args:
        images: the folder or data set to read instead, as the user names it. Splits and labels must be as recorded.

    Raises:
        ValueError: also for a folder that the user has not named; it says how to name it.
    """
    if images is not None:
        return load_task({**spec, "dataset": str(images)}, seed=seed)
    dataset, resolved = spec.get("dataset"), spec.get(RESOLVED)
    source = resolved.get("source") if isinstance(resolved, Mapping) else None
    if not isinstance(dataset, str) or dataset in TASK_NAMES or is_in_memory(dataset):
        return load_task(spec, seed=seed)
    recorded = [each for each in (dataset, source) if isinstance(each, str)]
    here = [folder for each in recorded if (folder := local_folder(each)) is not None]
    for folder in here:
        if was_named(folder):
            return load_task({**spec, "dataset": str(folder)}, seed=seed)
    if not here and is_hub_id(dataset) and source in (dataset, None):
        return load_task(spec, seed=seed)
    where = repr(dataset) if source in (dataset, None) else f"{dataset!r}, recorded as {source!r}"
    why = "which you have not named yet, and a file alone does not make it be read" if here else "which is not here"
    raise PdiffError(
        f"the images of this task are in the folder {where}, {why}; give the folder with these images: --images FOLDER "
        "(images=FOLDER in Python)"
    )
