"""The Hub's client as `transfer` uses it: for one repository, tried again when the network fails, quiet in logs."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer.answers import COMMIT, checked_commit, checked_entry, require_few
from pdiff_hub.transfer.errors import (
    AskedToWaitError,
    Place,
    RepoType,
    UnansweredError,
    asked_delay,
    explained,
    is_transient,
    no_hub,
)
from pdiff_hub.transfer.guard import HEADER, Watch, watching

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

# Seconds before the second try, doubled after each further try. The client itself retries single uploads and listings
# (5 times in 23 seconds). We retry the rest, and only a few times, so that all stays within some two minutes.
BASE_DELAY = 1.0
TRIES = 5
TIMEOUT = 20.0  # seconds for the small requests; the client sets its own for downloads
_PIECE = 30.0  # seconds of a long pause, after which we say that it goes on
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]|^[A-Za-z]:|^/")
# What git allows as the name of a branch or tag, and is a safe path in the client's cache.
_REVISION = re.compile(
    r"(?!/)(?!.*(//|\.\.|@\{|/\.|/$))[^.\x00-\x20\x7f-\x9f\ud800-\udfff~^:?*\[\\][^\x00-\x20\x7f-\x9f\ud800-\udfff~^:?*\[\\]{0,249}"
)
T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Client:
    """The Hub's client for one transfer, its watch, and the headers by which the watch knows its requests."""

    api: HfApi
    watch: Watch
    headers: dict[str, str]


