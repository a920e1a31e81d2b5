"""A process that has run a command once, so that all is imported, and runs it again in forks that it kills.

Such a fork costs what the command itself costs, and no import of torch, so thousands of kills take minutes. Pictures,
which would take most of that time, are not rendered: their files hold what is drawn.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.backend_bases import FigureCanvasBase

SECONDS = 120.0
"""After which a command that does not end is killed, and its status is `STUCK`."""
STUCK = 71
HOME, TEMPORARY = "hf-home", "tmp"
"""Folders below a root: the Hub client's caches, and the temporary files of the command."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.link", "os.symlink")


@dataclass(frozen=True)
class Order:
    """Run `pdiff` with these words in `root`, and kill it before its operation `killed_at` (from 1; 0: let it end).

    hub: the endpoint and the token of a Hub that it may reach. short: `pdiff reproduce` works with few numbers.
    """

    root: Path
    words: tuple[str, ...]
    killed_at: int = 0
    hub: tuple[str, str] | None = None
    short: bool = False


@dataclass(frozen=True)
class Ended:
    """status: that of the command, negative if a signal ended it. count: its operations, if it ended itself."""

    status: int
    told: str
    count: int


def serve(orders: Connection) -> None:
    """Answers each `Order` with an `Ended`; the first it runs itself, and the others in forks. None is the last one."""
    first = True
    while (order := orders.recv()) is not None:
        orders.send(_run_here(order) if first else _run_in_fork(order))
        first = False


def _run_here(order: Order) -> Ended:
    told = order.root / "told.txt"
    out = sys.stdout, sys.stderr
    here = Path.cwd()
    try:
        with told.open("w") as sys.stdout:
            sys.stderr = sys.stdout
            status = _command(order)
    finally:
        sys.stdout, sys.stderr = out
        os.chdir(here)
    return Ended(status, told.read_text(), 0)


def _run_in_fork(order: Order) -> Ended:
    told, counted = order.root.with_suffix(".told"), order.root.with_suffix(".count")
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = told.open("w")
        operations = _Operations(order)
        operations.watch()
        status = _command(order)
        sys.stdout.flush()
        counted.write_text(str(operations.done))
        os._exit(status)
    end = time.monotonic() + SECONDS
    while not (waited := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            waited = child, STUCK << 8
            break
        time.sleep(0.002)
    ended = Ended(
        os.waitstatus_to_exitcode(waited[1]), told.read_text(), int(counted.read_text()) if counted.exists() else 0
    )
    told.unlink()
    counted.unlink(missing_ok=True)
    return ended


def _command(order: Order) -> int:
    import pytest
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    from pdiff_hub.cli import main

    patch = pytest.MonkeyPatch()  # never undone: this process is for this
    patch.setattr(FigureCanvasAgg, "print_png", _describe_as_png)
    patch.setattr(FigureCanvasSVG, "print_svg", _describe_as_svg)
    os.chdir(order.root)
    (order.root / TEMPORARY).mkdir(exist_ok=True)
    tempfile.tempdir = str(order.root / TEMPORARY)
    if order.hub is not None:
        from loopback_hub import point_clients

        point_clients(*order.hub, order.root / HOME, patch)
    if order.short:
        from short_reproduction import shorten_most

        shorten_most(patch)
    sys.argv = ["pdiff", *order.words]
    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def _describe_as_png(canvas: FigureCanvasBase, file: Path, **options: Any) -> None:
    """Writes a picture of a figure's digest in place of it."""
    digest = hashlib.sha256(repr(_drawn(canvas)).encode()).digest()
    Image.frombytes("L", (8, 4), digest).save(file, "png")


def _describe_as_svg(canvas: FigureCanvasBase, file: Path, **options: Any) -> None:
    """Writes the numbers of a figure's points and lines as they are, in place of it."""
    Path(file).write_text(json.dumps(_drawn(canvas)))


def _drawn(canvas: FigureCanvasBase) -> list[Any]:
    return [
        [each.get_offsets().data.tolist() for each in axes.collections]
        + [each.get_xydata().tolist() for each in axes.lines]
        for axes in canvas.figure.axes
    ]


class _Operations:
    """Counts the operations of this process, and kills it before one of them."""

    def __init__(self, order: Order) -> None:
        self.done, self._killed_at, self._root = 0, order.killed_at, str(order.root) + os.sep

    def watch(self) -> None:
        import httpx2
        import safetensors.torch

        def half(tensors: Any, path: Any, *more: Any) -> None:
            (Path(path).parent / ".tmpKilled").write_bytes(bytes(100))

        os.fsync = self._counted(os.fsync)
        safetensors.torch.serialize_file = self._counted(safetensors.torch.serialize_file, half)
        httpx2.Client.send = self._counted(httpx2.Client.send)  # type: ignore[method-assign]
        sys.addaudithook(self._hear)

    def _is_next(self) -> bool:
        self.done += 1
        return self.done == self._killed_at

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(given[2], int) or not given[2] & _WRITES:
                return
        elif event not in _EVENTS:
            return
        if not isinstance(given[0], (str, os.PathLike)):
            return
        if os.path.abspath(os.fspath(given[0])).startswith(self._root) and self._is_next():
            os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, function: Callable[..., Any], half: Callable[..., None] | None = None) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            if self._is_next():
                if half is not None:
                    half(*given)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **options)

        return call
