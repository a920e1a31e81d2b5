"""A Hub on this machine for tests. It has the endpoints that the unmodified clients of huggingface_hub 2.4 call.

It uses the standard library only. It follows our reading of the protocol (what the clients send and accept). So a test
that passes here shows that the client and the package fit each other, not that the real Hub does the same. It is laxer
than the real Hub in three known ways: a token may write in every namespace, all repositories share their LFS objects,
and the metadata of cards is not fully parsed.

Large and binary files go by LFS. There is no Xet store, which is a service with its own protocol, so clients that push
must run with HF_HUB_DISABLE_XET=1. `loopback_repos` keeps the contents, `loopback_endpoints` answers requests, and
`loopback_faults` makes things go wrong.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopback_endpoints import Handler
from loopback_faults import Fault, Planned, Request
from loopback_repos import Commit, Repo, is_lfs, lfs_oid

if TYPE_CHECKING:
    import pytest

__all__ = ["Commit", "Fault", "LoopbackHub", "Repo", "Request", "point_clients"]


def point_clients(endpoint: str, token: str, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Lets the clients in this process use the Hub at `endpoint`, with this token, and `home` for their caches."""
    import datasets.config
    from huggingface_hub import constants, hf_api

    files = "{repo_id}/resolve/{revision}"
    # The libraries read these variables only once, when they are imported, so their constants are replaced.
    for name, value in (
        ("ENDPOINT", endpoint),
        ("HF_HUB_OFFLINE", False),
        ("HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}/{files}/{{filename}}"),
        ("HF_HOME", str(home)),
        ("HF_HUB_CACHE", str(home / "hub")),
        ("HF_TOKEN_PATH", str(home / "token")),
    ):
        patch.setattr(constants, name, value)
    patch.setattr(hf_api.api, "endpoint", endpoint)
    for name, value in (
        ("HF_ENDPOINT", endpoint),
        ("HF_HUB_OFFLINE", False),
        ("HF_DATASETS_CACHE", home / "datasets"),
        ("HUB_DATASETS_URL", f"{endpoint}/datasets/{files}/{{path}}"),
    ):
        patch.setattr(datasets.config, name, value)
    if "transformers.utils.hub" in sys.modules:  # it may still hold a client for the server of an earlier test
        patch.setattr(sys.modules["transformers.utils.hub"], "_hf_api", None)
    patch.setenv("HF_TOKEN", token)


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a client may keep its connection open for ever
    request_queue_size = 64  # a client may open many connections at once; one that finds no room waits for a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)


class LoopbackHub:
    """The server. Inside `with` it runs in its own thread. The module docstring says what it can do.

    repos: by (type, id). requests: all requests so far. uploads: how often each LFS object arrived complete.
    faults: the faults that will happen (`fail` adds one).
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
        """Lets `fault` happen to the next `times` requests for which `when` holds (None: to any requests)."""
        self.faults.append(Planned(fault, when or (lambda request: True), times))

    def add(self, repo_id: str, files: dict[str, bytes], repo_type: str = "model", revision: str = "main") -> str:
        """Adds a commit with these files (any names) to a repository, without a client, and returns its sha."""
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
        """Environment variables that make a process use this server, and keep its caches in `home` if that is given."""
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
        """The repository. If there is none yet, it is made with a first commit, as the real Hub does."""
        if (repo_type, repo_id) not in self.repos:
            repo = self.repos[repo_type, repo_id] = Repo()
            repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.repos[repo_type, repo_id]
