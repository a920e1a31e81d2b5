"""Whatever a server answers, a transfer ends soon, in one sentence or with the right content, and leaks nothing."""

from __future__ import annotations

import logging
import random
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sets import assert_same, dataset
from huggingface_hub import constants
from loopback_hub import LoopbackHub
from loopback_lies import Lies, lie
from no_waiting import without_pauses

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub import describe, push_folder
from pdiff_hub.hub import pull as pull_folder
from pdiff_hub.transfer import client as transfer_client
from pdiff_hub.transfer import guard, list_files, pull, push_files

SHIPPED = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"
FILES = {"a.json": b"{}", "data/b.safetensors": b"b" * 3000, "c.safetensors": b"c" * 5000, "d.txt": b"text"}
THING: dict[str, Any] = {"repo_type": "model", "what": "thing", "required": "a.json"}


@pytest.fixture
def lies(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Lies]:
    without_pauses(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "0"))
    hub.add("user/x", FILES)
    with LoopbackHub() as elsewhere:
        yield Lies(hub, elsewhere)


def arrived(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def sometimes(dice: random.Random) -> Callable[[Any, Any], Any]:
    """A hook that lies now and then, or always, once or for ever, after some true answers that lead to later steps."""
    often, most, true = dice.choice([0.1, 0.3, 1.0]), dice.choice([1, 3, 1000]), dice.randrange(4)

    def hook(handler: Any, answer: Any) -> Any:
        nonlocal most, true
        true -= 1
        if true >= 0 or most <= 0 or dice.random() > often:
            return answer
        most -= 1
        return lie(handler, answer, dice)

    return hook


def hundreds_of_lies(
    number: int, hub: LoopbackHub, lies: Lies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, int]:
    """Each round makes one call while the server lies; -> how many ended well and in a sentence."""
    truth = dataset(3)
    truth.save_pretrained(tmp_path / "set")
    hub.add("user/set", arrived(tmp_path / "set"), "dataset")
    shipped = {
        path: content
        for path, content in arrived(SHIPPED).items()
        if not path.startswith("checkpoints") and not path.endswith(".png")
    }
    hub.add("user/pipe", shipped)
    for name, content in FILES.items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(content)

    def pulled(where: Path) -> None:
        found = arrived(pull("user/x", **THING))
        assert found.items() <= FILES.items() | {(".gitattributes", found.get(".gitattributes", b""))}

    def opened_set(where: Path) -> None:
        assert_same(CheckpointDataset.from_pretrained("user/set"), truth)

    def pulled_set(where: Path) -> None:
        if pull_folder("user/set", where) == "data set":
            assert_same(CheckpointDataset.from_pretrained(where), truth)

    def opened_pipeline(where: Path) -> None:
        weights = PDiffPipeline.from_pretrained("user/pipe").unet.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in right.items())

    def pulled_pipeline(where: Path) -> None:
        pull_folder("user/pipe", where)
        assert arrived(where).items() <= shipped.items()

    def pushed(where: Path) -> None:
        push_files(
            {name: tmp_path / "local" / name for name in FILES},
            f"user/{where.name}",
            repo_type="model",
            commit_message="x",
        )

    right = PDiffPipeline.from_pretrained(SHIPPED).unet.state_dict()
    calls: list[Callable[[Path], object]] = [
        *[pulled, pushed] * 4,
        *[lambda where: push_folder(tmp_path / "set", f"user/{where.name}"), opened_set, pulled_set] * 2,
        *[opened_pipeline, pulled_pipeline, lambda where: describe("user/pipe")],
    ]
    ends, texts = {"well": 0, "sentence": 0}, []
    for seed in range(number):
        dice = random.Random(seed)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / str(seed)))
        lies.hook, started = sometimes(dice), time.monotonic()
        try:
            dice.choice(calls)(tmp_path / "out" / f"r{seed}")
            ends["well"] += 1
        except (PdiffError, OSError) as error:
            ends["sentence"] += 1
            texts.append((str(error), "".join(traceback.format_exception(error))))
        except Exception as error:
            raise AssertionError(f"seed {seed} ended in a trace") from error
        finally:
            lies.hook = None
        assert time.monotonic() - started < 10, seed
    for text, trace in texts:
        assert text and text.isprintable() and len(text) < 1500 and hub.token not in trace, text
    assert lies.tokens == []
    allowed = {"cache", "out", "set", "local"}
    assert {each.name for each in tmp_path.iterdir()} <= allowed
    assert not [*tmp_path.rglob("*escaped*"), *tmp_path.parent.glob("*escaped*"), *Path("/tmp").glob("escaped*")]
    return ends


