"""Held-out checkpoints have no near twin in training: whole stretches of a run, or whole runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.training.holdout import split_rows
from pdiff_hub.travelling.param_autoencoder import ParamLayout

LAYOUT = ParamLayout.from_module(nn.Linear(1, 1))


def checkpoints(runs: list[str | None]) -> CheckpointDataset:
    metadata: list[dict[str, Any]] = [{"run": run} for run in runs]
    return CheckpointDataset(torch.zeros(len(runs), 2), LAYOUT, network={"name": "none"}, metadata=metadata)


def stretches(rows: list[int]) -> list[int]:
    """The lengths of the stretches of rows that follow each other."""
    lengths = [0]
    for position, row in enumerate(rows):
        if position and row != rows[position - 1] + 1:
            lengths.append(0)
        lengths[-1] += 1
    return lengths


@settings(deadline=None)
@given(num=st.integers(2, 300), holdout=st.floats(0, 0.99))
def test_a_split_keeps_every_row_once_and_three_for_training(num: int, holdout: float) -> None:
    train_K, held_out_H = split_rows(checkpoints(["only"] * num), holdout)
    assert sorted(train_K + held_out_H) == list(range(num))
    assert len(train_K) >= min(3, num)
    assert bool(held_out_H) == (holdout > 0 and num > 3)
    assert len(stretches(held_out_H)) <= 2


@pytest.mark.parametrize(
    ("num", "lengths"), [(200, [10, 10]), (100, [5, 5]), (40, [4, 4]), (24, [2, 2]), (10, [2]), (4, [1])]
)
def test_of_one_run_whole_stretches_are_held_out(num: int, lengths: list[int]) -> None:
    for runs in (["only"] * num, [None] * num):
        assert stretches(split_rows(checkpoints(runs), 0.1)[1]) == lengths


def test_of_many_runs_whole_runs_are_held_out() -> None:
    seeds: list[str | None] = [f"seed-{index}" for index in range(200)]
    held_out_H = split_rows(checkpoints(seeds), 0.1)[1]
    assert len(held_out_H) == 20 and max(stretches(held_out_H)) == 1
    runs: list[str | None] = [f"run-{index // 5}" for index in range(100)]
    held_out = {runs[row] for row in split_rows(checkpoints(runs), 0.1)[1]}
    assert len(held_out) == 2
    assert not held_out & {runs[row] for row in split_rows(checkpoints(runs), 0.1)[0]}


def test_few_runs_are_cut_into_stretches() -> None:
    runs: list[str | None] = ["first"] * 50 + ["second"] * 50
    assert stretches(split_rows(checkpoints(runs), 0.1)[1]) == [5, 5]
    uneven: list[str | None] = ["long"] * 90 + [f"short-{index}" for index in range(5)]
    assert len(split_rows(checkpoints(uneven), 0.1)[0]) > 45


def test_one_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="1 checkpoint, expected at least 2"):
        split_rows(checkpoints([None]), 0.1)
