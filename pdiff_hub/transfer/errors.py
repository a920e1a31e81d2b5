"""The errors of the Hub's client, each as one sentence that says what to do.

The client's own messages hold URLs, several lines and the server's words, and a server can repeat a token. So the
client's errors are not chained to ours, and the token that was sent is removed from the server's words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pdiff_hub.errors import PdiffError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

RepoType = Literal["model", "dataset"]
_KIND = {"model": "model repository", "dataset": "data set"}
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Place:
    """A repository at a revision (None: its main branch), on the Hub that the client is set to."""

    repo_id: str
    repo_type: RepoType
    revision: str | None

    def __str__(self) -> str:
        return f"{_KIND[self.repo_type]} {self.repo_id!r}"

    def url(self, commit: str | None = None) -> str:
        """The URL of its page, or of one of its commits."""
        from huggingface_hub import constants

        prefix = "datasets/" if self.repo_type == "dataset" else ""
        return f"{constants.ENDPOINT}/{prefix}{self.repo_id}" + (f"/commit/{commit}" if commit else "")


class ChangedMeanwhileError(Exception):
    """The repository got a new commit while it was read: read it again."""


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed in a moment: after 5xx, 429, dropped connections, time-outs."""
    from huggingface_hub.errors import HfHubHTTPError

    error = _root(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    # The parent class is HTTPError of the HTTP library that this version of the client uses. Three more errors mean a
    # dropped connection: JSON that is cut off, a download of the wrong size (an OSError without a number) and a
    # connection that another thread closed (a RuntimeError).
    transport = HfHubHTTPError.__bases__[0]
    cut_off = isinstance(error, json.JSONDecodeError) or (type(error) is OSError and error.errno is None)
    return isinstance(error, (transport, ChangedMeanwhileError)) or type(error) is RuntimeError or cut_off


def is_stale(error: Exception) -> bool:
    """Whether the Hub refused a commit because its parent is not the newest one."""
    return getattr(getattr(_root(error), "response", None), "status_code", None) == 412


def asked_delay(error: Exception) -> float:
    """Seconds that the server asks to wait (`Retry-After`), at most a minute; 0 if it asks for none."""
    headers = getattr(getattr(_root(error), "response", None), "headers", {})
    text = headers.get("retry-after", "")
    return min(float(text), 60.0) if text.isdecimal() else 0.0


def stale(place: Place) -> PdiffError:
    """The error for a push that somebody else's push overtook."""
    return PdiffError(
        f"somebody else pushed to the {place} meanwhile, and nothing was overwritten: pull it, then push again."
    )


def explained(error: Exception, place: Place) -> Exception:
    """Our error for an error of the client; other errors come back as they are."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    error = _root(error)
    if isinstance(error, OfflineModeIsEnabled):
        return ConnectionError(f"offline mode is on, so the {place} was not asked for: unset HF_HUB_OFFLINE.")
    if isinstance(error, LocalTokenNotFoundError):
        return PermissionError(f"no token for the {place}: {_LOGIN}.")
    if not isinstance(error, HfHubHTTPError):
        if isinstance(error, ValueError) and isinstance(error.__cause__, HfHubHTTPError):  # a card's bad front matter
            return PdiffError(" ".join(str(error).split()))
        if not is_transient(error):
            return error
        return ConnectionError(
            f"the connection to {place.url()} failed again and again ({type(error).__name__}): "
            "check the network and run this again; what was transferred is kept."
        )
    status, says = error.response.status_code, _server_says(error)
    if isinstance(error, GatedRepoError):
        return PermissionError(f"the {place} is gated: ask for access at {place.url()}, then {_LOGIN}.")
    if status == 401:
        return PermissionError(
            f"the Hub did not let us at the {place} (401): check the name; if it is private or you "
            f"push to it, {_LOGIN}, with a token that is valid."
        )
    if status == 403:
        return PermissionError(
            f"the token has no right to do this with the {place} (403{says}): use one that may "
            "write to it, from the tokens page of your settings on the Hub."
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(
            f"the {place} has no revision {place.revision or 'main'!r}: look at its branches and tags at {place.url()}."
        )
    if isinstance(error, EntryNotFoundError):
        return FileNotFoundError(f"a file of the {place} is gone from the Hub: pull it again.")
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return FileNotFoundError(
            f"there is no {place} at {place.url()}, or it is private and your token may not see "
            f"it: check the name, or {_LOGIN}."
        )
    if status == 412:
        return stale(place)
    if is_transient(error):
        return ConnectionError(
            f"the Hub answered {status} for the {place} again and again{says}: run this again in "
            "some minutes; what was transferred is kept."
        )
    return PdiffError(
        f"the Hub refused this for the {place} ({status}{says}): nothing was changed; correct the name or the files."
    )


def _root(error: Exception) -> Exception:
    """The original error; the client wraps it when it transfers single files or looks into its cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while type(error) is RuntimeError or isinstance(error, LocalEntryNotFoundError):
        if not isinstance(error.__cause__, Exception):
            break
        error = error.__cause__
    return error


def _server_says(error: HfHubHTTPError) -> str:
    """A comma and the server's words in quotes, on one line, without the token that was sent; "" if it says nothing."""
    if not error.server_message:
        return ""
    text = " ".join(error.server_message.split())
    token = error.response.request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if token:
        text = text.replace(token, "***")
    return f', "{text[:200].rstrip(".")}"'
