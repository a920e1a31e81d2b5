"""The files of a data set survive a kill and a full disk, plain libraries read them, and errors name a damaged one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import traceback
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_sets import FORMS, assert_same, contents, dataset, use_small_files
from safetensors.torch import save_file
from torch import Tensor

from pdiff_hub import safe_files
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints import files as checkpoint_files


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_small_files(request.param, monkeypatch)
    return str(request.param)


def test_load_dataset_reads_the_rows(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    original = dataset(7)
    original.save_pretrained(tmp_path / "set")
    rows = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["index"][:] == list(range(7)) and rows["note"][:] == [f"n{k}" for k in range(7)]
    if form == "parquet":
        assert rows.features["params"] == datasets.List(datasets.Value("float32"), length=original.layout.num_params)
        assert torch.equal(torch.tensor(rows["params"][:]), original.params_KP)
        stream = datasets.load_dataset(str(tmp_path / "set"), split="train", streaming=True)
        assert [row["step"] for row in stream] == list(range(7))
    else:
        assert rows["shard_row"][:3] == [0, 1, 0] and (tmp_path / "set" / rows["shard"][6]).is_file()


def test_mapped_parameters_can_be_changed_without_changing_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files, "MAX_PARQUET_PARAMS", 1)
    dataset().save_pretrained(tmp_path)
    before = contents(tmp_path)
    CheckpointDataset.from_pretrained(tmp_path).params_KP.add_(1)
    assert contents(tmp_path) == before


def test_saving_replaces_what_was_there_and_only_that(tmp_path: Path, form: str) -> None:
    (tmp_path / "data").mkdir()
    for name in ("README.md", "data/train-notes.parquet", "frozen-mine.safetensors"):
        (tmp_path / name).write_text("mine")
    dataset(7, seed=1).save_pretrained(tmp_path)
    first = CheckpointDataset.from_pretrained(tmp_path)
    second = first.select_rows([6, 0, 3])
    second.save_pretrained(tmp_path)  # it reads from the files that it replaces
    assert torch.equal(second.params_KP, dataset(7, seed=1).params_KP[[6, 0, 3]])
    assert_same(CheckpointDataset.from_pretrained(tmp_path), second)
    index = json.loads((tmp_path / "dataset.json").read_text())
    listed = {entry["path"] for entry in [*index["data"], *index["shards"], index["frozen"]]}
    assert set(contents(tmp_path)) == listed | {
        "dataset.json",
        "README.md",
        "data/train-notes.parquet",
        "frozen-mine.safetensors",
    }


def test_a_save_stopped_anywhere_leaves_the_old_set_or_the_new_one(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save is cut off at each system call in turn, as by a kill (nothing is cleaned up), then read, then repeated."""
    old, new = dataset(1, seed=1), dataset(3, seed=2)
    old.save_pretrained(tmp_path / "old")
    new_contents = contents_of(new, tmp_path / "new")
    calls = {"left": 0}

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls["left"] -= 1
            if calls["left"] < 0:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    outcomes = set()
    for limit in range(200):
        folder = tmp_path / str(limit)
        shutil.copytree(tmp_path / "old", folder)
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # ends the child if a forked thread pool hangs
            try:
                calls["left"] = limit
                for name in ("replace", "fsync", "open", "unlink"):
                    monkeypatch.setattr(os, name, counted(getattr(os, name)))
                monkeypatch.setattr(safetensors.torch, "save_file", counted(save_file))
                new.save_pretrained(folder)
            except BaseException:
                traceback.print_exc()
                os._exit(1)  # it must not go on as a second pytest
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        opened = CheckpointDataset.from_pretrained(folder)
        which = "old" if len(opened) == 1 else "new"
        assert_same(opened, {"old": old, "new": new}[which])
        outcomes.add((code, which))
        new.save_pretrained(folder)
        assert contents(folder) == new_contents
        if code == 0:
            break
    assert outcomes == {(9, "old"), (9, "new"), (0, "new")}


