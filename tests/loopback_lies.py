"""A loopback Hub that lies: a hook changes each answer before it is sent, and sends whatever it likes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from loopback_endpoints import Handler
from loopback_faults import Dropped
from loopback_hub import LoopbackHub

Hook = Callable[[Any, Any], Any]


class Lies:
    """Lets `hub` lie: `hook(handler, answer)` returns what to send, or sends it itself and returns None.

    elsewhere: the address of another server, to which lies may lead. tokens: what was sent there as authorization.
    """

    def __init__(self, hub: LoopbackHub, elsewhere: LoopbackHub) -> None:
        self.hook: Hook | None = None
        self.tokens: list[str] = []
        self.elsewhere = elsewhere.endpoint.replace("127.0.0.1", "localhost")
        me = self

        class Lying(Handler):
            lies = me

            def _send(self, answer: Any) -> None:
                told = answer if me.hook is None else me.hook(self, answer)
                if told is not None:
                    super()._send(told)

        class Listening(Handler):
            def _send(self, answer: Any) -> None:
                me.tokens += self.headers.get_all("Authorization") or []
                super()._send(answer)

        Lying.hub, Listening.hub = hub, elsewhere
        hub._server.RequestHandlerClass, elsewhere._server.RequestHandlerClass = Lying, Listening


def lie(handler: Any, answer: Any, dice: random.Random) -> Any:
    """A hostile form of an answer: another status, other headers, another body, or another length than it says."""
    kind = dice.choice(list(_LIES))
    return _LIES[kind](handler, answer, dice)


def _status(handler: Any, answer: Any, dice: random.Random) -> Any:
    answer.status = dice.choice(
        [199 + 1, 204, 301, 304, 400, 401, 403, 404, 408, 409, 412, 416, 418, 429, 500, 503, 599, 999]
    )
    words = ["\x1b[2J", "\ud800".encode("utf-8", "replace").decode(), handler.hub.token, "x" * 5000]
    answer.headers |= {"X-Error-Code": dice.choice(["RepoNotFound", "EntryNotFound", "GatedRepo", "x"])}
    answer.content = {"error": dice.choice([*words, 5, None, [1, {"a": 2}], {"message": "\x1b[31m"}])}
    if dice.random() < 0.5:
        answer.headers["Retry-After"] = dice.choice(["86400", "9" * 400, "-1", "1e400", "soon", "\u00b2", ""])
    if dice.random() < 0.3:
        answer.headers["RateLimit"] = f'"api";r=0;t={dice.choice(["9" * 30, "86400"])}'
    return answer


def _names(handler: Any, answer: Any, dice: random.Random) -> Any:
    evil = dice.choice(["../../../../escaped", "/tmp/escaped", "..", ".", "a/b", "a\\b", "x" * 5000, "C:x", "%2e%2e/x"])
    answer.headers[dice.choice(["X-Linked-Etag", "ETag", "X-Repo-Commit"])] = dice.choice([f'"{evil}"', evil])
    return answer


def _redirect(handler: Any, answer: Any, dice: random.Random) -> Any:
    answer.status = dice.choice([301, 302, 303, 307, 308])
    targets = [
        "file:///etc/passwd",
        handler.lies.elsewhere + handler.path,
        handler.path,
        "//localhost:1/x",
        "http://[::1",
        "gopher://x",
        "",
        "\x7f",
    ]
    answer.headers["Location"] = dice.choice(targets)
    return answer


def _json(handler: Any, answer: Any, dice: random.Random) -> Any:
    """Values of other types where the client expects its own."""
    odd = [None, True, 5, -1, 2.5, 10**400, "", "x", "../../escaped", "\ud800", [], [[]], {}, {"a": {}}, "9" * 5000]
    if isinstance(answer.content, bytes):
        answer.content = b"[" * dice.choice([1, 100_000])
    elif dice.random() < 0.3:
        answer.content = dice.choice(odd)
    else:
        answer.content = _changed(json.loads(json.dumps(answer.content)), odd, dice)
    return answer


def _changed(value: Any, odd: list[Any], dice: random.Random) -> Any:
    if isinstance(value, (dict, list)) and value and dice.random() < 0.8:
        key = dice.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if isinstance(value, dict) and dice.random() < 0.2:
            del value[key]
        else:
            value[key] = _changed(value[key], odd, dice)
        return value
    return dice.choice(odd)


def _body(handler: Any, answer: Any, dice: random.Random) -> Any:
    """Web pages, noise, other content of the same length, half of the content, content that is compressed or is not."""
    content = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
    flipped = bytearray(content or b"x")
    flipped[dice.randrange(len(flipped))] ^= 1
    answer.content = dice.choice(
        [b"<html>log in</html>", b"", dice.randbytes(100), bytes(flipped), content[: len(content) // 2]]
    )
    if dice.random() < 0.3:
        answer.headers["Content-Type"] = dice.choice(["text/html", "text/html; charset=x", "\x7f", "application/x"])
    if dice.random() < 0.3:
        answer.headers["Content-Encoding"] = dice.choice(["gzip", "br", "zstd", "x"])
    return answer


def _length(handler: Any, answer: Any, dice: random.Random) -> Any:
    length = dice.choice(["99999999999999999999", str(10**12), str(2**63), "-5", "x", "1, 2", "0", "1000000"])
    answer.headers[dice.choice(["Content-Length", "X-Linked-Size", "Content-Range"])] = length
    if answer.headers.get("Content-Length") == length:  # the client waits for the rest, which never comes
        handler.close_connection = True
    return answer


def _pages(handler: Any, answer: Any, dice: random.Random) -> Any:
    here = handler.hub.endpoint + handler.path
    address = dice.choice([here, f"{handler.lies.elsewhere}/api/x", "file:///etc/passwd", "x", f"{here}&cursor=0"])
    answer.headers["Link"] = f'<{address}>; rel="next"'
    return answer


def _nothing(handler: Any, answer: Any, dice: random.Random) -> Any:
    """The connection ends, at once or within the headers, or what comes is no HTTP."""
    sent = [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"\x00" * 50,
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000,
    ]
    handler.wfile.write(dice.choice(sent))
    handler.wfile.flush()
    raise Dropped


_LIES: dict[str, Callable[[Any, Any, random.Random], Any]] = {
    each.__name__: each for each in (_status, _names, _redirect, _json, _body, _length, _pages, _nothing)
}
