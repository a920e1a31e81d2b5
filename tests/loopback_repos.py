"""What the loopback Hub keeps: repositories with their branches, tags and commits, and the names of file contents."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

_LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".bin", ".pt")
_LFS_BYTES = 1 << 20


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub keeps a file of `size` bytes in LFS. It never keeps empty files there."""
    return size > 0 and (path.endswith(_LFS_SUFFIXES) or size > _LFS_BYTES)


def git_oid(content: bytes) -> str:
    """The name git gives to a file of this content."""
    digest = hashlib.sha1(b"blob %d\0" % len(content))
    digest.update(content)
    return digest.hexdigest()


def lfs_oid(content: bytes) -> str:
    """The name LFS gives to a file of this content."""
    return hashlib.sha256(content).hexdigest()


def described(path: str, content: bytes) -> dict[str, Any]:
    """The entry of a file in the answers of `tree` and `paths-info`."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if is_lfs(path, len(content)):
        entry["lfs"] = {"oid": lfs_oid(content), "size": len(content), "pointerSize": 130}
    return entry


def is_allowed(repo_id: str) -> bool:
    """Whether a repository may have this name. The client checks the same rules."""
    part = r"(?![-.])[\w.-]{1,96}(?<![-.])"
    return bool(re.fullmatch(f"{part}/{part}", repo_id, re.ASCII)) and not (
        "--" in repo_id or ".." in repo_id or repo_id.endswith(".git")
    )


@dataclass
class Commit:
    """One commit. `files`: path -> content."""

    sha: str
    parent: str | None
    message: str
    files: dict[str, bytes]
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))


@dataclass
class Repo:
    """One repository. branches, tags: name -> sha. commits: by sha. Pull requests are branches `refs/pr/NUMBER`."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pull_requests: int = 0

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, tag or sha."""
        return self.commits.get(self.branches.get(revision, self.tags.get(revision, revision)))

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        """Makes a new commit on top of `branch`. Its sha depends on the parent, the message and the contents."""
        parent = self.branches.get(branch)
        contents = [(path, git_oid(content)) for path, content in sorted(files.items())]
        digest = hashlib.sha1(repr((parent, message, len(self.commits), contents)).encode()).hexdigest()
        self.commits[digest] = Commit(digest, parent, message, files)
        self.branches[branch] = digest
        return self.commits[digest]
