"""One piece of work in a fresh process: its seconds, and the most resident memory that it held.

A process of its own, since what one piece of work took stays with a process and would count for the next.
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
    """seconds: of the parts that the work itself timed; total: of all of it, imports excluded; peak: resident bytes."""

    seconds: Seconds
    total: float
    peak: int


def run(work: Callable[..., Seconds], *arguments: Any) -> Cost:
    """What `work(*arguments)` costs in a process that is spawned for it.

    `work` is a function of a module and its arguments can be pickled. RuntimeError with the last line that it wrote if
    it fails or is killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with receiver, tempfile.NamedTemporaryFile() as log:
        process = context.Process(target=_work, args=(work, arguments, sender, log.name))
        process.start()
        sender.close()  # the child has one of its own, and is the last to close it
        try:
            cost: Cost = receiver.recv()
        except EOFError:
            process.join()
            said = log.read().decode(errors="replace").split("\n")
            last = next((line for line in reversed(said) if line.strip()), "it said nothing")
            killed = " (killed, most likely for want of memory)" if process.exitcode == -9 else ""
            raise RuntimeError(f"{work.__name__} ended with exit code {process.exitcode}{killed}: {last}") from None
        except BaseException:  # stopped by whoever started it
            process.terminate()
            raise
        process.join()
    return cost


def _work(work: Callable[..., Seconds], arguments: tuple[Any, ...], sender: Connection, log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):  # kept for an error message; and with no terminal there, progress bars are quiet
        os.dup2(descriptor, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    began = time.perf_counter()
    seconds = work(*arguments)
    sender.send(Cost(seconds, time.perf_counter() - began, _peak()))


def _end_with_parent() -> None:
    """However the starting process ends, killed included, nobody goes on measuring into its folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _peak() -> int:
    """Bytes. Linux' `ru_maxrss` begins at what the starting process held, so it is only for other systems."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
