"""Slices of some checkpoints, on the device that computes with them.

The passes of stage one over the checkpoints are bound by memory: on a CPU, a new tensor for each step of each slice
costs more (its pages are new ones) than the arithmetic. So there is one buffer, and what is done to each number is done
in blocks that stay in the cache. On a GPU, what fits is read and moved once, and stays there.
Shapes: R rows, P parameters, S a slice of P.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.files import MAX_PARQUET_PARAMS
from pdiff_hub.networks.devices import free_bytes
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder

_BLOCK_BYTES = 1 << 20  # of float64 copies of a block; freed tensors of up to this size are used again
_READ_BYTES = 1 << 20  # at once: out of several files, what is read is copied once more
_SHARE_OF_DEVICE = 4  # of its free memory, that all checkpoints may take, at most: as when they are judged


class RowSlices:
    """Slices of the checkpoints `rows` of a data set: `slices(start, stop)` -> float32 [R,S], in raw weight units.

    The tensor is valid until the next call, which writes over it. ValueError for NaN and Inf in the files.
    """

    def __init__(self, dataset: CheckpointDataset, rows: Sequence[int], device: torch.device | None = None):
        self._source, self.rows = dataset.rows, list(rows)
        self.device = device or torch.device("cpu")
        on_gpu = self.device.type == "cuda"
        num_bytes = 4 * len(dataset) * dataset.layout.num_params  # of held-out ones too
        self._keep = on_gpu and num_bytes <= free_bytes(self.device) // _SHARE_OF_DEVICE
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._host = torch.empty(0)
        # Parquet files are decoded in whole groups of rows, so small networks are read all at once.
        self._in_runs = dataset.layout.num_params > MAX_PARQUET_PARAMS

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, start: int, stop: int) -> Tensor:
        if (kept := self._kept.get((start, stop))) is not None:
            return kept
        size = len(self) * (stop - start)
        if len(self._host) < size:
            self._host = torch.empty(size, pin_memory=self.device.type == "cuda")
        host_RS = self._host[:size].view(len(self), stop - start)
        at_once = max(1, _READ_BYTES // (4 * (stop - start))) if self._in_runs else len(self)
        for place, first, last in _runs(self.rows, at_once):
            host_RS[place : place + last - first] = self._source.read(first, last, start, stop)
        if self.device.type != "cuda":
            return host_RS.to(self.device)
        moved_RS = host_RS.to(self.device, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()  # the next slice is read into the same place
        if self._keep:
            self._kept[start, stop] = moved_RS
        return moved_RS

    def normalized(self, statistics: ParamAutoencoder, start: int, stop: int) -> Tensor:
        """As a call, after `statistics.normalize`. It is valid until the next call of either."""
        raw_RS = self(start, stop)
        if raw_RS.device.type == "cuda":
            return statistics.normalize(raw_RS, start)
        for first, last in self.blocks(start, stop):
            block_RS = raw_RS[:, first - start : last - start]
            block_RS.copy_(statistics.normalize(block_RS, first))
        return raw_RS

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of parts of a slice on which operations number by number are fast."""
        step = max(16, _BLOCK_BYTES // (8 * max(1, len(self))) // 16 * 16)
        if self.device.type == "cuda":
            step = stop - start
        for first in range(start, stop, step):
            yield first, min(first + step, stop)


def _runs(rows: Sequence[int], at_once: int) -> Iterator[tuple[int, int, int]]:
    """Runs of rows that follow each other, of at most `at_once`: (place of the first, first, last)."""
    place = 0
    while place < len(rows):
        length = 1
        while length < at_once and place + length < len(rows) and rows[place + length] == rows[place] + length:
            length += 1
        yield place, rows[place], rows[place] + length
        place += length
