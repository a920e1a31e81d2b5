"""One piece of work in a fresh process: its seconds, and the most resident memory that it held.

Each piece of work has its own process, because memory that one piece took stays with the process and would count for
the next piece.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Seconds = dict[str, float]
"""Seconds by part of the work."""


@dataclass(frozen=True)
class Cost:
    """What a piece of work costs.

    seconds: of the parts that the work timed itself. total: seconds of all of it, without imports. peak: the most
    resident memory, in bytes.
    """

    seconds: Seconds
    total: float
    peak: int


def run(work: Callable[..., Seconds], *arguments: Any) -> Cost:
    """What `work(*arguments)` costs in a process that is spawned for it.

    `work` must be a function of a module, and its arguments must be picklable. If the process fails or is killed, this
    raises RuntimeError with the last line that the process wrote.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with receiver, tempfile.NamedTemporaryFile() as log:
        process = context.Process(target=_work, args=(work, arguments, sender, log.name))
        process.start()
        sender.close()  # the child has its own copy, and `recv` ends when that one is closed too
        try:
            cost: Cost = receiver.recv()
        except EOFError:
            process.join()
            said = log.read().decode(errors="replace").split("\n")
            last = next((line for line in reversed(said) if line.strip()), "it said nothing")
            killed = " (killed, most likely for want of memory)" if process.exitcode == -9 else ""
            raise RuntimeError(f"{work.__name__} ended with exit code {process.exitcode}{killed}: {last}") from None
        except BaseException:  # the parent was stopped, e.g. by Ctrl-C
            process.terminate()
            raise
        process.join()
    return cost


def _work(work: Callable[..., Seconds], arguments: tuple[Any, ...], sender: Connection, log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):  # output goes to a file, for error messages; without a terminal, progress bars are silent
        os.dup2(descriptor, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    began = time.perf_counter()
    seconds = work(*arguments)
    sender.send(Cost(seconds, time.perf_counter() - began, _peak()))


def _end_with_parent() -> None:
    """Ends this process when its parent ends, even by a kill, so that it does not go on writing into the folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _peak() -> int:
    """The peak in bytes. On Linux `ru_maxrss` starts from the memory of the parent, so only other systems use it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
