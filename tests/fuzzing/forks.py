"""Runs actions in forked children with limits on time and memory, and notices what an action does besides answering."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SECONDS, BYTES = 20.0, 2 * 2**30
_CODE_RUNS = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"}
_CODE_RUNS |= {"socket.connect", "socket.bind", "ctypes.dlopen"}
# Events, and which of their arguments is the path that is changed, and the descriptor of the folder it begins at.
_CHANGES = {"os.remove": (0, 1), "os.rename": (1, 3), "os.rmdir": (0, 1), "os.mkdir": (0, 2)}
_CHANGES |= {"os.link": (1, 3), "os.symlink": (1, 2), "os.truncate": (0, 2)}


def run_all(
    actions: Sequence[Callable[[], str]], may_write: Sequence[Path], canary: Path
) -> Iterator[tuple[int, str, str, float]]:
    """Yields (index, outcome, detail, seconds) for each action, in order.

    An action returns a word, the outcome. Others are: "trace" (it raised), "slow" (over SECONDS), "memory" (over BYTES
    more than at the start), "died", "outside" (it changed a file outside `may_write`, or read `canary`) and "code" (it
    started a program, connected to a server or looked up a name for a pickle). After a child's death the next one goes
    on behind the action that killed it.
    """
    start = 0
    while start < len(actions):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _work(actions, start, writing, may_write, canary)
        os.close(writing)
        for index, outcome, detail, seconds in _answers(reading, child, start, len(actions)):
            start = index + 1
            yield index, outcome, detail, seconds
        os.close(reading)


def _answers(reading: int, child: int, start: int, stop: int) -> Iterator[tuple[int, str, str, float]]:
    """What a child says until its end, and what its end says about the action that it did not finish."""
    buffer, index = b"", start
    killed = False
    while index < stop:
        ready, _, _ = select.select([reading], [], [], SECONDS + 5)
        if not ready:
            os.kill(child, signal.SIGKILL)
            killed = True
            break
        if not (data := os.read(reading, 65536)):
            break
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            number, outcome, detail, seconds = json.loads(line)
            yield number, outcome, detail, seconds
            index += 1
    _, status = os.waitpid(child, 0)
    if index < stop and (killed or status):
        if killed or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            yield index, "slow", f"no answer in {SECONDS:.0f} s", SECONDS
        elif not os.WIFEXITED(status) or os.WEXITSTATUS(status) != 77:  # 77: that one was told already
            yield index, "died", f"wait status {status}", 0.0


def _work(
    actions: Sequence[Callable[[], str]], start: int, writing: int, may_write: Sequence[Path], canary: Path
) -> None:
    """Does the actions and leaves the process. A new child follows after each that took much memory."""
    noticed: list[tuple[str, str]] = []
    _watch(noticed, [str(path) for path in may_write], str(canary))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * BYTES, -1))
    before = _resident()
    for index in range(start, len(actions)):
        noticed.clear()
        began = time.monotonic()
        used = int(sum(os.times()[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (used + int(SECONDS) + 1, -1))
        try:
            outcome, detail = actions[index](), ""
        except MemoryError:
            outcome, detail = "memory", "MemoryError"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = "trace"
            detail = f"{type(error).__name__}: {str(error)[:150]!r} at {Path(where.filename).name}:{where.lineno}"
        if noticed:
            outcome, detail = noticed[0]
        seconds = time.monotonic() - began
        more = _resident() - before
        if seconds > SECONDS:
            outcome = "slow"
        elif more > BYTES:
            outcome, detail = "memory", f"{more / 2**30:.1f} GiB"
        os.write(writing, json.dumps([index, outcome, detail, seconds]).encode() + b"\n")
        if more > BYTES // 4 and index + 1 < len(actions):
            os._exit(77)
    os._exit(0)


def _resident() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _watch(noticed: list[tuple[str, str]], may_write: Sequence[str], canary: str) -> None:
    """Writes into `noticed` what this process does from now on that an opening must not do."""

    def allowed(path: Any, descriptor: int = -1) -> bool:
        if isinstance(path, int) or path is None:
            return True
        text = os.fsdecode(path)
        if descriptor != -1 and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), text)
        return os.path.abspath(text).startswith((*may_write, "/dev/null", "/proc/", "/dev/shm"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CODE_RUNS and not (event == "ctypes.dlopen" and arguments[0] is None):
            noticed.append(("code", f"{event} {str(arguments)[:120]}"))
        elif event == "open":
            path, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and not allowed(path):
                noticed.append(("outside", f"wrote {os.fsdecode(path)}"))
            elif isinstance(path, (str, bytes)) and os.path.realpath(os.fsdecode(path)) == canary:
                noticed.append(("outside", f"read {canary}"))
        elif event in _CHANGES:
            path, *descriptor = (arguments[place] for place in _CHANGES[event] if place < len(arguments))
            if not allowed(path, *descriptor):
                noticed.append(("outside", f"{event} {os.fsdecode(path)}"))

    sys.addaudithook(hook)
