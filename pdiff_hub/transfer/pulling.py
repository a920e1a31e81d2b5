"""Pulling files: into the client's cache, which keeps whole files; the next pull continues one that was stopped.

HF_ENDPOINT sets the endpoint.

Errors: ValueError (a name that is not allowed, content that is not ours, somebody else pushed), FileNotFoundError (no
such repository, revision or file), PermissionError (no token, or one without this right), ConnectionError (the network
failed again and again, or offline mode is on). No error holds a token.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer.answers import COMMIT
from pdiff_hub.transfer.cache import note_commit, noted_commit, repository_in_cache, require_content, require_room
from pdiff_hub.transfer.client import (
    TRIES,
    Client,
    checked_files,
    client,
    place_of,
    retried,
)
from pdiff_hub.transfer.errors import RepoType
from pdiff_hub.transfer.guard import MOST_BYTES
from pdiff_hub.transfer.staging import remove_partial_downloads

if TYPE_CHECKING:
    pass

_TRIES_WITH_COPY = 2  # where a copy in the cache can be used instead
logger = logging.getLogger(__name__)


def list_files(
    repo_id: str, *, repo_type: RepoType, revision: str | None = None, token: str | bool | None = None
) -> tuple[str, dict[str, int]]:
    """The commit that `revision` (by default main) stands for, and the size in bytes of each of its files.

    ValueError if a file's name could lead out of a folder.
    """
    place = place_of(repo_id, repo_type, revision)
    with client(token, place) as hub:
        head, tree = checked_files(hub, place)
    return head, {path: entry.size for path, entry in tree.items()}


def folder_of_model(
    path_or_id: str,
    what: str,
    files: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of this name, or else that of the model repository of this id in the client's cache, as `pull` gives.

    files: those that are needed of a repository, of which the first makes it `what` it should be.
    """
    if (folder := Path(path_or_id)).is_dir():
        return folder
    return pull(
        path_or_id,
        repo_type="model",
        what=what,
        required=files[0],
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        allow_patterns=files,
    )


def pull(
    repo_id: str,
    *,
    repo_type: RepoType,
    what: str,
    required: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    allow_patterns: Sequence[str] | None = None,
    ignore_patterns: Sequence[str] | None = None,
) -> Path:
    """Downloads what the client's cache lacks of a repository; -> the repository's folder in the cache.

    If the network fails, the copy in the cache is used, with a warning. HF_HUB_OFFLINE=1 uses it without one. What
    arrives is compared with the SHA-256 (or git's SHA-1, for small files) that the Hub lists.

    Args:
        what: what the repository should be, for errors, such as "pipeline".
        required: the file that it must have to be one; ValueError if it does not.
        revision: a branch, tag or commit, by default main.
        local_files_only: look only into the cache.
        allow_patterns, ignore_patterns: globs of the files to download.
    """
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils._paths import filter_repo_objects

    place = place_of(repo_id, repo_type, revision)
    cache = repository_in_cache(place, cache_dir)
    patterns: dict[str, Any] = {
        "allow_patterns": None if allow_patterns is None else list(allow_patterns),
        "ignore_patterns": None if ignore_patterns is None else list(ignore_patterns),
    }
    where: dict[str, Any] = {"repo_type": repo_type, "token": token, "cache_dir": cache_dir, **patterns}

    def copy_here() -> Path | None:
        try:
            copy = Path(snapshot_download(repo_id, revision=revision, local_files_only=True, **where))
        except (LocalEntryNotFoundError, OSError, ValueError):  # a damaged cache has no copy
            return None
        return copy if copy.parent == cache / "snapshots" and COMMIT.fullmatch(copy.name) else None

    def require(names: Iterable[str]) -> None:
        if required not in names:
            raise PdiffError(
                f"the {place} at revision {revision or 'main'!r} is no {what} of this package: it has no {required}."
            )

    copy = copy_here()
    if local_files_only or is_offline_mode():
        if copy is None:
            gone = f"the cache holds no whole copy of the {place} at revision {revision or 'main'!r}"
            if local_files_only:
                raise FileNotFoundError(f"{gone}: pull it once without local_files_only.")
            raise ConnectionError(f"{gone}, and offline mode is on: unset HF_HUB_OFFLINE and pull it once.")
        require([required] if (copy / required).is_file() else [])
        return copy

    def newest(hub: Client) -> Path:
        try:
            head, tree = checked_files(hub, place, TRIES if copy is None else _TRIES_WITH_COPY)
        except ConnectionError as error:
            if copy is None or not (copy / required).is_file():
                raise
            logger.warning("Using the copy of the %s in the cache, commit %s: %s", place, copy.name[:8], error)
            return copy
        require(tree)
        folder = cache / "snapshots" / head
        wanted = filter_repo_objects(tree, **patterns)
        new = noted_commit(cache, revision) != head  # what a killed pull left of it was not compared yet
        files = {path: tree[path] for path in wanted}
        missing = {path: entry for path, entry in files.items() if not (folder / path).exists()}
        require_room(missing, cache, place)
        remove_partial_downloads(cache)
        hub.watch.new_listing()
        hub.watch.most_bytes = max((entry.size for entry in missing.values()), default=0) + MOST_BYTES
        failure = None
        try:
            # By the commit and not by the name of a branch, of which the server could say something else meanwhile.
            snapshot_download(repo_id, revision=head, headers=hub.headers, **where)
        except Exception as error:  # raised again below; some files may have arrived
            failure = error
        require_content(files if new else missing, folder, place)
        if failure is not None:
            raise failure
        note_commit(cache, revision, head)
        return folder

    with client(token, place) as hub:
        return retried(lambda: newest(hub), place)


def commit_of(snapshot: Path) -> str:
    """The commit (40 hexadecimal digits) of a folder that `pull` returned."""
    if not COMMIT.fullmatch(snapshot.name):
        raise PdiffError(f"{snapshot} is no folder of the Hub's cache: its name is no commit.")
    return snapshot.name
