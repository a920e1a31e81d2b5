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
    resident memory, in bytes. device_peak: the most memory of a GPU that its tensors took, in bytes; 0 without one.
    """

    seconds: Seconds
    total: float
    peak: int
    device_peak: int = 0


def run(work: Callable[..., Seconds], *arguments: Any) -> Cost:
    """What `work(*arguments)` costs in a process that is spawned for it.

    `work` must be a function of a module, and its arguments must be picklable. If the process fails or is killed, this
    raises RuntimeError with the last line that the process wrote.
    """
    return Waiting(work, *arguments).go()


class Waiting:
    """A process that imports what its work needs, and then waits to be told to do it.

    So several can import at the same time before the first of them is measured. Arguments and errors as in `run`.
    """

    def __init__(self, work: Callable[..., Seconds], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._name, self._is_ready = work.__name__, False
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"
        self._log.touch()
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(work, arguments, theirs, str(self._log)))
        self._process.start()
        theirs.close()  # the child has its own copy, and `recv` ends when that one is closed too

    def ready(self) -> None:
        """Returns once all is imported."""
        if not self._is_ready:
            self._is_ready = self._answer()

    def go(self) -> Cost:
        """What the work costs, which is done now."""
        try:
            self.ready()
            self._ours.send(None)
            cost: Cost = self._answer()
            self._process.join()
        finally:
            self.end()
        return cost

    def end(self) -> None:
        """Ends the process, if it has not ended; e.g. because Ctrl-C stopped the parent."""
        self._process.terminate()
        self._process.join()
        self._ours.close()
        self._folder.cleanup()

    def _answer(self) -> Any:
        try:
            return self._ours.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            said = self._log.read_text(errors="replace").split("\n")
            last = next((line for line in reversed(said) if line.strip()), "it said nothing")
            killed = " (killed, most likely for want of memory)" if self._process.exitcode == -9 else ""
            raise RuntimeError(f"{self._name} ended with exit code {self._process.exitcode}{killed}: {last}") from None


def _work(work: Callable[..., Seconds], arguments: tuple[Any, ...], parent: Connection, log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):  # output goes to a file, for error messages; without a terminal, progress bars are silent
        os.dup2(descriptor, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    parent.send(True)
    parent.recv()
    began = time.perf_counter()
    seconds = work(*arguments)
    parent.send(Cost(seconds, time.perf_counter() - began, _peak(), _device_peak()))


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


def _device_peak() -> int:
    torch = sys.modules.get("torch")  # not imported for this: it takes seconds, and memory
    return 0 if torch is None or not torch.cuda.is_initialized() else torch.cuda.max_memory_allocated()
