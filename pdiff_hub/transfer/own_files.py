"""Which files of a folder may travel: regular files that lie in it.

A folder from elsewhere (git keeps symbolic links) can name any file of the person who publishes or copies it.
"""

from __future__ import annotations

import os
from pathlib import Path

from pdiff_hub.errors import PdiffError

_SHARED_STORE = ".huggingface-shared-blobs"  # the file by which the client's cache marks its store of shared contents


def require_own(file: Path, folder: Path) -> Path:
    """`file`, which is in `folder`; PdiffError if it, or a folder between the two, is a link, or a pipe or device.

    `folder` itself may be a link, and `file` may be missing. The links that the Hub's client makes in its cache are
    files of that folder.
    """
    between = file.relative_to(folder).parts
    for depth in range(1, len(between) + 1):
        part = folder.joinpath(*between[:depth])
        if part.is_symlink() and not _leads_into_cache(part, folder):
            raise PdiffError(
                f"{part} is a link to {os.readlink(part)!r}, and only files that lie in their folder are published, "
                "copied or replaced: put the file itself there, or remove the link."
            )
    if file.exists() and not file.is_file():
        raise PdiffError(f"{file} is no regular file, so it is neither published nor copied: remove it.")
    return file


def _leads_into_cache(link: Path, folder: Path) -> bool:
    """Whether `folder` is a snapshot in the client's cache, and `link` leads to a content that is stored there."""
    if folder.parent.name != "snapshots":
        return False
    repository = folder.parent.parent
    stores = [repository / "blobs"]
    if (repository.parent / "blobs" / _SHARED_STORE).is_file():
        stores.append(repository.parent / "blobs")
    target = link.resolve()
    return any(not store.is_symlink() and target.is_relative_to(store.resolve()) for store in stores)
