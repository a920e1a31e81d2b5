"""Processes that tests start and kill. They fork from a server that imported the package once, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

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


def together(code: str, *arguments: str, count: int = 2) -> list[tuple[int, str]]:
    """Runs `code` in `count` processes that know of each other, as a launcher does; -> how each ended and what it said.

    As a launcher does, it ends all when one fails.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        said = [Path(folder) / str(number) for number in range(count)]
        free.close()
        started = [
            _SERVER.Process(target=_run_beside, args=(code, arguments, number, count, port, str(said[number])))
            for number in range(count)
        ]
        for process in started:
            process.start()
        while any(process.is_alive() for process in started):
            if any(process.exitcode for process in started):
                for process in started:
                    process.terminate()
            time.sleep(0.05)
        return [(process.exitcode or 0, file.read_text()) for process, file in zip(started, said, strict=True)]


def _run_beside(code: str, arguments: tuple[str, ...], number: int, count: int, port: int, said: str) -> None:
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    with open(said, "w", buffering=1) as output:
        sys.stdout = sys.stderr = output
        torch.set_num_threads(1)
        sys.argv = ["pdiff", *arguments]
        exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
