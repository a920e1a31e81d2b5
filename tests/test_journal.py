"""Checkpoints that are collected part by part survive a kill at any place: none is lost, and none appears twice."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import traceback
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.journal import BackgroundJournal, CheckpointJournal, TrainingState
from pdiff_hub.travelling.param_autoencoder import ParamLayout

MODULE = nn.Linear(2, 2)
LAYOUT = ParamLayout.from_module(MODULE)
SETTINGS = {"method": "test", "optimizer": {"rate": 0.1, "name": "sgd"}}
TOTAL = 3


def row(step: int) -> Tensor:
    return torch.full((1, LAYOUT.num_params), float(step))


def state(step: int) -> TrainingState:
    return TrainingState({"weight": torch.full((3,), float(step)), "count": torch.tensor(step)}, {"step": step})


def finish(journal: CheckpointJournal) -> CheckpointDataset:
    return journal.finish(network={"name": "x"}, task=None, frozen={}, collect={"method": "test"})


def collect(directory: Path) -> CheckpointDataset:
    """Does what a collector does: goes on from the newest state, and saves a state between checkpoints too."""
    journal = CheckpointJournal(directory, SETTINGS, LAYOUT)
    if not journal.finished:
        newest = journal.state
        done = int(newest.info["step"]) if newest else 0
        if newest:
            assert newest.tensors["count"].item() == done and newest.tensors["weight"].tolist() == [done] * 3
        assert done // 2 == journal.num_checkpoints
        for step in range(done + 1, 2 * TOTAL + 1):
            if step % 2:
                journal.save_state(state(step))
            else:
                journal.append(row(step), [{"step": step}], state(step))
    return finish(journal)


def assert_complete(dataset: CheckpointDataset, directory: Path) -> None:
    steps = [2, 4, 6]
    assert torch.equal(dataset.params_KP, torch.cat([row(step) for step in steps]))
    assert [each["step"] for each in dataset.metadata] == steps
    assert dataset.collect == {"method": "test", "settings": SETTINGS}
    assert not (directory / "parts").exists()


def test_collecting_in_one_go(tmp_path: Path) -> None:
    assert_complete(collect(tmp_path), tmp_path)
    assert CheckpointJournal(tmp_path, SETTINGS, LAYOUT).finished
    assert_complete(collect(tmp_path), tmp_path)


def test_a_kill_anywhere_loses_nothing_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process is stopped before its n-th system call, without cleaning up, for every n; then several times."""
    left = {"calls": 0}

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left["calls"] -= 1
            if left["calls"] < 0:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    def run(directory: Path, calls: int) -> int:
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # ends the child if a forked thread pool hangs
            try:
                left["calls"] = calls
                for name in ("replace", "fsync", "open", "unlink", "mkdir", "rmdir"):
                    monkeypatch.setattr(os, name, counted(getattr(os, name)))
                monkeypatch.setattr(safetensors.torch, "save_file", counted(safetensors.torch.save_file))
                collect(directory)
            except BaseException:
                traceback.print_exc()
                os._exit(1)  # it must not go on as a second pytest
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    codes: list[int] = []
    while 0 not in codes:  # each child is stopped once, at the next place in turn
        directory = tmp_path / "once"
        codes.append(run(directory, len(codes)))
        assert codes[-1] in (0, 9)
        assert_complete(collect(directory), directory)
        shutil.rmtree(directory)
    assert len(codes) > 40 and set(codes) == {0, 9}
    for calls in (13, 29):  # one collection is stopped again and again
        directory = tmp_path / str(calls)
        while run(directory, calls) == 9:
            calls += 1
        assert_complete(collect(directory), directory)


def test_only_the_newest_state_is_kept(tmp_path: Path) -> None:
    journal = CheckpointJournal(tmp_path, SETTINGS, LAYOUT)
    assert journal.state is None
    for step in range(3):
        journal.append(row(step), [{"step": step}], state(step))
        assert len(list(tmp_path.glob("parts/state-*"))) == 1
        assert journal.state is not None and journal.state.info == {"step": step}
    (tmp_path / "parts" / "state-00004.safetensors").write_bytes(b"of a part that was not committed")
    (tmp_path / "parts" / ".unfinished-part-00003.safetensors-abcd").write_bytes(b"half")
    again = CheckpointJournal(tmp_path, SETTINGS, LAYOUT)
    assert again.num_checkpoints == 3 and again.state is not None and again.state.info == {"step": 2}
    assert sorted(file.name for file in tmp_path.glob("parts/*")) == [
        "part-00000.safetensors",
        "part-00001.safetensors",
        "part-00002.safetensors",
        "settings.json",
        "state-00003.safetensors",
    ]


def test_a_full_disk_leaves_what_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = CheckpointJournal(tmp_path, SETTINGS, LAYOUT)
    journal.append(row(1), [{"step": 1}], state(1))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.safetensors")}
    flush = os.fsync
    for fails_at in (1, 3):  # while it writes the file of the state, and the file of the part
        calls = {"n": 0}

        def full(descriptor: int, calls: dict[str, int] = calls, fails_at: int = fails_at) -> None:
            calls["n"] += 1
            if calls["n"] == fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"could not write .*safetensors.*No space left.*nothing was changed"):
            journal.append(row(2), [{"step": 2}], state(2))
        assert {file: file.read_bytes() for file in tmp_path.rglob("*.safetensors")} == before
    monkeypatch.setattr(os, "fsync", flush)
    journal.append(row(2), [{"step": 2}], state(2))
    assert finish(journal).params_KP[:, 0].tolist() == [1, 2]


