"""The folders of images that the user has named, in a recipe, on the command line or in Python.

Data sets of checkpoints and pipelines record the folder of their task, and such a file may come from anybody. Its word
alone makes no folder be walked: only one that the user of this account has named at some time. So one's own runs keep
working, from every directory. The list is kept beside the client's cache, one small file per folder.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

_named: set[str] = set()  # in this process, also where nothing can be written


def remember(folder: Path) -> None:
    """Notes that the user named `folder`."""
    real = os.path.realpath(folder)
    _named.add(real)
    with suppress(OSError):  # then a later command asks for the folder again
        note = _note(real)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


def was_named(folder: Path) -> bool:
    """Whether the user has named `folder`, now or in an earlier process."""
    real = os.path.realpath(folder)
    return real in _named or _note(real).is_file()


def _note(real: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "pdiff-hub" / "folders" / hashlib.sha256(os.fsencode(real)).hexdigest()
