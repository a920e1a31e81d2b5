"""A killed pull or push leaves nothing behind for longer than until the next; what is in use stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from checkpoint_sets import dataset
from loopback_hub import LoopbackHub
from no_waiting import without_pauses

from pdiff_hub.hub import pull as pull_folder
from pdiff_hub.transfer import pull, staging, temporary_folder

WAITING = (
    "import sys; from pathlib import Path; from pdiff_hub.transfer import staging\n"
    "with staging(Path(sys.argv[1]), 'x') as folder:\n"
    "    (folder / 'half').write_bytes(b'half'); print(folder.name, flush=True); sys.stdin.read()\n"
)


def test_what_a_killed_process_left_is_removed_and_what_another_uses_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITING, str(tmp_path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as second,
    ):
        assert first.stdout is not None and second.stdout is not None
        left, used = first.stdout.readline().strip(), second.stdout.readline().strip()
        first.kill()
        first.wait()
        for name in (".unfinished-x-mine", ".unfinished-xy-00000000", ".unfinished-x-0000000g"):
            (tmp_path / name).mkdir()
        (tmp_path / ".unfinished-x-0000000a").symlink_to(tmp_path / ".unfinished-x-mine", target_is_directory=True)
        assert (tmp_path / left).is_dir()
        with staging(tmp_path, "x") as folder:
            there = {each.name for each in tmp_path.iterdir()}
            assert left not in there and used in there and folder.name in there and len(there) == 6
            assert (tmp_path / used / "half").read_bytes() == b"half"
            folder.rename(tmp_path / "x")
        second.communicate()
    assert second.returncode == 0 and (tmp_path / "x").is_dir() and not (tmp_path / used).exists()


def test_special_names_are_names(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-a[bc]*-0123abcd").mkdir()
    (tmp_path / ".unfinished-ab1-0123abcd").mkdir()
    with staging(tmp_path, "a[bc]*"):
        pass
    assert [each.name for each in tmp_path.iterdir()] == [".unfinished-ab1-0123abcd"]


def test_temporary_folders_are_private_and_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".unfinished-x-0123abcd").mkdir()
    with temporary_folder("x") as folder:
        assert [*tmp_path.iterdir()] == [folder] and folder.stat().st_mode & 0o777 == 0o700
    assert not [*tmp_path.iterdir()]


def test_half_contents_in_the_cache_are_removed(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    without_pauses(monkeypatch)
    hub.add("user/x", {"a.json": b"{}", "b.safetensors": b"b" * 100})
    options = {"repo_type": "model", "what": "thing", "required": "a.json", "cache_dir": tmp_path}
    blobs = pull("user/x", **options, allow_patterns=["a.json"]).parents[1] / "blobs"
    left, used = blobs / f"{'1' * 64}.0123abcd.incomplete", blobs / f"{'2' * 64}.0123abcd.incomplete"
    for each in (left, used):
        each.write_bytes(b"half")
    locks = tmp_path / ".locks" / "models--user--x"
    for name in ("1" * 64, "2" * 64):
        (locks / f"{name}.lock").touch()
    descriptor = os.open(locks / f"{'2' * 64}.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    pull("user/x", **options)
    assert not left.exists() and used.read_bytes() == b"half"
    os.close(descriptor)
    pull("user/x", **options)
    assert not used.exists() and len([*blobs.iterdir()]) == 3  # one of them is the Hub's .gitattributes


def test_a_pull_removes_what_a_killed_pull_left(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pauses(monkeypatch)
    dataset(2).push_to_hub("user/set")
    left, mine = tmp_path / ".unfinished-target-0123abcd", tmp_path / ".unfinished-targets-0123abcd"
    for each in (left, mine):
        each.mkdir()
        (each / "half").write_bytes(b"half")
    pull_folder("user/set", tmp_path / "target")
    assert {each.name for each in tmp_path.iterdir()} == {"target", mine.name}
    left.mkdir()
    with pytest.raises(FileNotFoundError):
        pull_folder("user/none", tmp_path / "target2")
    with pytest.raises(ValueError, match="does not exist"):
        pull_folder("user/set", tmp_path / "target", rows=[7])
    assert {each.name for each in tmp_path.iterdir()} == {"target", mine.name}
