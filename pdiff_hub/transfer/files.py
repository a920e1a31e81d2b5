"""Pushing and pulling files: all or nothing, tried again when the network fails, nothing transferred twice.

A push is one commit on top of the commit that was read. So it arrives whole or not at all, and never replaces what
somebody else pushed meanwhile. Files that are on the Hub already are not uploaded. A pull goes into the client's cache,
which keeps whole files; the next pull continues one that was stopped. HF_ENDPOINT sets the endpoint for both.

Errors: ValueError (a name that is not allowed, content that is not ours, somebody else pushed), FileNotFoundError (no
such repository, revision or file), PermissionError (no token, or one without this right), ConnectionError (the network
failed again and again, or offline mode is on). No error holds a token. After an error the repository's files are as
before, unless the answer to a commit was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer.answers import COMMIT, checked_commit, is_same
from pdiff_hub.transfer.cache import note_commit, noted_commit, repository_in_cache, require_content, require_room
from pdiff_hub.transfer.client import (
    TIMEOUT,
    TRIES,
    Client,
    check_name,
    checked_files,
    client,
    commit_and_files,
    is_repo_id,
    newest_commit,
    pause,
    place_of,
    retried,
)
from pdiff_hub.transfer.errors import Place, RepoType, explained, is_stale, is_transient, stale
from pdiff_hub.transfer.guard import MOST_BYTES
from pdiff_hub.transfer.staging import remove_partial_downloads

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

__all__ = ["PushOptions", "Pushed", "RepoType", "commit_of", "is_repo_id", "list_files", "pull", "push_files"]

_TRIES_WITH_COPY = 2  # where a copy in the cache can be used instead
_MANAGED_BY_THE_HUB = ".gitattributes"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pushed:
    """What a push did: `uploaded` and `deleted` are paths in the repository, empty if nothing had to change."""

    repo_id: str
    commit: str
    url: str
    uploaded: tuple[str, ...]
    deleted: tuple[str, ...]


class PushOptions(TypedDict, total=False):
    """What every push takes: the options of `push_files` that concern the repository and not its files."""

    private: bool | None
    revision: str | None
    commit_message: str
    create_pr: bool
    token: str | bool | None


def push_files(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    repo_type: RepoType,
    commit_message: str,
    replaces: Sequence[str] = (),
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    parent_commit: str | None = None,
) -> Pushed:
    """Puts files into a repository in one commit, or changes nothing.

    Args:
        files: path in the repository -> local file. Other files in the repository stay.
        repo_id: "user/name"; the repository and the branch are made if they do not exist.
        replaces: globs; files in the repository that match one and are not in `files` are deleted in the same commit.
        private: whether a new repository is private (None: the account's default). ValueError if True and the
            repository exists and is public.
        revision: a branch, by default main.
        create_pr: open a pull request instead of committing to the branch.
        parent_commit: the commit that must still be the newest, for instance because the files were made from it.
    """
    place = place_of(repo_id, repo_type, revision)
    for path, local in files.items():
        check_name(path, place)
        if not local.is_file():
            raise FileNotFoundError(f"{local} does not exist; it was to become {path} of the {place}.")
    with client(token, place, needs_token=True) as hub:
        head, tree = commit_and_files(hub, place, lambda: _head_to_push_to(hub, place, private))
        if parent_commit not in (None, head):
            raise stale(place)
        uploaded = tuple(path for path, local in files.items() if not is_same(tree.get(path), local))
        deleted = tuple(path for path in tree if path not in files and any(fnmatch(path, glob) for glob in replaces))
        push = _Push(place, head, tree, {path: files[path] for path in uploaded}, deleted)
        if not uploaded and not deleted:
            return push.done(head)
        return push.commit(hub, commit_message, create_pr)


@dataclass(frozen=True)
class _Push:
    """A commit to make on top of the commit `head`, whose files are `tree`."""

    place: Place
    head: str
    tree: Mapping[str, RepoFile]
    files: Mapping[str, Path]
    deleted: tuple[str, ...]

    def done(self, commit: str, url: str | None = None) -> Pushed:
        return Pushed(self.place.repo_id, commit, url or self.place.url(commit), tuple(self.files), self.deleted)

    def commit(self, hub: Client, message: str, create_pr: bool) -> Pushed:
        """Tries until the commit is there. If an answer is lost, the commit is found by its content, not made twice."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError

        for number in range(1, TRIES + 1):
            try:
                info = hub.api.create_commit(
                    self.place.repo_id,
                    [
                        *(CommitOperationAdd(path, local) for path, local in self.files.items()),
                        *(CommitOperationDelete(path, is_folder=False) for path in self.deleted),
                    ],
                    repo_type=self.place.repo_type,
                    revision=self.place.revision,
                    commit_message=message,
                    parent_commit=self.head or None,
                    create_pr=create_pr,
                )
                return self.done(checked_commit(info.oid, self.place), self._own_url(info.pr_url))
            except Exception as error:  # raised again below, in our words
                failure = error
            if create_pr and is_transient(failure):  # another try could open a second pull request
                raise ConnectionError(
                    f"the connection failed while a pull request was opened: look whether it is at "
                    f"{self.place.url()}/discussions before you push again."
                )
            refused = isinstance(failure, HfHubHTTPError) and not is_transient(failure)
            if refused and not is_stale(failure):
                break
            now, tree = commit_and_files(hub, self.place, lambda: newest_commit(hub, self.place))
            if now != self.head:
                if self._is_there(tree):
                    return self.done(now)
                raise stale(self.place)
            if not is_transient(failure):
                break
            if number < TRIES:
                pause(number, failure)
        raise explained(failure, self.place)

    def _own_url(self, url: object) -> str | None:
        """The URL of a pull request, as the Hub says it."""
        ours = isinstance(url, str) and url.startswith(self.place.url()) and url.isprintable()
        return str(url) if ours else None

    def _is_there(self, tree: Mapping[str, RepoFile]) -> bool:
        """Whether `tree` is what this commit should make of the files of `head`."""
        kept = self.tree.keys() - self.files.keys() - set(self.deleted)
        if (tree.keys() ^ (kept | self.files.keys())) - {_MANAGED_BY_THE_HUB}:
            return False
        return all(is_same(tree.get(path), local) for path, local in self.files.items()) and all(
            tree[path].blob_id == self.tree[path].blob_id for path in kept - {_MANAGED_BY_THE_HUB}
        )


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


def _head_to_push_to(hub: Client, place: Place, private: bool | None) -> str:
    """The commit to push on top of. Makes the repository and the branch if they do not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    main = replace(place, revision=None)
    try:
        newest_commit(hub, main)
    except RepositoryNotFoundError as error:
        if error.response.status_code != 404:
            raise
        hub.api.create_repo(place.repo_id, repo_type=place.repo_type, private=private, exist_ok=True)
    if private and not hub.api.repo_info(place.repo_id, repo_type=place.repo_type, timeout=TIMEOUT).private:
        raise PdiffError(
            f"the {place} is public already: make it private in its settings at {place.url()}, or push "
            "without private=True."
        )
    try:
        head = newest_commit(hub, place)
    except RevisionNotFoundError:
        if place.revision is None:
            return ""
        hub.api.create_branch(place.repo_id, repo_type=place.repo_type, branch=place.revision, exist_ok=True)
        head = newest_commit(hub, place)
    if place.revision == head:
        raise PdiffError(
            f"revision {place.revision!r} is a commit, which nothing can be added to: give a branch of the {place}."
        )
    return head
