"""What an answer of a server may hold: its headers, its body, and the files that it lists or sends."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer.errors import Place, no_hub

if TYPE_CHECKING:
    from httpx2 import Response
    from huggingface_hub.hf_api import RepoFile

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]{0,199}")  # a content's name, and that of its file in the cache
_MOST_FILES = 200_000
_NOTICED_BYTES = 1024  # of a body; less in a long time is as good as nothing


def require_safe_names(headers: Mapping[str, str], place: Place) -> None:
    """PdiffError for a header that the client would use as the name of a file, and that is no such name."""
    for header in ("x-linked-etag", "etag"):
        name = headers.get(header, "").removeprefix("W/").strip('"')
        if name and not _ETAG.fullmatch(name):
            raise no_hub(place, f"{header} is {name[:80]!r}")
    commit = headers.get("x-repo-commit", "")
    if commit and not COMMIT.fullmatch(commit):
        raise no_hub(place, f"x-repo-commit is {commit[:80]!r}")


def limit_body(
    response: Response, place: Place, most: int, reading: Callable[[], None], ended: Callable[[], None]
) -> None:
    """Lets the body of an answer be no longer than `most` bytes.

    `reading` is called for each piece worth noticing, and `ended` at the end, but not where the body is cut off.
    """
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise no_hub(place, f"content-encoding is {encoding[:80]!r}, although none was asked for")
    too_long = no_hub(place, f"more than the {most:,} bytes that it may have")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > most):
        raise too_long
    stream: Any = response.stream

    class Limited(type(stream)):  # type: ignore[misc]  # the HTTP library accepts only streams of its own kind
        def __init__(self) -> None:
            pass

        def __iter__(self) -> Iterator[bytes]:
            total = noticed = 0
            reading()
            for piece in stream:
                total += len(piece)
                if total > most:
                    raise too_long
                if total - noticed >= _NOTICED_BYTES:
                    noticed = total
                    reading()
                yield piece
            ended()

        def close(self) -> None:
            stream.close()

    response.stream = Limited()


def checked_commit(commit: object, place: Place) -> str:
    """The name of a commit; PdiffError if it is none."""
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise no_hub(place, f"its commit is {str(commit)[:80]!r}")
    return commit


def checked_entry(entry: RepoFile, place: Place) -> RepoFile:
    """An entry of a list of files; PdiffError if a part of it is of another kind than the client promises."""
    sizes = [entry.size, *([entry.lfs.size] if entry.lfs else [])]
    names = [(COMMIT, entry.blob_id), *([(_SHA256, entry.lfs.sha256)] if entry.lfs else [])]
    if (
        not isinstance(entry.path, str)
        or any(type(size) is not int or size < 0 for size in sizes)
        or any(not isinstance(name, str) or not pattern.fullmatch(name) for pattern, name in names)
    ):
        raise no_hub(place, f"its entry of the file {str(entry.path)[:80]!r} is damaged")
    return entry


def require_safe_list(entries: object, place: Place) -> None:
    """PdiffError if a list of files holds names of contents that are none, which the client would use as file names."""
    for entry in entries if isinstance(entries, list) else []:
        lfs = entry.get("lfs") if isinstance(entry, dict) else None
        names = [entry.get("xetHash") if isinstance(entry, dict) else None]
        names += [lfs.get("oid"), lfs.get("sha256")] if isinstance(lfs, dict) else []
        for name in names:
            if name is not None and not (isinstance(name, str) and _SHA256.fullmatch(name)):
                raise no_hub(place, f"the name of a content is {str(name)[:80]!r}")


def require_few(number: int, place: Place) -> None:
    if number > _MOST_FILES:
        raise PdiffError(f"the {place} lists more than {_MOST_FILES:,} files, which none of ours has.")


def is_same(entry: RepoFile | None, local: Path) -> bool:
    """Whether a file in a repository has the content of a local one."""
    if entry is None or entry.size != local.stat().st_size:
        return False
    with local.open("rb") as file:
        if entry.lfs is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.lfs.sha256
        digest = hashlib.sha1(f"blob {entry.size}\0".encode(), usedforsecurity=False)  # git's name of the content
        digest.update(file.read())  # what is not in LFS is small
        return digest.hexdigest() == entry.blob_id