def test_lies(
    hub: LoopbackHub, lies: Lies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ends = hundreds_of_lies(150, hub, lies, tmp_path, monkeypatch)
    assert ends["sentence"] > 60 and ends["well"] > 10, ends
    assert hub.token not in caplog.text


@pytest.mark.slow
def test_thousands_of_lies(hub: LoopbackHub, lies: Lies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hundreds_of_lies(2000, hub, lies, tmp_path, monkeypatch)


def at(part: str, change: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A hook that changes the answers to requests whose address holds `part`."""
    return lambda handler, answer: change(handler, answer) if part in handler.path else answer


def gets(change: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda handler, answer: answer if handler.command == "HEAD" else change(handler, answer)


@pytest.mark.parametrize("header", ["X-Linked-Etag", "ETag", "X-Repo-Commit"])
def test_names_from_headers_are_no_paths(header: str, lies: Lies, tmp_path: Path) -> None:
    def change(handler: Any, answer: Any) -> Any:
        answer.headers[header] = f'"{"../" * 20}{str(tmp_path)[1:]}/escaped"'
        answer.headers |= {"X-Error-Code": "EntryNotFound"} if header == "X-Repo-Commit" else {}
        answer.status = 404 if header == "X-Repo-Commit" else answer.status
        return answer

    lies.hook = at("/resolve/", change)
    with pytest.raises(PdiffError, match=f"no Hub gives .*{header.lower()} is"):
        pull("user/x", **THING)
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("key", ["lfs", "xetHash"])
def test_names_from_the_second_list_are_no_paths(key: str, lies: Lies) -> None:
    lists = [0]

    def change(handler: Any, answer: Any) -> Any:
        lists[0] += 1
        for entry in answer.content if lists[0] > 2 else []:  # a list of these files has two pages
            if "lfs" in entry:
                entry |= (
                    {"lfs": {**entry["lfs"], "oid": "../../escaped"}} if key == "lfs" else {"xetHash": "../escaped"}
                )
        return answer

    lies.hook = at("/tree/", change)
    with pytest.raises(PdiffError, match=r"no Hub gives .*the name of a content is"):
        pull("user/x", **THING)
    assert lists[0] == 3


@pytest.mark.parametrize("name", ["c.safetensors", "d.txt"])
def test_other_content_of_the_same_size_is_noticed_and_not_kept(name: str, lies: Lies, tmp_path: Path) -> None:
    def change(handler: Any, answer: Any) -> Any:
        answer.content = b"X" * len(answer.content)
        return answer

    lies.hook = at(f"/{name}", gets(change))
    with pytest.raises(PdiffError, match=f"{name} of the model .* arrived with another content"):
        pull("user/x", **THING)
    lies.hook = None
    assert (pull("user/x", **THING) / name).read_bytes() == FILES[name]


def test_a_commit_that_was_asked_for_is_that_commit(lies: Lies, hub: LoopbackHub) -> None:
    old = hub.head("user/x")
    hub.add("user/x", {"d.txt": b"else"})

    def change(handler: Any, answer: Any) -> Any:
        answer.content["sha"] = hub.head("user/x")
        return answer

    lies.hook = at(f"/revision/{old}", change)
    with pytest.raises(PdiffError, match=f"its commit {old} is {hub.head('user/x')}"):
        pull("user/x", revision=old, **THING)


def test_what_a_killed_pull_left_unchecked_is_checked(lies: Lies) -> None:
    folder = pull("user/x", **THING)
    (folder / "d.txt").resolve().write_bytes(b"else")
    (folder.parents[1] / "refs" / "main").unlink()  # written last
    with pytest.raises(PdiffError, match=r"d\.txt of .* arrived with another content"):
        pull("user/x", **THING)
    assert (pull("user/x", **THING) / "d.txt").read_bytes() == b"text"


@pytest.mark.parametrize(
    ("asked", "said"), [("86400", "1440 minutes"), ("9" * 400, "for days"), ("301", "301 seconds")]
)
@pytest.mark.parametrize("part", ["/tree/", "/api/models/user/x", "/resolve/"])
def test_a_wait_that_is_too_long_is_said_and_not_waited(
    asked: str, said: str, part: str, lies: Lies, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(transfer_client.time, "sleep", slept.append)

    def change(handler: Any, answer: Any) -> Any:
        answer.status, answer.headers["Retry-After"] = 429, asked
        return answer

    lies.hook = at(part, change)
    with pytest.raises(ConnectionError, match=f"asks to wait {said}.* run this again then"):
        pull("user/x", **THING)
    assert sum(slept) < 10


def test_a_wait_of_minutes_is_waited_in_pieces_and_said(
    lies: Lies, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(transfer_client.time, "sleep", slept.append)
    answers = [0]

    def change(handler: Any, answer: Any) -> Any:
        answers[0] += 1
        if answers[0] == 1:
            answer.status, answer.headers["RateLimit"] = 429, '"api";r=0;t=200'
        return answer

    lies.hook = at("/tree/", change)
    assert (pull("user/x", **THING) / "d.txt").read_bytes() == b"text"
    assert sum(slept) == 200 and max(slept) <= 30
    assert [record.getMessage() for record in caplog.records if "asks for a pause" in record.getMessage()]


def test_a_list_without_an_end_ends(lies: Lies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_MOST_PAGES", 20)
    number = [0]

    def change(handler: Any, answer: Any) -> Any:
        number[0] += 1
        answer.headers["Link"] = f'<{handler.hub.endpoint}{handler.path.split("?")[0]}?n={number[0]}>; rel="next"'
        return answer

    lies.hook = at("/tree/", change)
    with pytest.raises(PdiffError, match="has no end"):
        list_files("user/x", repo_type="model")
    assert number[0] == 21


@pytest.mark.parametrize("what", ["page", "redirect", "location", "upload"])
def test_the_token_goes_nowhere_else(what: str, lies: Lies, tmp_path: Path) -> None:
    def change(handler: Any, answer: Any) -> Any:
        if what == "page" and "/tree/" in handler.path:
            answer.headers["Link"] = f'<{lies.elsewhere}{handler.path}>; rel="next"'
        elif what == "redirect" and "/api/" in handler.path:
            answer.status, answer.headers["Location"] = 307, lies.elsewhere + handler.path
        elif what == "location" and "/resolve/" in handler.path:
            answer.status, answer.headers["Location"] = 302, lies.elsewhere + handler.path
        elif what == "upload" and "/objects/batch" in handler.path:
            for each in answer.content["objects"]:
                for action in each.get("actions", {}).values():
                    action["href"] = action["href"].replace(handler.hub.endpoint, lies.elsewhere)
        return answer

    lies.hook = change
    (tmp_path / "z.safetensors").write_bytes(b"z" * 100)
    files = {"z.safetensors": tmp_path / "z.safetensors"}
    with pytest.raises((PdiffError, OSError)):
        push_files(files, "user/x", repo_type="model", commit_message="x") if what == "upload" else pull(
            "user/x", **THING
        )
    assert lies.tokens == []


def test_a_web_page_is_no_hub(lies: Lies) -> None:
    def change(handler: Any, answer: Any) -> Any:
        answer.content, answer.headers["Content-Type"] = b"<html>log in</html>", "text/html"
        return answer

    lies.hook = change
    with pytest.raises(ConnectionError, match=r"answers with a web page .* check HF_ENDPOINT"):
        pull("user/x", **THING)
    lies.hook = None
    copy = pull("user/x", **THING)
    lies.hook = change
    assert pull("user/x", **THING) == copy


def test_an_endless_body_is_cut(lies: Lies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdiff_hub.transfer.pulling.MOST_BYTES", 100_000)
    sent = [0]

    def change(handler: Any, answer: Any) -> Any:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            handler.wfile.write(bytes(10_000))
            handler.wfile.flush()
            sent[0] += 10_000

    lies.hook = at("/c.safetensors", gets(change))
    with pytest.raises(PdiffError, match=r"more than the 10.,... bytes that it may have"):
        pull("user/x", **THING)
    assert sent[0] < 50_000_000


def test_files_that_no_disk_holds_are_refused_before_the_download(lies: Lies, tmp_path: Path) -> None:
    def change(handler: Any, answer: Any) -> Any:
        for entry in answer.content:
            if entry["path"] == "c.safetensors":
                entry["size"] = entry["lfs"]["size"] = 10**15
        return answer

    lies.hook = at("/tree/", change)
    with pytest.raises(OSError, match=r"take 1,000,000,000,.* bytes, and .* has room for"):
        pull("user/x", **THING)


@pytest.mark.parametrize("how", ["silent", "headers", "body", "error"])
def test_a_server_that_says_little_is_given_up_after_a_word(
    how: str, lies: Lies, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard, "GIVE_UP", 1.5)
    monkeypatch.setattr(guard, "_TIMEOUT", 0.6)
    monkeypatch.setattr(guard, "_QUIET", 0.5)
    monkeypatch.setattr(transfer_client, "TIMEOUT", 0.6)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.6)

    def change(handler: Any, answer: Any) -> Any:
        head = {"headers": b"", "error": b"HTTP/1.1 503 No\r\nContent-Length: 9999\r\n\r\n", "silent": b""}
        handler.wfile.write(head.get(how, b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"))
        handler.wfile.flush()
        for letter in [b""] * 100 if how == "silent" else [b"H", b"T", b"T", b"P", b"/", *[b"1"] * 200]:
            time.sleep(0.1)
            handler.wfile.write(letter)
            handler.wfile.flush()
        return None

    lies.hook = at("/c.safetensors" if how == "body" else "/tree/", gets(change))
    caplog.set_level(logging.WARNING)
    started = time.monotonic()
    with pytest.raises((PdiffError, OSError), match="again"):
        pull("user/x", **THING)
    assert time.monotonic() - started < 8
    assert "Waiting for the Hub's answer about the model repository 'user/x'" in caplog.text


def test_a_port_where_nobody_listens(lies: Lies, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ConnectionError, match="failed again and again"):
            list_files("user/x", repo_type="model")


@pytest.mark.parametrize(
    "revision", ["../../x", "a..b", "/x", "x/", "a\\b", "a b", "\x1b[2J", "\ud800", "", ".x", "x" * 300]
)
def test_revisions_that_no_branch_has(revision: str, lies: Lies, hub: LoopbackHub) -> None:
    with pytest.raises(PdiffError, match="cannot be the name of a revision"):
        pull("user/x", revision=revision, **THING)
    assert hub.requests == []


@pytest.mark.parametrize("message", ["\ud800", "a\x00b", "\x1b[2J"])
def test_odd_commit_messages(message: str, lies: Lies, hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "z.txt").write_bytes(b"z")
    push_files({"z.txt": tmp_path / "z.txt"}, "user/x", repo_type="model", commit_message=message)
    assert hub.repos["model", "user/x"].commits[hub.head("user/x")].message == message
