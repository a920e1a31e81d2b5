"""A run that is finished: the same command again finds that nothing is left to do, before torch is loaded.

Loading torch and diffusers takes longer than to see this. So it is decided by the command, the recipe's file, and the
sizes and times of all files of the run and of a folder of images. If any of them is another, the run goes on as usual.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RECORD = Path("training") / "finished.json"


def remember(
    directory: Path, recipe: str, overrides: Sequence[str], file: Path, said: str, images: Path | None = None
) -> None:
    """Records that the run of a recipe, read from `file`, is finished in `directory`. said: what to say next time.

    images: the folder of the task's images, if it is one here.
    """
    from pdiff_hub.safe_files import write_json

    record = {
        **_command(recipe, overrides),
        "recipe_file": str(file.resolve()),
        "recipe_sha256": _digest(file),
        "files": _files(directory),
        "images": None if images is None else [str(images.resolve()), _files(images)],
        "said": said,
    }
    write_json(directory / _RECORD, record)


def said_before(directory: Path, recipe: str, overrides: Sequence[str]) -> str | None:
    """What was said of the same run when it was finished; None if it was not, or if anything has changed since."""
    try:
        record: dict[str, Any] = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
        same = (
            all(record.get(key) == value for key, value in _command(recipe, overrides).items())
            and record.get("recipe_sha256") == _digest(Path(record["recipe_file"]))
            and record.get("files") == _files(directory)
            and (record["images"] is None or record["images"][1] == _files(Path(record["images"][0])))
        )
        return str(record["said"]) if same else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # no record, or a damaged one: the run itself finds out what is left to do


def _command(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    from importlib.metadata import version  # importing it takes longer than all else here

    return {
        "version": version("pdiff-hub"),
        "recipe": recipe,
        "overrides": list(overrides),
        # A relative name means another file elsewhere, and a folder of a shipped recipe's name goes before it.
        "working_directory": str(Path.cwd()),
        "is_path": Path(recipe).exists(),
    }


def _digest(file: Path) -> str | None:
    """SHA-256; None of a cell of the paper's tables, which has no file."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _files(directory: Path) -> dict[str, list[int]]:
    """Size and time of change of each file, by its name; but for the record's own, and locks."""
    found = {}
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory)
        if name != _RECORD and not file.name.startswith(".") and file.is_file():
            about = file.stat()
            found[name.as_posix()] = [about.st_size, about.st_mtime_ns]
    return found
