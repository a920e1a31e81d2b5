"""What can go wrong between a client and the loopback Hub."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler


@dataclass
class Request:
    """One request: its address as sent, bytes of its body, and the status answered (0: none)."""

    method: str
    path: str
    body_bytes: int
    status: int = 0


class Dropped(Exception):
    """The connection ends here."""


@dataclass(frozen=True)
class Fault:
    """Made by the functions below.

    code, error_code: the status that is answered instead. bytes: after how many the connection ends. pause: seconds
    before the answer. stale: commits meet a stale parent. after_commit: commits are made, and their answer is lost.
    """

    code: int = 0
    error_code: str | None = None
    bytes: int | None = None
    pause: float = 0.0
    stale: bool = False
    after_commit: bool = False

    @classmethod
    def status(cls, code: int, error_code: str | None = None) -> Fault:
        """The server answers with this status."""
        return cls(code=code, error_code=error_code)

    @classmethod
    def drop(cls, after_bytes: int = 0) -> Fault:
        """The connection ends after so many bytes of the request's body or, where that is no longer, of the answer's.

        0 ends it before anything is answered.
        """
        return cls(bytes=after_bytes)

    @classmethod
    def slow(cls, seconds: float) -> Fault:
        """The answer comes late."""
        return cls(pause=seconds)

    @classmethod
    def stale_parent(cls) -> Fault:
        """Somebody else's commit came first (412)."""
        return cls(stale=True)

    @classmethod
    def drop_after_commit(cls) -> Fault:
        """The commit is made, but its answer is lost."""
        return cls(after_commit=True)

    def before(self, handler: BaseHTTPRequestHandler, length: int) -> bytes:
        """The request's body, whole; Dropped if the fault, or a client that went away, does not let it in."""
        if self.bytes is not None and (self.bytes == 0 or length > self.bytes):
            handler.rfile.read(min(self.bytes, length))
            raise Dropped
        if self.pause:
            time.sleep(self.pause)
        body = handler.rfile.read(length)
        if len(body) < length:  # the client is gone; half of what it wanted is not what it wanted
            raise Dropped
        return body


@dataclass
class Planned:
    """A fault that waits for requests."""

    fault: Fault
    when: Callable[[Request], bool]
    times: int

    def meets(self, request: Request) -> bool:
        """Whether the fault happens to this request."""
        if self.times <= 0 or not self.when(request):
            return False
        self.times -= 1
        return True
