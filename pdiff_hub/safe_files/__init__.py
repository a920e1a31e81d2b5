"""Writing files so that a kill or a full disk leaves either the old file or the new one, never half a file.

A file is written under a temporary name in its own directory, flushed to the disk and renamed over the old one;
a rename inside one directory is atomic on POSIX file systems.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError

from pdiff_hub.errors import PdiffError

if TYPE_CHECKING:
    from torch import Tensor

# Our temporary files, and those that safetensors leaves if it is killed while writing.
_UNFINISHED = re.compile(r"\.unfinished-.+|\.tmp[0-9A-Za-z]{6}")
# What torch says, in a RuntimeError, if its zip files cannot be written.
_TORCH_WRITES = re.compile(r"PytorchStreamWriter|iostream|write failed|unexpected pos")
_FAILED = "could not write "
_MOST_TEXT_BYTES = 1 << 24


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; the file written there replaces `path` when the block ends.

    If the block raises, or the file cannot be flushed or renamed, the temporary file is removed and `path` stays as it
    was. Operating system errors (a full disk, no permission) are raised again as an OSError with the same `errno`; its
    message names `path` and says whether it was changed. Errors of safetensors become an OSError without `errno`.
    """
    path = Path(path)
    with _whole_or_nothing(path) as (temporary, put_in_place):
        yield temporary
        put_in_place(path)


def write_named_by_content(directory: Path, stem: str, suffix: str, write: Callable[[Path], None]) -> tuple[Path, str]:
    """Lets `write(temporary)` write a file and names it `stem-XXXXXXXX.suffix` after its sha256; -> (path, sha256).

    New content gets a new name. So the old files of a folder stay whole until its index file, which is replaced last,
    names the new ones. Errors as in `replacing`.
    """
    with _whole_or_nothing(directory / f"{stem}{suffix}") as (temporary, put_in_place):
        write(temporary)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = directory / f"{stem}-{digest[:8]}{suffix}"
        put_in_place(path)
    return path, digest


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes `value` as indented JSON, atomically. ValueError if it holds NaN or Inf, which JSON does not know."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Writes tensors (any device or strides, shared memory or not) atomically as safetensors, each in full."""
    with replacing(path) as temporary:
        save_tensors(temporary, tensors, header)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Like `write_safetensors`, but not atomic; for use inside `replacing` or `write_named_by_content`.

    header: texts for the file's metadata. Equal tensors and headers give equal files.
    """
    from safetensors.torch import save_file  # with torch, which reading YAML and JSON, as `pdiff list` does, can spare

    separate = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    end = 0
    for name in sorted(separate, key=lambda name: separate[name].data_ptr()):
        tensor = separate[name]
        if tensor.data_ptr() < end:  # safetensors refuses tensors that overlap, such as tied ones
            separate[name] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    if header is None or len(header) == 1:
        save_file(separate, path, metadata=None if header is None else dict(header))
        return
    # safetensors writes several entries in random order. So it writes one of the same length, which is then replaced.
    text = json.dumps(dict(header), separators=(",", ":")).encode()
    blank = {"": "x" * (len(text) - len(b'{"":""}'))}
    save_file(separate, path, metadata=blank)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        position = 8 + file.read(length).index(json.dumps(blank, separators=(",", ":")).encode())
        file.seek(position)
        file.write(text)


def remove_unfinished(directory: Path, of: str = "") -> None:
    """Removes the temporary files that killed writes left in `directory`, if there is one (not below it).

    of: only those of the file of this name, where others may be writing.
    """
    if not directory.is_dir():
        return
    for leftover in directory.iterdir():
        named = _UNFINISHED.fullmatch(leftover.name) and leftover.name.startswith(f".unfinished-{of}-" if of else ".")
        if named and leftover.is_file() and not leftover.is_symlink():
            leftover.unlink(missing_ok=True)


@contextmanager
def disk_errors_of(path: Path, outcome: Callable[[], str] = lambda: "nothing was changed") -> Iterator[None]:
    """Raises whatever libraries raise where a file cannot be written (a full disk) as an OSError that names `path`.

    outcome: ends the sentence; says what was changed.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, RuntimeError) and not _TORCH_WRITES.search(told):
            raise
        if isinstance(error, OSError) and str(error.strerror or error).startswith(_FAILED):
            raise  # told already, by a write inside this one
        text = f"{_FAILED}{path}: {told}; {outcome()}"
        number = error.errno if isinstance(error, OSError) else None
        raise (OSError(text) if number is None else OSError(number, text)) from error


