"""What is in a folder of data: every file below it, links followed, each folder once."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pdiff_hub.errors import PdiffError, require

_LITTER = ("__MACOSX", "__pycache__")  # of other programs, and all names that begin with a dot
_MOST_LEVELS = 100


@dataclass(frozen=True)
class Listing:
    """The regular files below `folder`, and the folders in it that hold none, as parts of paths below it.

    Hidden files and folders are left out. Files are in the order of their whole paths as text, which is the order in
    which `datasets` reads them: the splits of a task follow from it.
    """

    folder: Path
    files: list[tuple[str, ...]]
    empty: list[tuple[str, ...]]

    def path(self, parts: tuple[str, ...]) -> Path:
        return self.folder.joinpath(*parts)


def local_folder(name: str) -> Path | None:
    """The folder of that name here, with `~` for the home folder; None if there is none."""
    try:
        folder = Path(name).expanduser()
    except RuntimeError:  # "~somebody" who has no home here
        return None
    return folder if folder.is_dir() else None


def list_folder(folder: Path) -> Listing:
    """Walks `folder`. OSError for a part of it that cannot be read, PdiffError if one folder is there twice.

    A link to a folder that it lies in adds nothing, and is passed over. Any other second way to a folder would put the
    same images into two classes or splits.
    """
    files: list[tuple[str, ...]] = []
    empty: list[tuple[str, ...]] = []
    seen: dict[str, Path] = {}

    def walk(parts: tuple[str, ...], above: tuple[str, ...]) -> bool:
        here = folder.joinpath(*parts)
        require(len(parts) <= _MOST_LEVELS, "a folder", str(here), f"at most {_MOST_LEVELS} levels below the first")
        real = os.path.realpath(here)
        if real in above:
            return True
        if real in seen:
            raise PdiffError(
                f"{str(here)!r} and {str(seen[real])!r} are one folder, by a link: its images would be used twice; "
                "remove one of them."
            )
        seen[real] = here
        some = False
        with os.scandir(here) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            if name.startswith(".") or name in _LITTER:
                continue
            try:
                mode = os.stat(here / name).st_mode
            except OSError as error:  # a link to nothing, or to itself
                raise PdiffError(f"{str(here / name)!r} cannot be read ({error.strerror}); remove it.") from error
            if stat.S_ISDIR(mode):
                some = walk((*parts, name), (*above, real)) or some
            elif stat.S_ISREG(mode):
                files.append((*parts, name))
                some = True
        if not some:
            empty.append(parts)
        return some

    walk((), ())
    return Listing(folder, sorted(files, key="/".join), empty)
