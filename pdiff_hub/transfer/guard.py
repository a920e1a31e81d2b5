"""Watches the requests of the Hub's client while something is transferred, so that no server's answer is trusted.

The client believes what a server says: it waits as long as it is told, reads as much as is sent, follows page after
page, and uses names from headers as names of files. Hooks of its HTTP library see each request and each answer first.
They keep all of it bounded, in time and in bytes, and send the token nowhere but to the Hub that the client is set to.

A header, which the hooks take off again, tells which transfer a request belongs to, because the client sends requests
from threads of its own. Other users of the client in this process see no difference, but while a library that knows no
such header fetches something: then each request without a header is taken for that library's.
"""

from __future__ import annotations

import logging
import math
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer.answers import limit_body, require_safe_list, require_safe_names
from pdiff_hub.transfer.errors import AskedToWaitError, Place, UnansweredError, asked_wait

if TYPE_CHECKING:
    from httpx2 import Request, Response

HEADER = "x-pdiff-transfer"
# What the HTTP library keeps beside a request: its watch, and whether its answer should be data and no page.
_KEY, _IS_DATA = "pdiff_transfer", "pdiff_is_data"
# Seconds that one request may wait for the next piece of its answer; uploads and commits take a server longer.
_TIMEOUT, _TIMEOUT_OF_COMMITS = 20.0, 120.0
# Seconds, over all tries, without any good answer, after which a transfer is given up.
GIVE_UP, _GIVE_UP_COMMITS = 60.0, 600.0
_MOST_WAITS = 300.0  # seconds that a server may ask to wait in all: the window of the Hub's own rate limits
_LONGEST_WAIT = 60.0  # seconds in one piece
_QUIET = 15.0  # seconds without an answer, after which we say so
MOST_BYTES = 32 << 20  # of an answer that is no file
_MOST_PAGES, _LISTING_SECONDS = 2000, 120.0
# Files of the client that log warnings.
_TALKING = ("utils._http", "file_download", "_snapshot_download", "_tree_cache")
logger = logging.getLogger(__name__)
_watches: dict[str, Watch] = {}
_of_libraries: list[Watch] = []
_streams: weakref.WeakSet[Any] = weakref.WeakSet()  # the connections of all transfers, which share them
_lock = threading.Lock()


