"""The faults that can happen between a client and the loopback Hub."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler


@dataclass
class Request:
    """One request: its address as it was sent, the bytes of its body, and the status of the answer (0: no answer)."""

    method: str
    path: str
    body_bytes: int
    status: int = 0


class Dropped(Exception):
    """The connection ends here."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault; the class methods below make them.

    code, error_code: the status that is answered instead. bytes: the connection ends after this many. pause: seconds
    before the answer. stale: commits meet a stale parent. after_commit: a commit is made, but its answer is lost.
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
        """The connection ends after `after_bytes` bytes of the request's body, or of the answer if the body is shorter.

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
        """The whole body of the request. Raises Dropped if the fault or a client that went away cuts it short."""
        if self.bytes is not None and (self.bytes == 0 or length > self.bytes):
            handler.rfile.read(min(self.bytes, length))
            raise Dropped
        if self.pause:
            time.sleep(self.pause)
        body = handler.rfile.read(length)
        if len(body) < length:  # the client is gone, and half of its request must change nothing
            raise Dropped
        return body


@dataclass
class Planned:
    """A fault that will happen to the next `times` requests for which `when` holds."""

    fault: Fault
    when: Callable[[Request], bool]
    times: int

    def meets(self, request: Request) -> bool:
        """Whether the fault happens to this request; each hit uses up one of `times`."""
        if self.times <= 0 or not self.when(request):
            return False
        self.times -= 1
        return True
