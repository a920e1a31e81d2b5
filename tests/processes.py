"""Processes that tests start and kill. They fork from a server that imported the package once, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

import torch

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pdiff_hub.cli", "pdiff_hub.runs", "pdiff_hub.hub", "pdiff_hub.evaluation.table"])


def start(code: str, *arguments: str) -> ForkServerProcess:
    """Starts Python that runs `code` on one thread, with `sys.argv[1:] == arguments` and without any output."""
    process = _SERVER.Process(target=_run, args=(code, arguments))
    process.start()
    return process


def run(code: str, *arguments: str) -> None:
    """Does what `start` does, waits for the end, and asserts that the process succeeded."""
    process = start(code, *arguments)
    process.join()
    assert process.exitcode == 0


def start_server(serve: Callable[[Connection], None]) -> tuple[ForkServerProcess, Connection]:
    """Starts a process on one thread that calls `serve` with its end of a pipe; -> the process, and our end."""
    ours, theirs = _SERVER.Pipe()
    process = _SERVER.Process(target=_serve, args=(serve, theirs))
    process.start()
    theirs.close()
    return process, ours


def _serve(serve: Callable[[Connection], None], orders: Connection) -> None:
    torch.set_num_threads(1)
    serve(orders)


def _run(code: str, arguments: tuple[str, ...]) -> None:
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        torch.set_num_threads(1)
        sys.argv = ["-c", *arguments]
        exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
