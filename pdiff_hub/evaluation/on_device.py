"""Networks where they are judged: on a GPU, their numbers are moved to it once, or slice by slice if they are too many.

Shapes: K networks, P parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdiff_hub.checkpoints.rows import PickedRows, Rows, TensorRows
from pdiff_hub.networks.devices import free_bytes, has_float64
from pdiff_hub.tasks import Task

_SHARE = 4  # of an accelerator's free memory, at most, for one set of networks, and as much for the images
_PIECE_BYTES = 256 << 20  # of rows that are moved at once


def judging_device(device: torch.device) -> torch.device:
    """`device`, or the CPU if the device does not know float64 (Apple's GPUs)."""
    return device if has_float64(device) else torch.device("cpu")


def task_on(task: Task, device: torch.device) -> Task:
    """The task with its images on `device` if they fit; else as it is, and images are moved when they are needed."""
    if device.type == "cpu":
        return task
    splits = (task.train, task.validation, task.test)
    num_bytes = sum(tensor.nbytes for split in splits for tensor in (split.images_NCHW, split.labels_N))
    return task.to(device) if num_bytes <= free_bytes(device) // _SHARE else task


def rows_on(rows: Rows, device: torch.device) -> Rows:
    """Rows that are read on `device`: all are moved to it now if they fit, else those that are read, when they are."""
    if device.type == "cpu" or rows.read(0, 1, 0, 1).device.type == device.type:
        return rows
    if 4 * rows.num_rows * rows.num_params > free_bytes(device) // _SHARE:
        return _MovedRows(rows, device)
    params_KP = torch.empty(rows.num_rows, rows.num_params, device=device)
    step = max(1, _PIECE_BYTES // (4 * rows.num_params))
    for first in range(0, rows.num_rows, step):
        last = min(first + step, rows.num_rows)
        params_KP[first:last] = rows.read(first, last, 0, rows.num_params)
    return TensorRows(params_KP)


class _MovedRows:
    """Rows of files, of which each rectangle is moved when it is read."""

    def __init__(self, rows: Rows, device: torch.device):
        self._rows, self._device = rows, device
        self.num_rows, self.num_params = rows.num_rows, rows.num_params

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        return self._rows.read(first, last, start, stop).to(self._device)


def picked(rows: Rows, indices: list[int]) -> Rows:
    """Some rows; all of them as they are."""
    return rows if indices == list(range(rows.num_rows)) else PickedRows(rows, indices)
