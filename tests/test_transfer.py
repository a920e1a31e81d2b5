"""A push is whole or absent, a stopped pull continues, and every failure gives one sentence that holds no token.

The tests use the loopback Hub and the unmodified client.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError
from loopback_hub import Fault, LoopbackHub, Request
from no_waiting import without_pauses

from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer import Pushed, commit_of, list_files, pull, push_files
from pdiff_hub.transfer import client as transfer_client
from pdiff_hub.transfer.errors import asked_delay

ID = "user/things"


@pytest.fixture(autouse=True)
def quick(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)


def folder_of(path: Path, files: dict[str, bytes]) -> dict[str, Path]:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return {name: path / name for name in files}


def push(path: Path, files: dict[str, bytes], repo_id: str = ID, **options: Any) -> Pushed:
    options = {"repo_type": "dataset", "commit_message": "Upload", **options}
    return push_files(folder_of(path, files), repo_id, **options)


def pulled(repo_id: str = ID, **options: Any) -> dict[str, bytes]:
    folder = pull(repo_id, **{"repo_type": "dataset", "what": "thing", "required": "a.json", **options})
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def ours(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != ".gitattributes"}


def to(method: str, part: str) -> Callable[[Request], bool]:
    return lambda request: request.method == method and part in request.path


@contextmanager
def broken(hub: LoopbackHub, fault: Fault, when: Callable[[Request], bool], times: int = 1000) -> Iterator[None]:
    """Until the block ends, `fault` happens to requests for which `when` holds, at most `times` times."""
    active = [True]
    hub.fail(fault, lambda request: active[0] and when(request), times=times)
    yield
    active[0] = False


def anything(request: Request) -> bool:
    return True


FILES = {"a.json": b"{}", "data/b.safetensors": b"b" * 3000, "data/c.safetensors": b"c" * 5000, "empty.txt": b""}


def test_what_is_pushed_comes_back(hub: LoopbackHub, tmp_path: Path) -> None:
    done = push(tmp_path, FILES)
    assert set(done.uploaded) == set(FILES) and done.deleted == () and done.commit == hub.head(ID, "dataset")
    assert done.url == f"{hub.endpoint}/datasets/{ID}/commit/{done.commit}"
    assert ours(hub.files(ID, "dataset")) == FILES == ours(pulled())
    commit, sizes = list_files(ID, repo_type="dataset")
    assert commit == done.commit and sizes["data/c.safetensors"] == 5000


def test_the_same_again_makes_no_commit_and_uploads_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    first = push(tmp_path, FILES)
    before = len(hub.requests)
    again = push(tmp_path, FILES)
    assert (again.commit, again.uploaded) == (first.commit, ())
    assert {request.method for request in hub.requests[before:]} <= {"GET", "HEAD"}
    changed = push(tmp_path, {**FILES, "a.json": b"[]"})
    assert changed.uploaded == ("a.json",) and max(hub.uploads.values()) == 1


def test_replaced_files_go_in_the_same_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    push(tmp_path, {**FILES, "data/mine.txt": b"mine"})
    commits = len(hub.requests)
    done = push(tmp_path, {"a.json": b"{}", "data/d.safetensors": b"d"}, replaces=["data/*.safetensors"])
    assert set(done.deleted) == {"data/b.safetensors", "data/c.safetensors"}
    assert ours(hub.files(ID, "dataset")).keys() == {"a.json", "data/d.safetensors", "data/mine.txt", "empty.txt"}
    assert sum("/commit/" in request.path for request in hub.requests[commits:]) == 1


def test_branches_are_made_and_read(hub: LoopbackHub, tmp_path: Path) -> None:
    push(tmp_path, {"a.json": b"1"})
    done = push(tmp_path, {"a.json": b"2"}, revision="old/er")
    assert pulled(revision="old/er")["a.json"] == b"2" == pulled(revision=done.commit)["a.json"]
    assert pulled()["a.json"] == b"1"
    with pytest.raises(ValueError, match="is a commit"):
        push(tmp_path, {"a.json": b"3"}, revision=done.commit)


def test_a_stale_parent_overwrites_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    seen = push(tmp_path, {"a.json": b"1"}).commit
    newer = push(tmp_path, {"a.json": b"2"}).commit
    with pytest.raises(ValueError, match=r"somebody else pushed .* nothing was overwritten: pull it, then push again"):
        push(tmp_path, {"a.json": b"3"}, parent_commit=seen)
    hub.fail(Fault.stale_parent(), to("POST", "/commit/"))
    with pytest.raises(ValueError, match="somebody else pushed"):
        push(tmp_path, {"a.json": b"3"})
    assert hub.head(ID, "dataset") == newer and hub.files(ID, "dataset")["a.json"] == b"2"


def test_a_commit_whose_answer_was_lost_is_found(hub: LoopbackHub, tmp_path: Path) -> None:
    old = push(tmp_path, FILES).commit
    hub.fail(Fault.drop_after_commit(), to("POST", "/commit/"))
    done = push(tmp_path, {"a.json": b"1", "data/e.safetensors": b"e"}, replaces=["data/b*"])
    assert done.commit == hub.head(ID, "dataset") != old
    assert sum("/commit/" in request.path and request.method == "POST" for request in hub.requests) == 2


@pytest.mark.parametrize("fault", [Fault.status(503), Fault.status(500), Fault.status(429), Fault.drop(0)])
@pytest.mark.parametrize(
    "at", ["/api/repos/create", "/api/datasets/user/things", "/preupload/", "/info/lfs/objects", "/commit/", "/tree/"]
)
def test_passing_failures_are_passed_over(hub: LoopbackHub, tmp_path: Path, fault: Fault, at: str) -> None:
    hub.fail(fault, lambda request: at in request.path, times=2)
    push(tmp_path, FILES)
    assert ours(hub.files(ID, "dataset")) == FILES and set(hub.uploads.values()) <= {1}


@pytest.mark.parametrize("fault", [Fault.status(503), Fault.drop(0), Fault.drop(1000)])
def test_downloads_pass_over_failures(hub: LoopbackHub, tmp_path: Path, fault: Fault) -> None:
    push(tmp_path, FILES)
    for method in ("HEAD", "GET"):
        hub.fail(fault, to(method, "/resolve/"), times=3)
    assert ours(pulled()) == FILES


def test_the_wait_grows_and_respects_the_server(hub: LoopbackHub, tmp_path: Path, monkeypatch: Any) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transfer_client, "BASE_DELAY", 1.0)
    monkeypatch.setattr(transfer_client, "time", SimpleNamespace(sleep=waits.append))
    with (
        broken(hub, Fault.status(503), anything),
        pytest.raises(ConnectionError, match=r"the Hub answered 503 .* again and again"),
    ):
        list_files(ID, repo_type="dataset")
    assert waits == [1, 2, 4, 8]
    for text, seconds in {"7": 7, "9999": 60, "Wed, 21 Oct 2026 07:28:00 GMT": 0}.items():
        answer = httpx2.Response(429, headers={"Retry-After": text}, request=httpx2.Request("GET", hub.endpoint))
        assert asked_delay(HfHubHTTPError("x", response=answer)) == seconds


def test_a_push_that_stopped_uploads_the_rest(hub: LoopbackHub, tmp_path: Path) -> None:
    old = push(tmp_path, {"a.json": b"1"}).commit
    with broken(hub, Fault.status(503), to("POST", "/commit/")), pytest.raises(ConnectionError, match="503"):
        push(tmp_path, FILES)
    assert hub.head(ID, "dataset") == old
    push(tmp_path, FILES)
    assert ours(hub.files(ID, "dataset")) == FILES and set(hub.uploads.values()) <= {1}


def test_a_pull_that_stopped_goes_on(hub: LoopbackHub, tmp_path: Path) -> None:
    push(tmp_path, FILES)
    with broken(hub, Fault.status(503), to("GET", "c.safetensors")), pytest.raises(ConnectionError, match="503"):
        pulled()
    before = len(hub.requests)
    assert ours(pulled()) == FILES
    fetched = [request.path for request in hub.requests[before:] if to("GET", "/resolve/")(request)]
    assert len(fetched) == 1 and fetched[0].endswith("c.safetensors")


def test_without_a_network_the_copy_serves_with_a_warning(
    hub: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push(tmp_path, FILES)
    assert ours(pulled()) == FILES
    with broken(hub, Fault.drop(0), anything):
        caplog.clear()
        assert ours(pulled()) == FILES
        ours_logged = [record for record in caplog.records if record.name.startswith("pdiff_hub")]
        assert len(ours_logged) == 1 and "Using the copy of the data set" in ours_logged[0].getMessage()
        with pytest.raises(ConnectionError, match="failed again and again"):
            pulled("user/never-seen")


def test_offline_mode(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    push(tmp_path, FILES)
    pulled()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert ours(pulled()) == ours(pulled(local_files_only=True)) == FILES
    with pytest.raises(ConnectionError, match=r"the cache holds no whole copy .* unset HF_HUB_OFFLINE"):
        pulled("user/other")
    with pytest.raises(FileNotFoundError, match="pull it once without local_files_only"):
        pulled("user/other", local_files_only=True)
    with pytest.raises(ConnectionError, match=r"offline mode is on.* unset HF_HUB_OFFLINE"):
        push(tmp_path, FILES)
    with pytest.raises(ConnectionError, match="offline mode is on"):
        list_files(ID, repo_type="dataset")
    assert len(hub.requests) == before


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "a\\..\\evil",
        "C:evil",
        "c:/evil",
        "a/./b",
        "a//b",
        ".git/config",
        "a/.GIT/hooks/x",
        "new\nline",
        "nul\0",
    ],
)
def test_hostile_names_are_refused_before_anything_is_downloaded(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    hub.add("user/evil", {"a.json": b"{}", name: b"x"}, repo_type="dataset")
    with pytest.raises(ValueError, match=r"is no file name .* nothing was transferred"):
        pulled("user/evil")
    with pytest.raises(ValueError, match="is no file name"):
        list_files("user/evil", repo_type="dataset")
    assert not any("/resolve/" in request.path for request in hub.requests)
    local = tmp_path / "x"
    local.touch()
    with pytest.raises(ValueError, match="is no file name"):
        push_files({name: local}, ID, repo_type="dataset", commit_message="x")


def test_a_repository_of_something_else(hub: LoopbackHub) -> None:
    hub.add("user/other", {"b.json": b"{}"}, repo_type="dataset")
    with pytest.raises(ValueError, match=r"'user/other' at revision 'main' is no thing of .*: it has no a\.json"):
        pulled("user/other")
    assert not any("/resolve/" in request.path for request in hub.requests)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault.status(401), PermissionError, "401.*hf auth login"),
        (Fault.status(403), PermissionError, "no right.*write"),
        (Fault.status(403, "GatedRepo"), PermissionError, "gated: ask for access"),
        (Fault.status(404, "RepoNotFound"), FileNotFoundError, "there is no data set 'user/things'"),
        (Fault.status(404, "RevisionNotFound"), FileNotFoundError, "has no revision 'main'"),
        (Fault.status(400), PdiffError, "refused"),
        (Fault.status(418), PdiffError, "refused .*418"),
    ],
)
def test_one_sentence_for_each_refusal(
    hub: LoopbackHub, tmp_path: Path, fault: Fault, kind: type[Exception], message: str
) -> None:
    push(tmp_path, FILES)
    hub.fail(fault, to("GET", "/api/datasets/user/things"), times=100)
    with pytest.raises(kind, match=message) as caught:
        pulled()
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def test_missing_things(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no data set 'user/nothing'"):
        pulled("user/nothing")
    push(tmp_path, FILES)
    with pytest.raises(FileNotFoundError, match="has no revision 'v9'"):
        pulled(revision="v9")
    hub.fail(Fault.status(404, "EntryNotFound"), to("GET", "/resolve/"), times=100)
    hub.fail(Fault.status(404, "EntryNotFound"), to("HEAD", "/resolve/"), times=100)
    with pytest.raises(FileNotFoundError, match=r"a file of the data set .* is gone"):
        pulled()
    with pytest.raises(FileNotFoundError, match="does not exist; it was to become"):
        push_files({"a": tmp_path / "none"}, ID, repo_type="dataset", commit_message="x")


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "a b/c", "../x", "user/x--y", "user/x.git", "-x/y", "user/x\n", "user/" + "x" * 97]
)
def test_names_that_are_not_allowed(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    for call in (
        lambda: pulled(name),
        lambda: push(tmp_path, FILES, name),
        lambda: list_files(name, repo_type="model"),
    ):
        with pytest.raises(ValueError, match='cannot be the name of a repository: give "user/name"'):
            call()
    assert hub.requests == []


def test_a_name_that_only_the_hub_refuses(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail(Fault.status(400), to("POST", "/api/repos/create"), times=100)
    with pytest.raises(ValueError, match="the Hub refused this for the data set 'user/things'"):
        push(tmp_path, FILES)


def test_tokens(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PermissionError, match="needs a token: log in"):
        push(tmp_path, FILES, token=False)
    with pytest.raises(PermissionError, match="no right"):
        push(tmp_path, FILES, token=hub.read_token)
    for bad in (f"{hub.token}\n", f"{hub.token} x", "\u00e4", ""):
        with pytest.raises(PermissionError, match="copy it again"):
            push(tmp_path, FILES, token=bad)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="needs a token: log in"):
        push(tmp_path, FILES)
    push(tmp_path, FILES, token=hub.token)
    assert ours(hub.files(ID, "dataset")) == FILES


def everything_said(error: BaseException | None) -> str:
    """The messages of an error and of all its causes and contexts."""
    return (
        ""
        if error is None
        else (f"{error!r} {error}" + everything_said(error.__cause__) + everything_said(error.__context__))
    )


def test_no_message_holds_a_token(
    hub: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    push(tmp_path, FILES)
    caplog.set_level("DEBUG")
    secret = "hf_" + "s3cret" * 5
    said = ""
    for fault in (Fault.status(401), Fault.status(403), Fault.status(503), Fault.status(400), Fault.drop(0)):
        for call in (pulled, lambda **token: push(tmp_path, {"a.json": b"2"}, **token)):
            with broken(hub, fault, anything), pytest.raises((OSError, ValueError)) as caught:
                call(token=secret, **({"revision": "x"} if call is pulled else {}))
            said += everything_said(caught.value)
    captured = capsys.readouterr()
    assert secret not in said + caplog.text + captured.out + captured.err


def test_a_pull_request_is_opened_once(hub: LoopbackHub, tmp_path: Path) -> None:
    push(tmp_path, {"a.json": b"1"})
    hub.fail(Fault.drop(0), to("POST", "/commit/"))
    before = len(hub.requests)
    with pytest.raises(ConnectionError, match=r"look whether it is at .*/discussions"):
        push(tmp_path, {"a.json": b"2"}, create_pr=True)
    assert sum("/commit/" in request.path for request in hub.requests[before:]) == 1


def test_private_is_not_silently_public(hub: LoopbackHub, tmp_path: Path) -> None:
    push(tmp_path, {"a.json": b"1"}, private=False)
    with pytest.raises(ValueError, match="is public already"):
        push(tmp_path, {"a.json": b"2"}, private=True)
    push(tmp_path, {"a.json": b"1"}, "user/secret", private=True)
    push(tmp_path, {"a.json": b"2"}, "user/secret", private=True)


def test_progress_bars_are_silent_where_nobody_looks(
    hub: LoopbackHub, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, tqdm

    module = sys.modules[tqdm.__module__]
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(module, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(module, "progress_bar_states", {"a.b": False})
    push(tmp_path, FILES)
    pulled()
    assert module.progress_bar_states == {"a.b": False} and not are_progress_bars_disabled()
    assert capfd.readouterr().err == ""


def test_commit_of(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its name is no commit"):
        commit_of(tmp_path)


def test_random_faults(hub: LoopbackHub, tmp_path: Path) -> None:
    all_ends_well(hub, tmp_path, 10)


@pytest.mark.slow
def test_50_pushes_and_pulls_with_random_faults(hub: LoopbackHub, tmp_path: Path) -> None:
    all_ends_well(hub, tmp_path, 50)


def all_ends_well(hub: LoopbackHub, tmp_path: Path, num: int) -> None:
    """Every push and pull completes, or ends with an error and the old state and completes when run again."""
    dice = random.Random(0)
    state: dict[str, bytes] = {"a.json": b"{}"}
    push(tmp_path / "first", state)
    copy = ours(pulled())
    failed = 0

    def break_things(stack: ExitStack) -> None:
        for _ in range(dice.randint(1, 3)):
            fault = dice.choice(
                [
                    Fault.status(500),
                    Fault.status(503),
                    Fault.status(429),
                    Fault.drop(0),
                    Fault.drop(dice.randint(1, 4000)),
                    Fault.drop_after_commit(),
                ]
            )
            wait = itertools.count(-dice.randint(0, 12))
            times = dice.choice([1, 1, 2, 30])
            stack.enter_context(broken(hub, fault, lambda request, wait=wait: next(wait) >= 0, times))

    for number in range(num):
        names = [f"data/{dice.randint(0, 9)}.safetensors" for _ in range(3)]
        new = {"a.json": f"[{number}]".encode(), **{name: dice.randbytes(dice.randint(1, 5000)) for name in names}}
        before = hub.head(ID, "dataset")
        with ExitStack() as stack:
            break_things(stack)
            try:
                done = push(tmp_path / f"{number}", new)
                assert done.commit == hub.head(ID, "dataset")
            except ConnectionError:
                failed += 1
        after = ours(hub.files(ID, "dataset"))
        assert after in (state, {**state, **new}) and (after == state) == (hub.head(ID, "dataset") == before)
        push(tmp_path / f"{number}", new)
        state |= new
        assert ours(hub.files(ID, "dataset")) == state
        assert set(hub.uploads.values()) <= {1}, "nothing is uploaded twice"

        with ExitStack() as stack, suppress(ConnectionError):
            break_things(stack)
            assert ours(pulled()) in (state, copy)
        copy = ours(pulled())
        assert copy == state
    assert failed
