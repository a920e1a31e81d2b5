"""The errors of the Hub's client, each as one sentence that says what to do.

The client's own messages hold URLs, several lines and the server's words, and a server can repeat a token. So the
client's errors are not chained to ours, and the token that was sent is removed from the server's words.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pdiff_hub.errors import PdiffError, printable

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

RepoType = Literal["model", "dataset"]
_KIND = {"model": "model repository", "dataset": "data set"}
# Errors of the HTTP library about addresses and contents that no other try will change.
_NO_HUB = ("UnsupportedProtocol", "TooManyRedirects", "DecodingError", "LocalProtocolError")
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


class UnansweredError(ConnectionError):
    """No good answer came for so long that the transfer is given up."""


class AskedToWaitError(ConnectionError):
    """The server asks to wait for `seconds` before the next try; `final`: there is none."""

    def __init__(self, message: str, *, seconds: float, final: bool):
        super().__init__(message)
        self.seconds, self.final = seconds, final


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed in a moment: after 5xx, 429, dropped connections, time-outs."""
    from huggingface_hub.errors import HfHubHTTPError

    error = _root(error)
    if isinstance(error, AskedToWaitError):
        return not error.final
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    # The parent class is HTTPError of the HTTP library that this version of the client uses. Three more errors mean a
    # dropped connection: JSON that is cut off, a download of the wrong size (an OSError without a number) and a
    # connection that another thread closed (a RuntimeError).
    transport = HfHubHTTPError.__bases__[0]
    cut_off = isinstance(error, json.JSONDecodeError) or (type(error) is OSError and error.errno is None)
    lost = isinstance(error, transport) and type(error).__name__ not in _NO_HUB
    return lost or type(error) is RuntimeError or cut_off


def is_stale(error: Exception) -> bool:
    """Whether the Hub refused a commit because its parent is not the newest one."""
    return getattr(getattr(_root(error), "response", None), "status_code", None) == 412


def asked_delay(error: Exception) -> float:
    """Seconds to wait because the server asks for it, at most a minute for an answer as it came; 0 if it does not."""
    error = _root(error)
    if isinstance(error, AskedToWaitError):
        return error.seconds
    return min(asked_wait(getattr(getattr(error, "response", None), "headers", {})), 60.0)


def asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait; 0 if it asks for none, infinity for more digits than any time has."""
    after = re.fullmatch(r"\s*([0-9]+)\s*", headers.get("retry-after", ""))
    reset = re.search(r";\s*r\s*=\s*0+\s*;\s*t\s*=\s*([0-9]+)", headers.get("ratelimit", ""))  # as the Hub's own
    digits = [found[1].lstrip("0") or "0" for found in (after, reset) if found]
    return max((float(each) if len(each) < 10 else math.inf for each in digits), default=0.0)


def no_hub(place: Place, found: str) -> PdiffError:
    """The error for an answer that no Hub gives."""
    return PdiffError(
        f"the server gave an answer about the {place} that no Hub gives ({found}): check HF_ENDPOINT, or try again "
        "later; nothing of it was used."
    )


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
        in_our_words = isinstance(error, (PdiffError, ConnectionError, PermissionError, FileNotFoundError))
        if in_our_words or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            return error
        if not is_transient(error):  # the client took an answer apart that was another one than a Hub's
            what = f"{type(error).__name__}: {printable(' '.join(str(error).split()))[:200]}"
            return no_hub(place, what.rstrip(": "))
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
    text = printable(" ".join(error.server_message.split()))
    token = error.response.request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if token:
        text = text.replace(token, "***")
    return f', "{text[:200].rstrip(".")}"'
