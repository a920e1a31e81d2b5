"""What tells of a pipeline, its recipe, results, report, card and so on, when the pipeline is saved elsewhere."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from pdiff_hub.records import RunFolder
from pdiff_hub.records.fingerprint import fingerprint
from pdiff_hub.transfer import require_own

_SAVE = 4  # frames up, for warnings: the call of `save_pretrained`


def remove_stale(target: RunFolder, there: Sequence[Path]) -> None:
    """Removes the files `there`, which told of another pipeline that was in `target`, but for its recipe."""
    stale = [file for file in there if file != target.recipe]
    for file in stale:
        file.unlink()
    if stale:
        warnings.warn(
            f"{target.path} held another pipeline: {stale[0].name} and others, which told of that one, were removed.",
            stacklevel=_SAVE,
        )


def bring_companions(source: RunFolder, target: RunFolder) -> None:
    """Copies what tells of the pipeline in `source`, unless that in `target` is another by now."""
    if not (companions := source.companions()):
        return
    if fingerprint(source) != fingerprint(target):
        warnings.warn(
            f"the pipeline is not the one in {source.path} any more, so {companions[0].name} and others there, which "
            "are of that one, were left out.",
            stacklevel=_SAVE,
        )
        return
    for file in companions:
        copy = require_own(target.path / file.relative_to(source.path), target.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(require_own(file, source.path), copy)
