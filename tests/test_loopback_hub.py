"""The loopback Hub answers the unmodified clients as the protocol asks. Other tests test the package against it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    constants,
    get_session,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import Fault, LoopbackHub
from no_waiting import without_pauses

ID = "user/thing"


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    made = HfApi()
    made.create_repo(ID)
    return made


def test_files_go_up_and_come_down(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    contents = {f"folder/{number}.txt": b"%d" % number for number in range(12)} | {"w.safetensors": os.urandom(5000)}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    done = api.upload_folder(repo_id=ID, folder_path=tmp_path)
    assert done.oid == hub.head(ID) and sum(hub.uploads.values()) == 1  # only the weights go by LFS
    assert set(api.list_repo_files(ID)) == {*contents, ".gitattributes"}
    assert len(list(api.list_repo_tree(ID, "folder"))) == 12, "pages are followed"
    folder = Path(snapshot_download(ID))
    assert all((folder / name).read_bytes() == content for name, content in contents.items())
    assert api.model_info(ID, files_metadata=True).siblings[-1].lfs.size == 5000
    assert api.list_repo_commits(ID)[0].commit_id == done.oid


def test_branches_tags_and_refs(hub: LoopbackHub, api: HfApi) -> None:
    first = hub.head(ID)
    api.create_branch(ID, branch="a/b")
    api.upload_file(repo_id=ID, path_in_repo="x.txt", path_or_fileobj=b"x", revision="a/b")
    api.create_tag(ID, tag="v1", revision="a/b")
    refs = api.list_repo_refs(ID)
    assert {one.name for one in refs.branches} == {"main", "a/b"} and [one.name for one in refs.tags] == ["v1"]
    assert hub.head(ID) == first and "x.txt" in api.list_repo_files(ID, revision="v1")
    api.delete_tag(ID, tag="v1")
    api.delete_branch(ID, branch="a/b")
    with pytest.raises(RevisionNotFoundError):
        api.list_repo_files(ID, revision="v1")


def test_a_stale_parent_and_deletions(hub: LoopbackHub, api: HfApi) -> None:
    old = hub.head(ID)
    api.upload_file(repo_id=ID, path_in_repo="x.txt", path_or_fileobj=b"x")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(ID, [CommitOperationAdd("y.txt", b"y")], commit_message="y", parent_commit=old)
    assert caught.value.response.status_code == 412 and "y.txt" not in hub.files(ID)
    api.create_commit(ID, [CommitOperationDelete("x.txt")], commit_message="less")
    assert "x.txt" not in hub.files(ID)
    proposed = api.create_commit(ID, [CommitOperationAdd("z.txt", b"z")], commit_message="z", create_pr=True)
    assert proposed.pr_num == 1 and "z.txt" not in hub.files(ID)
    assert hub.files(ID, revision="refs/pr/1")["z.txt"] == b"z"
    refs = api.list_repo_refs(ID, include_pull_requests=True)
    assert [one.ref for one in refs.pull_requests] == ["refs/pr/1"] and [one.name for one in refs.branches] == ["main"]
    hub.add(ID, {"data/x": b"x", "data2/x": b"x"})
    api.delete_folder("data", ID)
    assert "data2/x" in hub.files(ID) and "data/x" not in hub.files(ID)


def test_who_may_do_what(hub: LoopbackHub, api: HfApi) -> None:
    assert api.whoami()["name"] == hub.user
    api.create_repo("user/hidden", private=True)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info("user/hidden")
    assert HfApi(token=hub.read_token).model_info("user/hidden").private
    assert {one.id for one in api.list_models(author="user")} == {ID, "user/hidden"}
    assert [one.id for one in HfApi(token=False).list_models(author="user")] == [ID]
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(token=hub.read_token).create_repo("user/mine")
    assert caught.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(token="hf_wrong").whoami()
    assert caught.value.response.status_code == 401
    for name, status in ((ID, 409), ("user/-x", 400), ("user/x--y", 400), ("user/x.git", 400)):
        owner, _, bare = name.partition("/")
        answer = get_session().post(
            f"{hub.endpoint}/api/repos/create",
            json={"name": bare, "organization": owner},
            headers={"Authorization": f"Bearer {hub.token}"},
        )
        assert answer.status_code == status, name  # asked without the client, since it refuses such names itself
    api.delete_repo("user/hidden")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("user/hidden")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(ID, "none.txt")


def test_a_broken_download_goes_on_where_it_ended(
    hub: LoopbackHub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pauses(monkeypatch)
    content = os.urandom(1 << 20) * 12  # the client writes to disk in pieces of 10 MiB
    hub.add(ID, {"w.bin": content})
    hub.fail(Fault.drop(11 << 20), lambda request: request.method == "GET" and "/resolve/" in request.path)
    assert Path(hf_hub_download(ID, "w.bin")).read_bytes() == content
    downloads = [request for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    assert [request.status for request in downloads] == [200, 206]


def test_a_dropped_request_has_no_status(hub: LoopbackHub, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is dropped has status 0, even on a connection that has answered before."""
    without_pauses(monkeypatch)
    head = hub.head(ID)
    hub.fail(Fault.drop(10), lambda request: "/commit/" in request.path)
    hub.fail(Fault.drop(10), lambda request: request.method == "PUT")
    with pytest.raises(httpx2.TransportError):
        api.upload_file(repo_id=ID, path_in_repo="x.txt", path_or_fileobj=b"x" * 100)
    assert hub.requests[-1].status == 0 and hub.requests[-2].status == 200 and hub.head(ID) == head
    api.upload_file(repo_id=ID, path_in_repo="x.bin", path_or_fileobj=b"x" * 100)  # the client tries a PUT again
    assert [one.status for one in hub.requests if one.method == "PUT"] == [0, 200] and sum(hub.uploads.values()) == 1


