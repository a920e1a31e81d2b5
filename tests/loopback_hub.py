"""A Hub on this machine for tests: the endpoints that the unmodified clients of huggingface_hub 2.4 call.

Standard library only. It shares our reading of the protocol (what the clients send and accept), so a test that passes
here says that client and package fit each other, not that the real Hub does the same. It is laxer than the real one in
three ways that we know of: a token may write in every namespace, LFS objects are shared by all repositories, and the
metadata of cards is not fully parsed.

Large and binary files go by LFS. There is no Xet store (a service with a protocol of its own): clients that push must
run with HF_HUB_DISABLE_XET=1. What is kept is in `loopback_repos`, what is answered in `loopback_endpoints`, and what
can go wrong in `loopback_faults`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path

from loopback_endpoints import Handler
from loopback_faults import Fault, Planned, Request
from loopback_repos import Commit, Repo, is_lfs, lfs_oid

__all__ = ["Commit", "Fault", "LoopbackHub", "Repo", "Request"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a client may keep its connection open for ever
    request_queue_size = 64  # a client may open many at once; one that finds no room waits for a second


class LoopbackHub:
    """The server, in a thread of its own while inside `with`; see the module.

    repos: by (type, id). requests: what was asked so far. uploads: how often each LFS object came in complete.
    faults: what will go wrong (`fail` adds to it).
    """

    token, read_token, user = "hf_loopbackwritetoken", "hf_loopbackreadtoken", "user"

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self.uploads: Counter[str] = Counter()
        self.faults: list[Planned] = []
        self.lfs: dict[str, bytes] = {}
        self.lock = threading.RLock()
        handler = type("HandlerOfOne", (Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, fault: Fault, when: Callable[[Request], bool] | None = None, times: int = 1) -> None:
        """The next `times` requests that `when` holds for (None: any) meet `fault`."""
        self.faults.append(Planned(fault, when or (lambda request: True), times))

    def add(self, repo_id: str, files: dict[str, bytes], repo_type: str = "model", revision: str = "main") -> str:
        """Puts a commit with these files (any names) into a repository, without a client; -> its sha."""
        repo = self.made(repo_type, repo_id)
        there = repo.find(revision)
        self.lfs.update({lfs_oid(content): content for path, content in files.items() if is_lfs(path, len(content))})
        return repo.commit(revision, "Add", {**(there.files if there else {}), **files}).sha

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The files at a revision."""
        commit = self.repos[repo_type, repo_id].find(revision)
        assert commit is not None
        return dict(commit.files)

    def head(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> str:
        """The newest commit of a branch."""
        return self.repos[repo_type, repo_id].branches[revision]

    def environment(self, home: Path | None = None) -> dict[str, str]:
        """Variables for a process that should use this server, and keep its caches in `home` if that is given."""
        caches = (
            {}
            if home is None
            else {
                "HF_HOME": str(home),
                "HF_HUB_CACHE": str(home / "hub"),
                "HF_DATASETS_CACHE": str(home / "datasets"),
                "HF_MODULES_CACHE": str(home / "modules"),
            }
        )
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            **caches,
        }

    def made(self, repo_type: str, repo_id: str) -> Repo:
        """The repository, with a first commit as the Hub makes it if there was none."""
        if (repo_type, repo_id) not in self.repos:
            repo = self.repos[repo_type, repo_id] = Repo()
            repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.repos[repo_type, repo_id]