def test_several_rows_a_part(tmp_path: Path) -> None:
    rows_RP = torch.randn(5, LAYOUT.num_params)
    journal = CheckpointJournal(tmp_path, SETTINGS, LAYOUT)
    metadata: list[dict[str, Any]] = [{"seed": k, "train_loss": torch.rand(()).item()} for k in range(5)]
    journal.append(rows_RP[:3].double(), metadata[:3], TrainingState())
    journal = CheckpointJournal(tmp_path, SETTINGS, LAYOUT)
    journal.append(rows_RP[3:], metadata[3:], TrainingState())
    dataset = finish(journal)
    assert torch.equal(dataset.params_KP, rows_RP)
    assert [each["train_loss"] for each in dataset.metadata] == [each["train_loss"] for each in metadata]


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_and_named(tmp_path: Path, finished: bool) -> None:
    journal = CheckpointJournal(tmp_path, SETTINGS, LAYOUT)
    journal.append(row(1), [{}], state(1))
    if finished:
        finish(journal)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    other = {"method": "test", "optimizer": {"rate": 0.2, "name": "sgd"}, "epochs": 3}
    with pytest.raises(ValueError, match=r"epochs was not set and is 3; optimizer\.rate was 0\.1 and is 0\.2"):
        CheckpointJournal(tmp_path, other, LAYOUT)
    with pytest.raises(ValueError, match="the layout"):
        CheckpointJournal(tmp_path, SETTINGS, ParamLayout.from_module(nn.Linear(2, 3)))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("params_RP", "metadata", "message"),
    [
        (torch.zeros(1, 5), [{}], r"shape \[1, 5\], expected \[R, 6\]"),
        (torch.zeros(0, 6), [], "R >= 1"),
        (torch.zeros(2, 6), [{}], "1 metadata rows for 2"),
        (torch.full((1, 6), torch.nan), [{}], "checkpoint 1: tensor 'weight' holds NaN or Inf"),
        (torch.full((1, 6), 1e300, dtype=torch.float64), [{}], "checkpoint 1: tensor 'weight' holds NaN or Inf"),
        (torch.zeros(1, 6), [{"note": 1}], "metadata column 'note'"),
    ],
)
def test_bad_parts_change_nothing(
    tmp_path: Path, params_RP: Tensor, metadata: list[dict[str, Any]], message: str
) -> None:
    journal = CheckpointJournal(tmp_path, SETTINGS, LAYOUT)
    journal.append(row(1), [{"note": "x"}], state(1))
    with pytest.raises(ValueError, match=message):
        journal.append(params_RP, metadata, state(2))
    assert CheckpointJournal(tmp_path, SETTINGS, LAYOUT).num_checkpoints == 1


def test_damaged_or_misused(tmp_path: Path) -> None:
    journal = CheckpointJournal(tmp_path, SETTINGS, LAYOUT)
    with pytest.raises(ValueError, match="no checkpoint was collected"):
        finish(journal)
    for step in (1, 2):
        journal.append(row(step), [{}], state(step))
    for name, change, message in [
        ("part-00001.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-4]), "damaged|truncated"),
        ("part-00000.safetensors", lambda path: path.unlink(), "part-00000.safetensors is missing"),
        ("state-00002.safetensors", lambda path: path.unlink(), "state-00002.safetensors is missing"),
    ]:
        shutil.copytree(tmp_path, tmp_path.with_name("copy"))
        change(tmp_path.with_name("copy") / "parts" / name)
        with pytest.raises(ValueError, match=message):
            CheckpointJournal(tmp_path.with_name("copy"), SETTINGS, LAYOUT)
        shutil.rmtree(tmp_path.with_name("copy"))
    finish(journal)
    with pytest.raises(ValueError, match="is finished"):
        journal.append(row(3), [{}], state(3))


def test_a_journal_in_the_background_is_the_same_journal(tmp_path: Path) -> None:
    """A state is saved as it was when it was given, and an error while writing is not lost."""
    weight = torch.zeros(3)
    with BackgroundJournal(CheckpointJournal(tmp_path / "a", SETTINGS, LAYOUT)) as writer:
        for step in range(4):
            weight += 1
            writer.append(
                torch.full((1, LAYOUT.num_params), float(step)),
                [{"step": step}],
                TrainingState({"weight": weight}, {"step": step}),
            )
    reopened = CheckpointJournal(tmp_path / "a", SETTINGS, LAYOUT)
    assert reopened.num_checkpoints == 4 and reopened.state is not None
    assert torch.equal(reopened.state.tensors["weight"], torch.full((3,), 4.0)) and reopened.state.info == {"step": 3}
    bad = torch.full((1, LAYOUT.num_params), torch.nan)
    with pytest.raises(ValueError, match="NaN"), BackgroundJournal(reopened) as writer:
        writer.append(bad, [{"step": 4}], TrainingState())
    assert CheckpointJournal(tmp_path / "a", SETTINGS, LAYOUT).num_checkpoints == 4
