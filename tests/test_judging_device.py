"""Networks are judged where they are: their numbers are moved once, or in pieces, and nothing comes back in between."""

from __future__ import annotations

import pytest
import torch

from pdiff_hub.checkpoints.rows import PickedRows, TensorRows
from pdiff_hub.evaluation import on_device
from pdiff_hub.evaluation.on_device import judging_device, picked, rows_on, task_on
from pdiff_hub.networks import devices
from pdiff_hub.networks.devices import at_once, at_once_drawn, has_float64, multiplies_bf16
from pdiff_hub.tasks import load_task

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")  # which knows where a tensor is, and not its numbers


class Counted(TensorRows):
    """Rows that count how many numbers were read of them."""

    num_read = 0

    def read(self, first: int, last: int, start: int, stop: int) -> torch.Tensor:
        self.num_read += (last - first) * (stop - start)
        return super().read(first, last, start, stop)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The free bytes of the other device; a test may change them."""
    free = [1 << 30]
    for module in (devices, on_device):
        monkeypatch.setattr(module, "free_bytes", lambda device: free[0])
    return free


def test_on_a_cpu_rows_and_task_stay_as_they_are() -> None:
    rows, task = TensorRows(torch.zeros(3, 5)), load_task("digits")
    assert rows_on(rows, CPU) is rows and task_on(task, CPU) is task
    assert picked(rows, [0, 1, 2]) is rows and picked(rows, [2, 0]).num_rows == 2
    assert judging_device(CPU) == CPU and has_float64(CPU)


def test_rows_that_fit_are_moved_once(room: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Counted(torch.zeros(7, 5))
    monkeypatch.setattr(on_device, "_PIECE_BYTES", 2 * 4 * 5)
    moved = rows_on(rows, ELSEWHERE)
    assert rows.num_read == 7 * 5 + 1  # the one tells where they are
    for _ in range(3):
        assert moved.read(1, 4, 0, 2).device == ELSEWHERE and moved.read(1, 4, 0, 2).shape == (3, 2)
    assert rows.num_read == 7 * 5 + 1 and rows_on(moved, ELSEWHERE) is moved
    assert PickedRows(moved, [5, 0, 1]).read(0, 3, 1, 4).device == ELSEWHERE


def test_of_too_many_rows_only_those_are_moved_that_are_read(room: list[int]) -> None:
    rows, room[0] = Counted(torch.zeros(7, 5)), 4 * 7 * 5
    moved = rows_on(rows, ELSEWHERE)
    before = rows.num_read
    assert moved.read(1, 4, 0, 2).device == ELSEWHERE and rows.num_read == before + 6
    assert (moved.num_rows, moved.num_params) == (7, 5)


def test_images_are_moved_if_they_fit(room: list[int]) -> None:
    task = load_task("digits")
    assert task_on(task, ELSEWHERE).test.images_NCHW.device == ELSEWHERE
    room[0] = 1000
    assert task_on(task, ELSEWHERE) is task


def test_an_accelerator_works_on_more_at_once_but_not_on_more_than_fits(room: list[int]) -> None:
    assert at_once(100, CPU) == 100 and at_once(100, ELSEWHERE) == 25_600
    assert at_once_drawn(100, CPU) == 100
    drawn = at_once_drawn(100, ELSEWHERE)
    room[0] = 16 * 500
    assert at_once_drawn(100, ELSEWHERE) == drawn  # else a seed would give other networks where less is free
    assert at_once(100, ELSEWHERE) == 500 and at_once(600, ELSEWHERE) == 600


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx2": True, "avx512_bf16": False}, False),
        (None, False),
    ],
    ids=["AVX-512", "AMX", "neither", "a torch that does not tell"],
)
def test_a_cpu_that_multiplies_bfloat16(
    told: dict[str, bool] | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert multiplies_bf16(CPU) is expected
    assert not multiplies_bf16(ELSEWHERE)
