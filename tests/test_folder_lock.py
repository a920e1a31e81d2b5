"""A second process, or thread, in a folder stops with a sentence; what killed processes left is noticed and removed."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files import lock
from pdiff_hub.safe_files.lock import LOCK_NAME, FolderLock, alone_in


@pytest.fixture(params=["flock", "file only"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file only":

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    return str(request.param)


def in_child(folder: Path) -> str:
    """What a process of its own gets when it takes the folder: "" or the error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            held = FolderLock(folder)
            os.write(writing, b"taken" if held.release.alive else b"")
        except PdiffError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        return stream.read().decode()


def test_a_second_process_is_told_who_writes(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with alone_in(folder):
        for told in (in_child(folder), in_child(folder)):
            assert f"{folder} is in use: process {os.getpid()} on " in told and "give another folder" in told
        with alone_in(folder):  # as a run does, which collects and trains
            pass
        assert "is in use" in in_child(folder)
    assert list(folder.iterdir()) == []
    assert in_child(folder) == "taken"


def test_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    assert in_child(tmp_path) == "taken"  # it ended without giving the folder back
    assert (tmp_path / LOCK_NAME).exists()
    (tmp_path / ".unfinished-x.json-0123abcd").write_text("half")
    with alone_in(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == [LOCK_NAME]
    assert list(tmp_path.iterdir()) == []


def test_a_new_process_of_the_same_number_is_another_one(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        owner = json.loads((tmp_path / LOCK_NAME).read_text())
    assert owner["process"] == os.getpid() and owner["started"]
    (tmp_path / LOCK_NAME).write_text(json.dumps({**owner, "started": "1"}))
    with alone_in(tmp_path):
        pass


def test_an_owner_on_another_machine(tmp_path: Path, kind: str) -> None:
    (tmp_path / LOCK_NAME).write_text(json.dumps({"host": "elsewhere", "process": 1, "started": "1"}))
    if kind == "flock":  # the file system would know
        FolderLock(tmp_path).release()
    else:
        with pytest.raises(PdiffError, match=r"process 1 on elsewhere writes into it.*does not run any more, remove"):
            FolderLock(tmp_path)


@pytest.mark.parametrize("content", ["", "[", "{}", '{"host": 1, "process": "x", "started": null}', "[" * 4000])
def test_a_damaged_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_NAME).write_text(content)
    FolderLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_another_thread_is_told_too(tmp_path: Path) -> None:
    told: list[BaseException] = []

    def take() -> None:
        try:
            FolderLock(tmp_path)
        except PdiffError as error:
            told.append(error)

    with alone_in(tmp_path):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert len(told) == 1 and f"process {os.getpid()}" in str(told[0])
    FolderLock(tmp_path).release()


def test_a_lock_that_is_forgotten_is_given_back(tmp_path: Path) -> None:
    held = FolderLock(tmp_path)
    assert (tmp_path / LOCK_NAME).exists()
    del held
    assert list(tmp_path.iterdir()) == [] and in_child(tmp_path) == "taken"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / LOCK_NAME).symlink_to(target)
    with pytest.raises(OSError, match=LOCK_NAME):
        FolderLock(folder)
    assert target.read_text() == "mine"
