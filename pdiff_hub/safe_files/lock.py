"""One process at a time writes into a folder; a second one stops with a sentence and changes nothing.

The lock is the file `.pdiff-lock`, which tells who holds it. The operating system holds it (`flock`) and gives it back
when its process ends, however that ends. Where a file system has no such locks, the file alone counts: it is stale if
its process (number, and when that started) does not run any more on this machine.
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import platform
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files import remove_unfinished
from pdiff_hub.safe_files.checking import checked

if sys.platform != "win32":
    import fcntl

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
LOCK_NAME = ".pdiff-lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True)
class _Owner:
    """A process. started: tells it from an earlier one of the same number; "" where that is not known."""

    host: str
    process: int
    started: str

    @classmethod
    def me(cls) -> _Owner:
        return cls(platform.node(), os.getpid(), _started(os.getpid()))

    def is_gone(self) -> bool:
        """Whether it certainly does not run any more."""
        if self.host != platform.node():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is somebody else's
            return False
        return bool(self.started) and _started(self.process) != self.started


def _started(process: int) -> str:
    try:  # the 22nd field; the second is a name in brackets that may hold anything
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, IndexError):
        return ""


class _Busy(PdiffError):
    def __init__(self, folder: Path, owner: _Owner | None, remedy: str = ""):
        whose = "another process" if owner is None else f"process {owner.process} on {owner.host}"
        super().__init__(
            f"{folder} is in use: {whose} writes into it. Wait until that has ended, or give another folder{remedy}."
        )


@dataclass
class _Held:
    process: int
    thread: int
    file: Path
    descriptor: int
    times: int = 1


_held: dict[Path, _Held] = {}
_guard = threading.RLock()  # the garbage collector may give a folder back while another is taken


class FolderLock:
    """Keeps other processes, and other threads of this one, from writing into `folder`, which is made if needed.

    It is held until `release` or until the object is gone. A thread that holds a folder may take it again. Taking it
    removes what killed writes left in the folder (not below it). PdiffError says who holds it.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise PdiffError(f"{folder} is a file, expected a folder to write into; give another name.")
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        with _guard:
            alive = {each.ident for each in threading.enumerate()}
            held = _held.get(place)
            if held is None or held.process != os.getpid():  # a forked process does not hold what its parent holds
                _held[place] = _take(folder, place)
                fresh = True
            else:
                if held.thread != threading.get_ident() and held.thread in alive:
                    raise _Busy(folder, _Owner.me())
                held.thread, held.times, fresh = threading.get_ident(), held.times + 1, False
        self.release = weakref.finalize(self, _give_back, place, os.getpid())
        """Gives the folder back; a second call does nothing."""
        if fresh:
            remove_unfinished(folder)


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Holds the lock of `folder` for the block; see `FolderLock`."""
    lock = FolderLock(folder)
    try:
        yield
    finally:
        lock.release()


def remove_stale_lock(folder: Path) -> None:
    """Removes the file of a lock that nobody holds, where a killed process had nothing left to do but that."""
    if (folder / LOCK_NAME).exists():
        with suppress(_Busy), alone_in(folder):
            pass


def holding(
    argument: str, by: Callable[[Path], AbstractContextManager[None]] = alone_in
) -> Callable[[Callable[_Given, _Result]], Callable[_Given, _Result]]:
    """Decorates a function that holds the lock of a folder, its argument of this name, while it runs. by: takes it."""

    def decorate(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
            with by(signature.bind(*args, **kwargs).arguments[argument]):
                return function(*args, **kwargs)

        return call

    return decorate


def _take(folder: Path, place: Path) -> _Held:
    file = place / LOCK_NAME
    while True:
        descriptor = os.open(file, _FLAGS, 0o644)
        try:
            if _has_locks(descriptor, folder):
                # Whoever held it may have removed the file just now: then this lock is of no file that others see.
                if not _is_at(descriptor, file):
                    os.close(descriptor)
                    continue
            elif (owner := _owner(descriptor)) is not None and owner != _Owner.me() and not owner.is_gone():
                raise _Busy(folder, owner, f"; if that process does not run any more, remove {file}")
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(asdict(_Owner.me())).encode())
        except BaseException:
            os.close(descriptor)
            raise
        return _Held(os.getpid(), threading.get_ident(), file, descriptor)


def _has_locks(descriptor: int, folder: Path) -> bool:
    """Locks the file; False if its file system cannot. PdiffError if another process has locked it."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise _Busy(folder, _owner(descriptor)) from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    return False


def _owner(descriptor: int) -> _Owner | None:
    """Who wrote the file; None if that cannot be read, as after a kill between making and writing it."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        return checked(_Owner, json.loads(os.read(descriptor, 4096)), LOCK_NAME, "remove it.")
    except (ValueError, TypeError, RecursionError):
        return None


def _give_back(place: Path, process: int) -> None:
    with _guard:
        held = _held.get(place)
        if process != os.getpid() or held is None or held.process != process:
            return
        held.times -= 1
        if held.times:
            return
        del _held[place]
        with suppress(OSError):  # the folder may be gone
            os.ftruncate(held.descriptor, 0)  # nobody holds an empty one: where an open file cannot be removed
            if _is_at(held.descriptor, held.file):
                held.file.unlink()
        os.close(held.descriptor)
