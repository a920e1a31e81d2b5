"""The endpoints of the loopback Hub, in the form in which the clients of huggingface_hub 2.4 call them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from loopback_faults import Dropped, Fault, Request
from loopback_repos import Commit, Repo, described, git_oid, is_allowed, is_lfs, lfs_oid

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub

_PAGE = 5  # entries of a tree per page: few, so that clients must follow the links


class _Refusal(Exception):
    def __init__(self, status: int, code: str | None = None, message: str = "refused"):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class _Answer:
    """An answer to send. `content`: bytes, or an object that is sent as JSON."""

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


_ROUTES: list[tuple[str, re.Pattern[str], str]] = []


def _route(method: str, pattern: str) -> Callable[[Any], Any]:
    # In a pattern, {T} is "models" or "datasets", {id} a repository and {rev} a revision (percent-encoded).
    for name, part in (
        ("{T}", "(?P<type>models|datasets)"),
        ("{id}", "(?P<id>[^/]+/[^/]+)"),
        ("{rev}", "(?P<rev>[^/]+)"),
        ("{path}", "(?P<path>.+)"),
    ):
        pattern = pattern.replace(name, part)

    def note(function: Any) -> Any:
        _ROUTES.append((method, re.compile(pattern), function.__name__))
        return function

    return note


class Handler(BaseHTTPRequestHandler):
    """Answers one connection to `hub`."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    # An answer is sent in one piece, because delayed acknowledgements would make small answers slow.
    wbufsize = -1

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        request = self.request_made = Request(self.command, self.path, int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.requests.append(request)
            self.fault = next((plan.fault for plan in self.hub.faults if plan.meets(request)), Fault())
        try:
            self.body = self.fault.before(self, request.body_bytes)
            try:
                if self.fault.code:
                    raise _Refusal(self.fault.code, self.fault.error_code, "as the test wished")
                answer = self._dispatch()
            except _Refusal as refusal:
                headers = {"X-Error-Message": refusal.message}
                if refusal.code:
                    headers["X-Error-Code"] = refusal.code
                answer = _Answer({"error": refusal.message}, refusal.status, headers)
            self._send(answer)
        except (Dropped, ConnectionError):
            self.close_connection = True

    def _dispatch(self) -> _Answer:
        address = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(address.query, keep_blank_values=True).items()}
        for method, pattern, name in _ROUTES:
            if method == ("GET" if self.command == "HEAD" else self.command) and (
                found := pattern.fullmatch(address.path)
            ):
                parts = {key: unquote(value) if value else value for key, value in found.groupdict().items()}
                with self.hub.lock:  # not held while the answer is sent, since the client may read slowly
                    return getattr(self, name)(**parts)
        raise _Refusal(404, None, f"no such endpoint: {self.command} {address.path}")

    def _send(self, answer: _Answer) -> None:
        content = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **answer.headers}
        self.request_made.status = answer.status
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: self.fault.bytes])
        self.wfile.flush()
        if self.command != "HEAD" and self.fault.bytes is not None and self.fault.bytes < len(content):
            raise Dropped

    # Who asks for what.

    def _role(self) -> str | None:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        roles = {"": None, self.hub.token: "write", self.hub.read_token: "read"}
        if given not in roles:
            raise _Refusal(401, None, "Invalid credentials in Authorization header")
        return roles[given]

    def _require_write(self) -> None:
        role = self._role()
        if role != "write":
            raise _Refusal(403 if role else 401, None, "you need a token with write access")

    def _repo(self, type: str, id: str) -> Repo:
        role = self._role()
        repo = self.hub.repos.get((type.removesuffix("s"), id))
        if repo is None or (repo.private and role is None):
            # As on the real Hub, a client without a token cannot tell a private repository from a missing one.
            raise _Refusal(404 if role else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, repo: Repo, rev: str) -> Commit:
        commit = repo.find(rev)
        if commit is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return commit

    @_route("GET", "/api/whoami-v2")
    def whoami(self) -> _Answer:
        role = self._role()
        if role is None:
            raise _Refusal(401, None, "no token")
        return _Answer(
            {
                "type": "user",
                "name": self.hub.user,
                "fullname": "A User",
                "orgs": [],
                "auth": {"accessToken": {"displayName": "test", "role": role}},
            }
        )

    # Repositories, branches, tags.

    @_route("GET", "/api/{T}")
    def listed(self, type: str) -> _Answer:
        role, author = self._role(), self.query.get("author")
        return _Answer(
            [
                {"_id": id, "id": id, "private": repo.private, "tags": []}
                for (kind, id), repo in self.hub.repos.items()
                if type == f"{kind}s" and (role or not repo.private) and author in (None, id.split("/")[0])
            ]
        )

    @_route("POST", "/api/repos/create")
    def create(self) -> _Answer:
        self._require_write()
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        if not is_allowed(repo_id):
            raise _Refusal(400, None, f"{repo_id} is no name for a repository")
        kind = asked.get("type") or "model"
        address = f"{self.hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            return _Answer({"url": address, "name": repo_id, "id": repo_id, "error": "exists already"}, 409)
        repo = self.hub.made(kind, repo_id)
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        return _Answer({"url": address, "name": repo_id, "id": repo_id})

    @_route("DELETE", "/api/repos/delete")
    def delete(self) -> _Answer:
        self._require_write()
        asked = json.loads(self.body)
        key = (asked.get("type") or "model", f"{asked.get('organization') or self.hub.user}/{asked['name']}")
        if self.hub.repos.pop(key, None) is None:
            raise _Refusal(404, "RepoNotFound")
        return _Answer({})

    @_route("GET", "/api/{T}/{id}/refs")
    def refs(self, type: str, id: str) -> _Answer:
        repo = self._repo(type, id)

        def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": name if kind == "pr" else f"refs/{kind}/{name}", "targetCommit": sha}
                for name, sha in names.items()
            ]

        proposed = {name: sha for name, sha in repo.branches.items() if name.startswith("refs/pr/")}
        own = {name: sha for name, sha in repo.branches.items() if name not in proposed}
        more = {"pullRequests": listed("pr", proposed)} if "include_prs" in self.query else {}
        return _Answer({"branches": listed("heads", own), "converts": [], "tags": listed("tags", repo.tags), **more})

    @_route("GET", "/api/{T}/{id}/commits/{rev}")
    def commits(self, type: str, id: str, rev: str) -> _Answer:
        repo = self._repo(type, id)
        commit: Commit | None = self._commit(repo, rev)
        listed = []
        while commit is not None:
            listed.append(
                {
                    "id": commit.sha,
                    "title": commit.message,
                    "message": "",
                    "date": commit.date,
                    "authors": [{"user": self.hub.user}],
                }
            )
            commit = repo.commits.get(commit.parent or "")
        return _Answer(listed)

    @_route("POST", "/api/{T}/{id}/branch/{rev}")
    def create_branch(self, type: str, id: str, rev: str) -> _Answer:
        self._require_write()
        repo = self._repo(type, id)
        if rev in repo.branches:
            raise _Refusal(409, None, "the branch exists already")
        asked = json.loads(self.body or b"{}")
        repo.branches[rev] = self._commit(repo, asked.get("startingPoint") or "main").sha
        return _Answer({})

    @_route("DELETE", "/api/{T}/{id}/branch/{rev}")
    def delete_branch(self, type: str, id: str, rev: str) -> _Answer:
        self._require_write()
        self._repo(type, id).branches.pop(rev, None)
        return _Answer({})

    @_route("POST", "/api/{T}/{id}/tag/{rev}")
    def create_tag(self, type: str, id: str, rev: str) -> _Answer:
        self._require_write()
        repo = self._repo(type, id)
        repo.tags[json.loads(self.body)["tag"]] = self._commit(repo, rev).sha
        return _Answer({})

    @_route("DELETE", "/api/{T}/{id}/tag/{rev}")
    def delete_tag(self, type: str, id: str, rev: str) -> _Answer:
        self._require_write()
        self._repo(type, id).tags.pop(rev, None)
        return _Answer({})

    # The contents of a repository.

    @_route("GET", "/api/{T}/{id}(?:/revision/{rev})?")
    def info(self, type: str, id: str, rev: str | None) -> _Answer:
        repo = self._repo(type, id)
        commit = self._commit(repo, rev or "main")
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if "blobs" in self.query:
            for one in siblings:
                content = commit.files[one["rfilename"]]
                one |= {"size": len(content), "blobId": git_oid(content)}
                if is_lfs(one["rfilename"], len(content)):
                    one["lfs"] = {"sha256": lfs_oid(content), "size": len(content), "pointerSize": 130}
        return _Answer(
            {
                "_id": id,
                "id": id,
                "sha": commit.sha,
                "private": repo.private,
                "lastModified": commit.date,
                "tags": [],
                "siblings": siblings,
            }
        )

    @_route("GET", "/api/{T}/{id}/tree/{rev}(?:/{path})?")
    def tree(self, type: str, id: str, rev: str, path: str | None) -> _Answer:
        commit = self._commit(self._repo(type, id), rev)
        prefix = f"{path}/" if path else ""
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for name in sorted(commit.files):
            if not name.startswith(prefix):
                continue
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = prefix + "/".join(parts[:depth])
                entries.setdefault(folder, {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40})
            if recursive or len(parts) == 1:
                entries[name] = described(name, commit.files[name])
        if path and not entries:
            raise _Refusal(404, "EntryNotFound", f"{path} does not exist")
        start = int(self.query.get("cursor", 0))
        headers = {}
        if start + _PAGE < len(entries):
            here = urlsplit(self.path).path
            query = {**self.query, "cursor": str(start + _PAGE)}
            more = "&".join(f"{key}={quote(value)}" for key, value in query.items())
            headers["Link"] = f'<{self.hub.endpoint}{here}?{more}>; rel="next"'
        return _Answer(list(entries.values())[start : start + _PAGE], headers=headers)

    @_route("POST", "/api/{T}/{id}/paths-info/{rev}")
    def paths_info(self, type: str, id: str, rev: str) -> _Answer:
        commit = self._commit(self._repo(type, id), rev)
        found = []
        for path in parse_qs(self.body.decode()).get("paths", []):
            if path in commit.files:
                found.append(described(path, commit.files[path]))
            elif any(name.startswith(f"{path}/") for name in commit.files):
                found.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        return _Answer(found)

    @_route("GET", "(?:/(?P<type>datasets))?/{id}/resolve/{rev}/{path}")
    def resolve(self, type: str | None, id: str, rev: str, path: str) -> _Answer:
        commit = self._commit(self._repo(type or "models", id), rev)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if path not in commit.files:
            raise _Refusal(404, "EntryNotFound", f"{path} does not exist")
        content = commit.files[path]
        headers["ETag"] = f'"{git_oid(content)}"'
        if is_lfs(path, len(content)):
            headers |= {"X-Linked-Etag": f'"{lfs_oid(content)}"', "X-Linked-Size": str(len(content))}
        if self.command == "HEAD":
            return _Answer(b"", headers={**headers, "Content-Length": str(len(content))})
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            if first >= len(content):
                raise _Refusal(416, None, "the range lies behind the end")
            part = f"bytes {first}-{last}/{len(content)}"
            return _Answer(content[first : last + 1], 206, {**headers, "Content-Range": part})
        return _Answer(content, headers=headers)

    # Uploads.

    @_route("POST", "/api/{T}/{id}/preupload/{rev}")
    def preupload(self, type: str, id: str, rev: str) -> _Answer:
        self._require_write()
        commit = self._commit(self._repo(type, id), rev)
        answers = []
        for file in json.loads(self.body)["files"]:
            path, size = file["path"], file["size"]
            lfs = is_lfs(path, size)
            old = commit.files.get(path)
            oid = None if old is None else (lfs_oid(old) if is_lfs(path, len(old)) else git_oid(old))
            answers.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
        return _Answer({"files": answers})

    @_route("POST", "(?:/(?P<type>datasets))?/{id}\\.git/info/lfs/objects/batch")
    def lfs_batch(self, type: str | None, id: str) -> _Answer:
        self._require_write()
        self._repo(type or "models", id)
        objects = []
        for one in json.loads(self.body)["objects"]:
            where = {"href": f"{self.hub.endpoint}/lfs/{one['oid']}"}
            there = one["oid"] in self.hub.lfs
            actions = {} if there else {"actions": {"upload": where, "verify": {"href": where["href"] + "/verify"}}}
            objects.append({"oid": one["oid"], "size": one["size"], **actions})
        return _Answer({"transfer": "basic", "objects": objects})

    @_route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, oid: str) -> _Answer:
        if lfs_oid(self.body) != oid:
            raise _Refusal(400, None, "the content does not fit its name")
        self.hub.lfs[oid] = self.body
        self.hub.uploads[oid] += 1
        return _Answer({})

    @_route("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify")
    def lfs_verify(self, oid: str) -> _Answer:
        if oid not in self.hub.lfs:
            raise _Refusal(404, None, "this object did not arrive")
        return _Answer({})

    @_route("POST", "/api/{T}/{id}/commit/{rev}")
    def make_commit(self, type: str, id: str, rev: str) -> _Answer:
        self._require_write()
        repo = self._repo(type, id)
        head = self._commit(repo, rev)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header = lines[0]["value"]
        if rev not in repo.branches:
            raise _Refusal(400, None, "commits go to branches")
        stale = header.get("parentCommit") not in (None, head.sha)
        if stale or (self.fault and self.fault.stale):
            raise _Refusal(412, None, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for kind, value in ((line["key"], line["value"]) for line in lines[1:]):
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise _Refusal(400, None, f"the LFS object {value['oid']} is not there")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif kind == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise _Refusal(404, "EntryNotFound", f"{value['path']} does not exist")
            elif kind == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: content for path, content in files.items() if not path.startswith(folder)}
        kind = "datasets/" if type == "datasets" else ""
        more = {}
        branch = rev
        if self.query.get("create_pr") == "1":
            repo.pull_requests += 1
            branch = f"refs/pr/{repo.pull_requests}"
            repo.branches[branch] = head.sha
            more = {"pullRequestUrl": f"{self.hub.endpoint}/{kind}{id}/discussions/{repo.pull_requests}"}
        commit = repo.commit(branch, header["summary"], files)
        if self.fault and self.fault.after_commit:
            raise Dropped
        return _Answer(
            {
                "success": True,
                "commitOid": commit.sha,
                "hookOutput": "",
                **more,
                "commitUrl": f"{self.hub.endpoint}/{kind}{id}/commit/{commit.sha}",
            }
        )

    @_route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> _Answer:
        content = json.loads(self.body)["content"].lstrip()
        errors = []
        if content.startswith("---"):
            # The standard library has no YAML parser (the client has one). Lines that are not indented must be keys,
            # list items or comments.
            lines = content.splitlines()[1:]
            if "---" not in lines:
                errors.append({"message": "the metadata has no end"})
            for line in lines[: lines.index("---") if "---" in lines else 0]:
                if line and not re.match(r"[\w-]+:( |$)|[ #-]", line):
                    errors.append({"message": f"not YAML: {line!r}"})
        return _Answer({"errors": errors, "warnings": []}, 400 if errors else 200)
