"""Pushing files: all or nothing, tried again when the network fails, nothing transferred twice.

A push is one commit on top of the commit that was read. So it arrives whole or not at all, and never replaces what
somebody else pushed meanwhile. Files that are on the Hub already are not uploaded. HF_ENDPOINT sets the endpoint.

Errors: ValueError (a name that is not allowed, content that is not ours, somebody else pushed), FileNotFoundError (no
such repository, revision or file), PermissionError (no token, or one without this right), ConnectionError (the network
failed again and again, or offline mode is on). No error holds a token. After an error the repository's files are as
before, unless the answer to a commit was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer.answers import checked_commit, is_same
from pdiff_hub.transfer.client import (
    TIMEOUT,
    TRIES,
    Client,
    check_name,
    client,
    commit_and_files,
    newest_commit,
    pause,
    place_of,
)
from pdiff_hub.transfer.errors import Place, RepoType, explained, is_stale, is_transient, stale

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

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