class Watch:
    """What is known of one transfer: since when each thread waits for an answer, and what the server may still ask.

    Attributes:
        most_bytes: of one answer.
    """

    def __init__(self, place: Place):
        from huggingface_hub import constants

        self.place, self.name, self.most_bytes = place, secrets.token_hex(8), MOST_BYTES
        self._patience = max(GIVE_UP, constants.HF_HUB_DOWNLOAD_TIMEOUT)  # which a user of a slow network may raise
        self._waiting: dict[int, tuple[float, float]] = {}  # by thread: since when, and how long it may
        self._asked, self._said, self._refused = 0.0, 0.0, False
        self.new_listing()

    def new_listing(self) -> None:
        """Another list of files begins."""
        self._pages, self._listing_since = 0, time.monotonic()

    def sent(self, method: str) -> None:
        """This thread waits for an answer; UnansweredError if it and its tries before have waited for too long."""
        thread, limit = threading.get_ident(), self._patience if method in ("GET", "HEAD") else _GIVE_UP_COMMITS
        since, _ = self._waiting.get(thread, (time.monotonic(), limit))
        self._waiting[thread] = since, limit
        if time.monotonic() - since > limit:
            raise UnansweredError(
                f"{self.place.url()} gave no good answer for {limit:.0f} seconds: check the network, and run this "
                "again in some minutes; what was transferred is kept."
            )

    def answered(self) -> None:
        self._waiting.pop(threading.get_ident(), None)

    def reading(self) -> None:
        """This thread waits for the next piece of an answer."""
        self._waiting[threading.get_ident()] = time.monotonic(), self._patience

    def asked_to_wait(self, seconds: float) -> None:
        """AskedToWaitError if this is longer than the client should wait in one piece, or more than we wait in all."""
        if self._asked + seconds > _MOST_WAITS:
            # One such answer may be a mistake, so there is another try.
            error = AskedToWaitError(
                f"the Hub asks to wait {_duration(seconds)} before the next request about the {self.place}: run this "
                "again then; what was transferred is kept.",
                seconds=0.0,
                final=self._refused,
            )
            self._refused = True
            raise error
        self._asked += seconds
        if seconds > _LONGEST_WAIT:
            self.answered()
            raise AskedToWaitError(f"the Hub asks to wait {_duration(seconds)}.", seconds=seconds, final=False)
        if seconds >= _QUIET:
            logger.warning("The Hub asks to wait %.0f seconds before the next request; waiting.", seconds)
        thread = threading.get_ident()
        since, limit = self._waiting.get(thread, (time.monotonic(), self._patience))
        self._waiting[thread] = since + seconds, limit

    def next_page(self, request: Request, link: str) -> None:
        self._pages += 1
        if _origin(urljoin(str(request.url), link)) not in _hubs():
            raise PdiffError(f"the list of files of the {self.place} goes on at {link[:80]!r}, which is not the Hub.")
        if self._pages > _MOST_PAGES or time.monotonic() - self._listing_since > _LISTING_SECONDS:
            raise PdiffError(f"the list of files of the {self.place} has no end: nothing was transferred.")

    def look(self) -> None:
        """Says when an answer takes long, and closes the connections when it takes too long."""
        now, alive = time.monotonic(), {thread.ident for thread in threading.enumerate()}
        waiting = {thread: each for thread, each in list(self._waiting.items()) if thread in alive}
        waits = [(now - since, limit) for since, limit in waiting.values()]
        longest = max((wait for wait, _ in waits), default=0.0)
        if longest > _QUIET and now - self._said > 2 * _QUIET:
            self._said = now
            logger.warning("Waiting for the Hub's answer about the %s.", self.place)
        if any(wait > limit for wait, limit in waits):
            for stream in list(_streams):
                with suppress(OSError, AttributeError):  # it is closed already
                    stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


@contextmanager
def watching(place: Place, of_library: bool = False) -> Iterator[Watch]:
    """Watches the requests that carry `HEADER` with the watch's name, until the end of the block.

    of_library: watches those that carry no `HEADER`, too.
    """
    _install_hooks()
    watch, done = Watch(place), threading.Event()

    def look_now_and_then() -> None:
        while not done.wait(1.0):
            watch.look()

    _watches[watch.name] = watch
    if of_library:
        _of_libraries.append(watch)
    threading.Thread(target=look_now_and_then, daemon=True).start()
    try:
        yield watch
    finally:
        done.set()
        del _watches[watch.name]
        if of_library:
            _of_libraries.remove(watch)


def _install_hooks() -> None:
    """Adds our hooks to the client's HTTP session, and to each that it makes after this one."""
    from huggingface_hub.utils import _http

    with _lock:
        # The client has a function to set a factory, and none to ask for the user's own, which must be kept.
        factory = _http._GLOBAL_CLIENT_FACTORY
        if not isinstance(factory, _Watched):
            _http._GLOBAL_CLIENT_FACTORY = _Watched(factory)
        _add_hooks(_http.get_session())
    for name in _TALKING:
        logging.getLogger(f"huggingface_hub.{name}").addFilter(_is_wanted)


class _Watched:
    """A factory of sessions that adds our hooks to those of another."""

    def __init__(self, factory: Callable[[], Any]):
        self._factory = factory

    def __call__(self) -> Any:
        session = self._factory()
        _add_hooks(session)
        return session


def _add_hooks(session: Any) -> None:
    for event, hook in (("request", _on_request), ("response", _on_response)):
        if hook not in session.event_hooks[event]:
            session.event_hooks[event].append(hook)