@contextmanager
def _whole_or_nothing(path: Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    temporary = path.parent / f".unfinished-{path.name}-{secrets.token_hex(4)}"
    outcome = "nothing was changed"

    def put_in_place(target: Path) -> None:
        nonlocal outcome
        temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, target)
        outcome = "the new file is in place, but perhaps not safely on the disk"
        if os.name == "posix":  # other systems cannot open a directory
            _flush(target.parent)

    try:
        with disk_errors_of(path, lambda: outcome):
            temporary.touch()
            mode = temporary.stat().st_mode  # what the umask allows; safetensors makes files for their owner only
            yield temporary, put_in_place
    finally:
        with suppress(OSError):
            temporary.unlink()


def _flush(path: Path) -> None:
    """Waits until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_regular(file: Path) -> Iterator[BinaryIO]:
    """Opens a file to read it; PdiffError if it is a named pipe, a device or a folder, which might never end.

    FileNotFoundError if there is no file.
    """
    try:
        # Not blocking: otherwise a named pipe is opened only when somebody writes into it.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} does not exist: its folder is not whole.") from None
    except ValueError as error:
        raise PdiffError(f"{str(file)!r} is no name of a file ({error}).") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PdiffError(f"{file} is no regular file, expected one with content of its own; put the file there.")
    with os.fdopen(descriptor, "rb") as opened:
        yield opened


def read_small(file: Path) -> bytes:
    """The content of a file of text, such as JSON. Errors as in `open_regular`, and PdiffError over 16 MiB.

    A larger one would be no text of ours, and takes some 20 times its size in memory once it is understood.
    """
    with open_regular(file) as opened:
        content = opened.read(_MOST_TEXT_BYTES + 1)
    if len(content) > _MOST_TEXT_BYTES:
        raise PdiffError(f"{file} has more than {_MOST_TEXT_BYTES:,} bytes, expected a short text; restore the file.")
    return content


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; PdiffError if the file holds none, FileNotFoundError if there is no file."""
    text = read_small(file)
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise PdiffError(f"{file} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise PdiffError(f"{file} holds {type(content).__name__}, expected an object.")
    return content


def keep_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Keeps `settings` in `file`. ValueError names what differs if the file holds other settings already."""
    if file.exists():
        require_same_settings(file.parent, read_json(file), settings)
    else:
        write_json(file, settings)


def require_same_settings(
    folder: Path, there: Mapping[str, Any], now: Mapping[str, Any], others: Sequence[str] = ()
) -> None:
    """Raises ValueError, naming what differs, if the work in `folder` was begun with other settings.

    others: differences that the caller found.
    """
    if different := [*differences(there, json.loads(json.dumps(now))), *others]:
        raise PdiffError(
            f"{folder} was begun with other settings: {'; '.join(different)}. Use these settings again, or another "
            "folder."
        )


def differences(there: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences between two JSON-able settings, one text per dotted name."""
    different: list[str] = []
    for key in sorted({*there, *now}):
        old, new = there.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            different += differences(old, new, f"{prefix}{key}.")
        elif old != new or (key in there) != (key in now):
            texts = [f"{each[key]!r}" if key in each else "not set" for each in (there, now)]
            different.append(f"{prefix}{key} was {texts[0]} and is {texts[1]}")
    return different


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each (dotted name, value) of nested settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