@pytest.mark.parametrize("fails_at", range(1, 19))
def test_a_full_disk_leaves_the_folder_as_it_was(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    dataset(6, seed=1).save_pretrained(tmp_path)
    before = contents(tmp_path)
    calls = {"n": 0}
    flush = os.fsync

    def full(descriptor: int) -> None:
        calls["n"] += 1
        if calls["n"] == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    failure = None
    try:
        dataset(7, seed=2).save_pretrained(tmp_path)
    except OSError as error:
        failure = error
    assert (failure is not None) == (calls["n"] >= fails_at)
    if failure is not None:
        assert failure.errno == errno.ENOSPC and str(tmp_path) in str(failure)
    if failure is None or ("dataset.json" in str(failure) and "is in place" in str(failure)):  # the last call failed
        assert len(CheckpointDataset.from_pretrained(tmp_path)) == 7
    else:
        assert contents(tmp_path) == before
    assert calls["n"] <= 18  # so `fails_at` covers every call


def test_an_error_in_safetensors_itself_is_an_os_error_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"could not write .*gone.x\.safetensors.*nothing was changed"):
        safe_files.write_safetensors(tmp_path / "gone" / "x.safetensors", {"a": torch.zeros(1)})


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path, form: str) -> None:
    (tmp_path / "plain").touch()
    dataset().save_pretrained(tmp_path / "set")
    modes = {file.stat().st_mode for file in (tmp_path / "set").rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


FILE = {"path": "data/train-00000-00000000.parquet", "bytes": 1, "sha256": "0" * 64, "rows": 1}


def edited(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**index, **changes}))


def test_damaged_sets(tmp_path: Path, form: str) -> None:
    original = dataset(7)
    names = [name for name in contents_of(original, tmp_path / "good") if name != "dataset.json"]
    pickled = tmp_path / "x.pt"
    torch.save(original.frozen, pickled)

    def spoilt(name: str, change: Any) -> Path:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        original.save_pretrained(folder)
        change(folder / name)
        return folder

    def resized(path: Path, content: bytes) -> None:
        """Writes the content, and a dataset.json that holds the new size."""
        path.write_bytes(content)
        text = (tmp_path / "good" / "dataset.json").read_text()
        index = json.loads(text)
        for entry in [*index["data"], *index["shards"], index["frozen"]]:
            if path.as_posix().endswith(entry["path"]):
                entry["bytes"] = len(content)
                (path.parents[entry["path"].count("/")] / "dataset.json").write_text(json.dumps(index))

    for name in names:
        whole = (tmp_path / "good" / name).read_bytes()
        changes = {
            "missing": lambda path: path.unlink(),
            "truncated": lambda path, whole=whole: path.write_bytes(whole[: len(whole) // 2]),
            "truncated .|damaged": lambda path, whole=whole: resized(path, whole[: len(whole) // 2]),
            "not a parquet file|no safetensors file|was changed": lambda path: resized(path, pickled.read_bytes()),
            "not a|no safetensors|was changed": lambda path: resized(path, b""),
        }
        for message, change in changes.items():
            with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
                CheckpointDataset.from_pretrained(spoilt(name, change)).params_KP.sum()
            assert name in str(caught.value)


def contents_of(original: CheckpointDataset, folder: Path) -> dict[str, bytes]:
    original.save_pretrained(folder)
    return contents(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2, .* upgrade"),
        ({"format_version": 0}, "format version 0"),
        ({"format_version": True}, "format version True"),
        ({"layout": {"select": "all", "entries": [], "frozen": []}}, "num_params is 52, and its layout holds 0"),
        ({"format": "other"}, "does not describe"),
        ({"num_checkpoints": 5}, "expected rows 0 to 4"),
        ({"num_params": 51}, "num_params is 51, and its layout holds 52"),
        ({"num_params": None}, "'num_params' is wrong .*integer"),
        ({"layout": {}}, "damaged"),
        ({"frozen": FILE | {"path": "../x.safetensors"}}, "'frozen.path' is wrong .*a file of this format"),
        ({"frozen": FILE | {"path": "/etc/passwd"}}, "'frozen.path' is wrong .*a file of this format"),
        ({"data": [FILE | {"rows": -1}]}, "'data.0.rows' is wrong .*greater than or equal to 1"),
        ({"data": ["data/train-00000-00000000.parquet"]}, "'data.0' is wrong .*object"),
        ({"data": []}, "'data' is wrong .*at least 1 item"),
        ({"frozen": None}, "frozen tensor '1.num_batches_tracked' is missing"),
    ],
)
def test_bad_index(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    dataset().save_pretrained(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        CheckpointDataset.from_pretrained(tmp_path)


def test_tensors_that_share_memory_are_stored_in_full(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    tensors: dict[str, Tensor] = {"a": base, "b": base.view(2, 3).T, "c": base[2:4], "d": base.bfloat16()}
    safe_files.write_safetensors(tmp_path / "x.safetensors", tensors)
    from safetensors.torch import load_file

    loaded = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