def _on_request(request: Request) -> None:
    watch = _watches.get(request.headers.pop(HEADER, "")) or request.extensions.get(_KEY)
    watch = watch or next(iter(_of_libraries), None)
    if watch is None:
        if _watches:  # uploads carry no header of the client's, and no limit of time
            _limit_time(request, _TIMEOUT_OF_COMMITS)
        return
    is_data = request.extensions.get(_IS_DATA, "/api/" in request.url.path)  # also after it was sent on elsewhere
    request.extensions = {**request.extensions, _KEY: watch, _IS_DATA: is_data, "trace": _note_stream}
    request.headers["accept-encoding"] = "identity"  # a few bytes could become any number
    reads = request.method in ("GET", "HEAD")
    _limit_time(request, _TIMEOUT if reads else _TIMEOUT_OF_COMMITS)
    if "authorization" in request.headers and _origin(str(request.url)) not in _hubs():
        raise PdiffError(
            f"the Hub sends requests about the {watch.place} to {request.url.host!r}, which would get your token: "
            "nothing was sent."
        )
    watch.sent(request.method)


def _note_stream(event: str, info: dict[str, Any]) -> None:
    """Notes the connections that may have to be closed."""
    if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
        _streams.add(info["return_value"])


def _limit_time(request: Request, most: float) -> None:
    limits = dict(request.extensions.get("timeout") or {})
    kept = {key: most if limits.get(key) is None else limits[key] for key in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": kept}


def _on_response(response: Response) -> None:
    request = response.request
    watch = request.extensions.get(_KEY)
    if watch is None:
        return
    status = response.status_code
    if status in (408, 429) or status >= 500:
        if seconds := asked_wait(response.headers):
            watch.asked_to_wait(seconds)
        response.headers.pop("ratelimit", None)  # numbers that are none would stop the client
        response.headers.pop("retry-after", None)
        if seconds:
            response.headers["retry-after"] = f"{seconds:.0f}"
    else:
        watch.answered()
    if request.method == "HEAD":  # by which the client asks for the names under which it keeps a file
        require_safe_names(response.headers, watch.place)
    is_page = response.headers.get("content-type", "").lower().startswith("text/html")
    if status == 200 and is_page and request.extensions[_IS_DATA]:
        raise ConnectionError(
            f"{request.url.host!r} answers with a web page where a Hub answers with data: check HF_ENDPOINT, or log in "
            "to this network."
        )
    if (link := response.links.get("next", {}).get("url")) is not None:
        watch.next_page(request, link)
    if request.method != "HEAD":
        good = status < 400
        calls = (watch.reading, watch.answered) if good else (_nothing, _nothing)
        limit_body(response, watch.place, watch.most_bytes if good else MOST_BYTES, *calls)
        if status == 200 and "/tree/" in request.url.path:  # the client lists files once more before it downloads them
            response.read()
            require_safe_list(response.json(), watch.place)


def _nothing() -> None:
    """Bodies of errors are no progress."""


def _origin(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, (parts.hostname or "").lower(), parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return "", url, None


def _hubs() -> set[tuple[str, str, int | None]]:
    """The servers that may get the token: the Hub that the client is set to, and the Hub itself."""
    from huggingface_hub import constants

    hubs = (constants.ENDPOINT, "https://huggingface.co", "https://hf.co")
    # `datasets` asks a part of the Hub what it knows of a data set.
    return {_origin(url) for hub in hubs for url in (hub, hub.replace("://", "://datasets-server."))}


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds > 48 * 3600:
        return "for days"
    return f"{seconds:.0f} seconds" if seconds < 600 else f"{seconds / 60:.0f} minutes"


def _is_wanted(record: logging.LogRecord) -> bool:
    """Keeps the client from telling each of its tries, in several lines with URLs. What matters, we say.

    Who asked the client to tell more than by default gets it all.
    """
    by_default = logging.getLogger("huggingface_hub").getEffectiveLevel() == logging.WARNING
    return not (_watches and by_default and record.levelno == logging.WARNING)
