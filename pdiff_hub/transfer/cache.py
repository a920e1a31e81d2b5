"""The client's cache of one repository: is there room for what is missing, and is what arrived what the Hub lists?"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer.answers import COMMIT, is_same
from pdiff_hub.transfer.errors import Place

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


def repository_in_cache(place: Place, cache_dir: str | Path | None) -> Path:
    """The folder of a repository in the client's cache, which may not be there yet."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser().resolve()
    return cache / repo_folder_name(repo_id=place.repo_id, repo_type=place.repo_type)


def require_room(files: Mapping[str, RepoFile], repository: Path, place: Place) -> None:
    """OSError (no space left) if these files are larger than the free space for the cache."""
    wanted = sum(entry.size for entry in files.values())
    there = next(folder for folder in (repository, *repository.parents) if folder.exists())
    if wanted > (free := shutil.disk_usage(there).free):
        raise OSError(
            errno.ENOSPC,
            f"the files of the {place} take {wanted:,} bytes, and {there} has room for {free:,}: make room, or set "
            "HF_HUB_CACHE to a folder elsewhere",
        )


def require_content(files: Mapping[str, RepoFile], snapshot: Path, place: Place) -> None:
    """PdiffError if one of `files` that arrived in `snapshot` is not the one that the Hub lists; it is removed then."""
    for path, entry in files.items():
        file = snapshot / path
        if file.exists() and not is_same(entry, file):
            content = file.resolve()
            file.unlink()
            if content.parent == snapshot.parent.parent / "blobs":
                content.unlink(missing_ok=True)
            raise PdiffError(
                f"{path} of the {place} arrived with another content than the Hub lists it with, and was removed: pull "
                "it again; if this happens again, do not trust this server."
            )


def noted_commit(repository: Path, revision: str | None) -> str | None:
    """The commit that a branch or tag was noted at; a commit is at itself."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    file = repository / "refs" / (revision or "main")
    return file.read_text(errors="replace") if file.is_file() else None


def note_commit(repository: Path, revision: str | None, commit: str) -> None:
    """Notes, as the client does, which commit a branch or tag is at, so that its copy is found without a network.

    A cache that cannot be written serves without.
    """
    if noted_commit(repository, revision) == commit:
        return
    file = repository / "refs" / (revision or "main")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
        temporary.write_text(commit)
        os.replace(temporary, file)
