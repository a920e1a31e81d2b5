"""What the user has made on this machine may be opened again without asking for trust once more.

A run leaves a note in its folder that names the functions that it called, with all their options, and where their code
lay. The note is signed with a secret that lies with the user, outside of all such folders, so nobody else can write
one. The signature is also of where the folder lies: a note that was copied, moved or renamed with its folder is of no
use. Nothing that is found in a folder beside the note is believed: a function is called only as the note has it.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks.factory import is_dotted, search_too
from pdiff_hub.networks.sources import Source, source_of
from pdiff_hub.records.run_folder import RunFolder
from pdiff_hub.safe_files import read_json, remove_unfinished, write_json
from pdiff_hub.safe_files.checking import checked

STATE_VARIABLE = "PDIFF_HUB_STATE"
_SECRET_BYTES = 32
_USE = b"pdiff-hub: made here, 1\n"  # so that no signature of another use fits


@dataclass(frozen=True)
class _Call:
    """A function with its options, and what its import runs."""

    call: dict[str, Any]
    source: Source


@dataclass(frozen=True)
class _Note:
    calls: dict[str, _Call]
    signature: str


def remember(folder: Path, calls: Mapping[str, Mapping[str, Any]]) -> None:
    """Notes in `folder` that the user let these functions be called for what is in it; replaces an earlier note.

    calls: the options of each function by what it makes, its own name among them as "name".

    A function whose source is not a file that Python finds by its name is not noted. Where the secret or the note
    cannot be written, none is: then trust is asked for again.
    """
    noted: dict[str, _Call] = {}
    for what, call in calls.items():
        source = source_of(str(call["name"]))
        if source is not None:
            noted[what] = _Call(dict(call), source)
    _write(folder, noted)


def pass_on(folder: Path | None, to: Path) -> None:
    """Notes in the folder `to`, which was made of what is in `folder`, what is noted there."""
    _write(to, _noted(folder))


def forget(folder: Path) -> None:
    """Ends what `remember` began."""
    RunFolder(folder).made_here.unlink(missing_ok=True)


def made_here(folder: Path | None, what: str, call: Mapping[str, Any]) -> bool:
    """Whether what lies in `folder` was made there by a call of just this function with these options.

    PdiffError if it was, but the function's code is gone, has changed, or is not what Python finds by its name now.
    """
    noted = _noted(folder).get(what)
    if noted is None or _canonical(noted.call) != _canonical(call):
        return False
    name, before = str(call["name"]), noted.source
    now = source_of(name, before.folder)
    if now != before:
        raise PdiffError(
            f"{folder} was made here by calling {name!r}, and {_change(before, now)}: look at it, then give "
            "--trust-remote-code (in Python trust_remote_code=True); a new run with it is remembered again."
        )
    search_too(Path(before.folder))
    return True


def is_trusted(spec: Mapping[str, Any], folder: Path | None, trust_remote_code: bool) -> bool:
    """Whether a network may be built by calling the function that its spec, which came with `folder`, names.

    It may if the user says so, or has made what is in `folder` on this machine with just this function.
    """
    return trust_remote_code or all(made_here(folder, what, call) for what, call in calls_of(spec, {}).items())


def calls_of(spec: Mapping[str, Any], family: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The functions, with their options, that a network's spec and the settings of a family name, by what they make."""
    named = {"network": spec, "family": {"name": family.get("family"), "options": family.get("options", {})}}
    return {
        what: call for what, call in named.items() if isinstance(call.get("name"), str) and is_dotted(str(call["name"]))
    }


def _change(before: Source, now: Source | None) -> str:
    for file, digest in before.files.items():
        if not Path(file).is_file():
            return f"{file} is gone"
        if now is not None and now.files.get(file, digest) != digest:
            return f"{file} has changed since"
    return f"{before.file} is not what Python finds by this name now"


def _write(folder: Path, calls: Mapping[str, _Call]) -> None:
    secret = _secret(make=True) if calls else None
    if secret is None:
        with suppress(OSError):
            forget(folder)
        return
    known = {what: asdict(call) for what, call in calls.items()}
    with suppress(OSError):
        write_json(RunFolder(folder).made_here, {"calls": known, "signature": _signature(secret, folder, known)})


def _noted(folder: Path | None) -> dict[str, _Call]:
    """The calls that are noted in `folder`, if the note is the user's own and of this folder; else none."""
    secret = None if folder is None else _secret()
    if folder is None or secret is None:
        return {}
    file = RunFolder(folder).made_here
    try:
        note = checked(_Note, read_json(file), str(file), "remove it.")
        expected = _signature(secret, folder, {what: asdict(call) for what, call in note.calls.items()})
    except (PdiffError, OSError, ValueError):  # no note, or none of ours
        return {}
    return note.calls if hmac.compare_digest(expected.encode(), note.signature.encode("utf-8", "replace")) else {}


def _signature(secret: bytes, folder: Path, calls: Mapping[str, Any]) -> str:
    """Of the calls, and of the place: the real path of the folder, and which folder the file system says that is."""
    place = os.path.realpath(folder)
    signed = _canonical({"folder": place, "inode": os.stat(place).st_ino, "calls": calls})
    return hmac.new(secret, _USE + signed.encode("utf-8", "surrogatepass"), "sha256").hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=dict)


def _secret(make: bool = False) -> bytes | None:
    """The user's secret; None if there is none that only the user can read, or if it cannot be made."""
    folder = _state_folder()
    if folder is None:
        return None
    file = folder / "secret"
    if make and not os.path.lexists(file):
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_unfinished(folder)
            _write_secret(file)
    return _read_secret(file)


def _write_secret(file: Path) -> None:
    temporary = file.with_name(f".unfinished-{file.name}-{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(secrets.token_bytes(_SECRET_BYTES))
            opened.flush()
            os.fsync(opened.fileno())
        os.link(temporary, file)  # unlike a renaming, it never replaces what another process has just made
    finally:
        temporary.unlink(missing_ok=True)


def _read_secret(file: Path) -> bytes | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError):
        return None
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(opened.fileno())
        mine = os.name != "posix" or (status.st_uid == os.geteuid() and not status.st_mode & 0o077)
        if not stat.S_ISREG(status.st_mode) or not mine:
            return None
        content = opened.read(_SECRET_BYTES + 1)
    return content if len(content) == _SECRET_BYTES else None


def _state_folder() -> Path | None:
    """Where the user's programs keep what is theirs. A relative path would lead into whatever folder one is in."""
    given, standard = os.environ.get(STATE_VARIABLE), os.environ.get("XDG_STATE_HOME")
    try:
        if given:
            place = Path(given)
        elif sys.platform == "win32":
            place = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "pdiff_hub"
        elif standard and os.path.isabs(standard):
            place = Path(standard) / "pdiff_hub"
        else:
            place = Path.home() / ".local" / "state" / "pdiff_hub"
    except RuntimeError:  # nobody knows where home is
        return None
    return place if place.is_absolute() else None