def is_repo_id(name: str) -> bool:
    """Whether `name` could name a repository: "user/name" or "name", of letters, digits, "-", "_" and "."."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.isascii() and name.isprintable()  # the client lets a line break at the end pass


def place_of(repo_id: str, repo_type: RepoType, revision: str | None) -> Place:
    """The place of repository `repo_id`; ValueError if no repository can have this name."""
    if not is_repo_id(repo_id):
        raise PdiffError(
            f'{repo_id!r} cannot be the name of a repository: give "user/name", of letters, digits, '
            "'-', '_' and '.', at most 96 each."
        )
    if revision is not None and not _REVISION.fullmatch(revision):
        raise PdiffError(f"{revision!r} cannot be the name of a revision: give a branch, a tag or a commit.")
    return Place(repo_id, repo_type, revision)


@contextmanager
def client(token: str | bool | None, place: Place, needs_token: bool = False) -> Iterator[Client]:
    """The client, watched until the end of the block.

    ConnectionError in offline mode; PermissionError if the token is malformed, or needed and missing.
    """
    from huggingface_hub import HfApi, get_token, is_offline_mode

    if is_offline_mode():
        raise ConnectionError(f"offline mode is on, so the {place} was not asked for: unset HF_HUB_OFFLINE.")
    # The HTTP library would quote such a token in its error.
    if isinstance(token, str) and not (token.isascii() and token.isprintable() and token and " " not in token):
        raise PermissionError(
            "the token given is empty or holds blanks or other characters that no token has: copy it again."
        )
    if needs_token and (token is False or (token in (None, True) and get_token() is None)):
        raise PermissionError(f"pushing to the {place} needs a token: log in with `hf auth login` or set HF_TOKEN.")
    with watching(place) as watch, _progress_bars():
        headers = {HEADER: watch.name}
        yield Client(HfApi(token=token, headers=headers), watch, headers)


@contextmanager
def bounded(repo_id: str, *, repo_type: RepoType, revision: str | None = None) -> Iterator[None]:
    """Bounds what a library asks the Hub for, in time and bytes, while it fetches a repository in this block.

    PdiffError or ConnectionError for an answer that goes beyond a bound; other errors are the library's own.
    """
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode() or not is_repo_id(repo_id):  # it fetches nothing, or says itself what it does not understand
        yield
        return
    place = place_of(repo_id, repo_type, revision)
    failure: Exception | None = None
    with watching(place, of_library=True) as watch:
        home = Path(constants.HF_HOME).expanduser()
        there = next(folder for folder in (home, *home.parents) if folder.exists())
        watch.most_bytes = shutil.disk_usage(there).free
        try:
            yield
        except Exception as error:  # raised again below
            ours = (PdiffError, UnansweredError, AskedToWaitError)
            failure = next((each for each in _causes(error) if isinstance(each, ours)), None)
            if failure is None:
                raise
    if failure is not None:  # outside of the `except`, so that the library's error is not chained to it
        raise failure


def _causes(error: Exception) -> Iterator[Exception]:
    """An error, and those while whose handling it was raised."""
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        yield cause
        cause = cause.__cause__ or cause.__context__


def newest_commit(hub: Client, place: Place) -> str:
    """The newest commit; "" if there is none yet."""
    info = hub.api.repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision, timeout=TIMEOUT)
    head = "" if info.sha is None else checked_commit(info.sha, place)
    if place.revision is not None and COMMIT.fullmatch(place.revision) and head != place.revision:
        raise no_hub(place, f"its commit {place.revision} is {head or 'none'}")
    return head


def commit_and_files(
    hub: Client, place: Place, find_head: Callable[[], str], tries: int = TRIES
) -> tuple[str, dict[str, RepoFile]]:
    """The commit that `find_head` finds, and its files by path."""
    from huggingface_hub.hf_api import RepoFile

    def tree() -> dict[str, RepoFile]:
        files: dict[str, RepoFile] = {}
        hub.watch.new_listing()
        for entry in hub.api.list_repo_tree(place.repo_id, repo_type=place.repo_type, revision=head, recursive=True):
            if isinstance(entry, RepoFile):
                files[entry.path] = checked_entry(entry, place)
                require_few(len(files), place)
        return files

    head = retried(find_head, place, tries)
    return head, (retried(tree, place, min(tries, 2)) if head else {})  # the client itself retries this


def checked_files(hub: Client, place: Place, tries: int = TRIES) -> tuple[str, dict[str, RepoFile]]:
    """The newest commit and its files by path; ValueError as in `check_name`."""
    head, tree = commit_and_files(hub, place, lambda: newest_commit(hub, place), tries)
    for path in tree:
        check_name(path, place)
    return head, tree


def retried(call: Callable[[], T], place: Place, tries: int = TRIES) -> T:
    """Runs `call` up to `tries` times, with growing pauses, as long as its errors may be temporary."""
    for number in range(1, tries + 1):
        try:
            return call()
        except Exception as error:  # raised again below, in our words
            failure = error
        if not is_transient(failure):
            break
        if number < tries:
            pause(number, failure)
    # Raised outside of the `except`, so that the client's error is not chained to it.
    raise explained(failure, place)


def pause(number: int, failure: Exception) -> None:
    """Waits after the failure of try `number`, counted from 1."""
    seconds = max(BASE_DELAY * 2 ** (number - 1), asked_delay(failure))
    while seconds > _PIECE:
        logger.warning("The Hub asks for a pause; %.0f seconds of it are left.", seconds)
        time.sleep(_PIECE)
        seconds -= _PIECE
    time.sleep(seconds)


def check_name(path: str, place: Place) -> None:
    """Raises ValueError if a file with this name could land outside of its folder, on any system."""
    parts = path.split("/")
    if _FORBIDDEN.search(path) or any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        raise PdiffError(
            f"{path!r} is no file name that the {place} may have: it could lead out of its folder; "
            "nothing was transferred."
        )


@contextmanager
def _progress_bars() -> Iterator[None]:
    """Shows the client's progress bars in a terminal, and hides them elsewhere."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, progress_bar_states

    watched = sys.stderr is not None and sys.stderr.isatty()
    if watched or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:  # the user's setting decides
        yield
        return
    before = dict(progress_bar_states)
    disable_progress_bars()
    try:
        yield
    finally:
        progress_bar_states.clear()
        progress_bar_states.update(before)