def test_half_a_commit_is_no_commit(hub: LoopbackHub, api: HfApi) -> None:
    """A client that dies while it sends a commit changes nothing, however much it has sent."""
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": {"path": "x", "content": "eA=="}}]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    address = urlsplit(hub.endpoint)
    for sent in range(len(body)):
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(
                f"POST /api/models/{ID}/commit/main HTTP/1.1\r\nAuthorization: Bearer {hub.token}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body[:sent]
            )
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    assert len(hub.repos["model", ID].commits) == 1


def test_one_slow_reader_stops_nobody(hub: LoopbackHub, api: HfApi) -> None:
    hub.add(ID, {"w.bin": bytes(32 << 20)})  # more than a connection buffers
    with get_session().stream("GET", f"{hub.endpoint}/{ID}/resolve/main/w.bin") as unread:
        assert unread.status_code == 200 and api.model_info(ID).sha == hub.head(ID)


def test_the_default_transfer_is_refused_at_once_but_reads(
    hub: LoopbackHub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Xet on, the client asks for a token that a Hub without Xet cannot give, and does not fall back to LFS."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.add(ID, {"w.bin": b"w" * 1000})
    head = hub.head(ID)
    with pytest.raises(ConnectionError, match=r"404.*xet-write-token"):
        api.upload_file(repo_id=ID, path_in_repo="v.bin", path_or_fileobj=b"v" * 1000)
    assert hub.requests[-1].path == f"/api/models/{ID}/xet-write-token/main" and hub.head(ID) == head
    assert Path(hf_hub_download(ID, "w.bin")).read_bytes() == b"w" * 1000
    api.upload_file(repo_id=ID, path_in_repo="small.json", path_or_fileobj=b"{}")  # a small file needs no Xet


def test_slow_answers_come(hub: LoopbackHub, api: HfApi) -> None:
    hub.fail(Fault.slow(0.3))
    began = time.perf_counter()
    api.model_info(ID)
    assert time.perf_counter() - began >= 0.3


def test_plain_datasets_and_file_systems_read_it(hub: LoopbackHub) -> None:
    import datasets

    file = io.BytesIO()
    pq.write_table(pa.table({"x": list(range(100))}), file)
    hub.add(ID, {"data/train-0.parquet": file.getvalue()}, repo_type="dataset")
    streamed = datasets.load_dataset(ID, split="train", streaming=True)
    assert [row["x"] for row in streamed] == list(range(100))
    assert datasets.load_dataset(ID, split="train")["x"][:] == list(range(100))
    with HfFileSystem().open(f"datasets/{ID}/data/train-0.parquet") as stream:
        assert pq.ParquetFile(stream).metadata.num_rows == 100


def test_cards_are_checked(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    ModelCard("---\nlicense: apache-2.0\ntags:\n- a\n---\n# x").validate(repo_type="model")
    monkeypatch.setattr(ModelCard, "__str__", lambda card: "---\nlicense\n---\n")  # the client never writes such a card
    with pytest.raises(ValueError, match="not YAML"):
        ModelCard("# x").validate(repo_type="model")


def test_other_processes_reach_it(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", f"from huggingface_hub import HfApi; print(HfApi().model_info({ID!r}).sha)"],
        env={**os.environ, **hub.environment(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == hub.head(ID)
