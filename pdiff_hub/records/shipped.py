"""The pipelines and recipes that come with the package, found by their names.

In a wheel they are inside the package; in a source tree they are beside it.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from pdiff_hub.errors import PdiffError
from pdiff_hub.records.run_folder import RunFolder

FOLDERS = (Path(__file__).parents[1] / "pipelines", Path(__file__).parents[2] / "pipelines")


def shipped() -> dict[str, Path]:
    """Name -> folder, which holds a recipe and, of some, the trained pipeline."""
    pattern = f"*/{RunFolder(Path()).recipe.name}"
    return {file.parent.name: file.parent for folder in FOLDERS for file in sorted(folder.glob(pattern))}


def folder_or_shipped(name: str | os.PathLike[str]) -> Path | None:
    """The folder that `name` means: one that exists, else that of the shipped pipeline of this name, else None.

    None means that it can only be the id of a Hub repository. PdiffError for a shipped recipe without weights.
    """
    if (path := Path(name)).is_dir():
        return path
    found = shipped().get(str(name))
    if found is not None and not RunFolder(found).index.is_file():
        raise PdiffError(
            f"{name} is shipped as a recipe, without weights: make them with `pdiff run {name} --output-dir "
            f"runs/{name}`, then give runs/{name}."
        )
    return found


def is_shipped(folder: Path) -> bool:
    """Whether `folder` came with the package."""
    return folder.resolve().parent in [each.resolve() for each in FOLDERS]


def hint(name: str) -> str:
    """What else a `name` that was not found may mean, as a sentence; empty if it cannot be the name of a pipeline."""
    if "/" in name or os.sep in name:
        return ""
    near = get_close_matches(name, shipped(), n=1, cutoff=0.6)
    nearest = f", and the nearest one is {near[0]!r}" if near else ""
    return f" No shipped pipeline is called {name!r} either{nearest}; `pdiff list` shows them."
