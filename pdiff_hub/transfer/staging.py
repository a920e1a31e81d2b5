"""Folders that exist only while something is put together, and what is left of those whose process was killed.

A lock of the operating system, which ends with its process, tells a folder that is in use from one that was left. Where
there is no such lock (Windows, some network file systems), nothing that was left is removed.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


@contextmanager
def staging(parent: Path, name: str, *, mode: int = 0o777) -> Iterator[Path]:
    """Yields a new folder in `parent` for what will be called `name`; in the end it is removed, if it is still there.

    First it removes such folders that killed processes left. mode: the folder's, of which the umask takes its part.
    """
    for leftover in parent.glob(f".unfinished-{glob.escape(name)}-*"):
        if re.fullmatch(rf"\.unfinished-{re.escape(name)}-[0-9a-f]{{8}}", leftover.name) and not leftover.is_symlink():
            with _locked(leftover) as is_ours:
                if is_ours and leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
    with ExitStack() as stack:
        while True:
            folder = parent / f".unfinished-{name}-{secrets.token_hex(4)}"
            folder.mkdir(mode)
            stack.enter_context(_locked(folder))
            if folder.exists():  # else another process took it for a leftover before it was locked
                break
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Yields a new folder among the temporary files of the system, which only its owner may read; as `staging`."""
    with staging(Path(tempfile.gettempdir()), name, mode=0o700) as folder:
        yield folder


def remove_partial_downloads(repository: Path) -> None:
    """Removes the contents that killed downloads left half-written in the folder of a repository in the client's cache.

    The client does not go on with them. It locks a file by its content's name while it downloads it.
    """
    for partial in (repository / "blobs").glob("*.incomplete"):
        name = partial.name.split(".")[0]
        with _locked(repository.parent / ".locks" / repository.name / f"{name}.lock") as is_ours:
            if is_ours:
                with suppress(OSError):  # gone, or a cache that cannot be written
                    partial.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Takes the lock of `path`, a folder or a file. Yields whether no other process has it; it may be missing."""
    if sys.platform == "win32":
        yield False
        return
    with ExitStack() as stack:
        is_ours = not path.exists()
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        yield is_ours
