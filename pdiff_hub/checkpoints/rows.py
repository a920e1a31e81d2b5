"""Reading rectangles out of a set of flat checkpoints, wherever they lie: in memory, in parquet or safetensors files.

Shapes: K checkpoints, P parameters, R some of the rows, S a slice of the parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pdiff_hub.errors import PdiffError, one_line
from pdiff_hub.safe_files import open_regular
from pdiff_hub.safe_files.tensors import Stored, read_header
from pdiff_hub.travelling.param_autoencoder import safetensors_header

SHARD_TENSOR = "params"
PARQUET_COLUMN = "params"
_PIECE_BYTES = 32 << 20
_HASHED_AT_ONCE = 8  # files
_PLAIN = {"PLAIN", "RLE", "BIT_PACKED"}  # the latter two code which values are null, not the values
T = TypeVar("T")


class Rows(Protocol):
    """K rows of P float32 numbers in a fixed order."""

    num_rows: int
    num_params: int

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        """Rows first..last, columns start..stop -> float32 [R,S]; may be a view. Not checked for NaN.

        Rows in files are read on the CPU; others are where they are.
        """
        ...


class Digests:
    """The sha256 (hex) that files should have. Each is compared once, when numbers are first read from it."""

    def __init__(self, expected: Mapping[Path, str]):
        self._left = dict(expected)

    def compare(self, file: Path) -> None:
        """PdiffError if the file is another one; a file that was compared before, or is not listed, is let through."""
        expected = self._left.get(file)
        if expected is None:
            return
        with open_regular(file):  # a named pipe would never end
            pass
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != expected:
            raise PdiffError(
                f"{file} was changed or is damaged: its sha256 begins with {found[:8]}, and its data set lists "
                f"{expected[:8]}; restore it from where the data set came from."
            )
        self._left.pop(file, None)

    def compare_all(self, files: Iterable[Path]) -> None:
        """As `compare` of each file, of several at the same time: each takes as long as reading it from the disk."""
        left = [file for file in files if file in self._left]
        if len(left) > 1:
            with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
                list(pool.map(self.compare, left))


class TensorRows:
    """Rows that are in memory already: float32 [K,P]."""

    def __init__(self, params_KP: Tensor):
        self.params_KP = params_KP
        self.num_rows, self.num_params = params_KP.shape

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        return self.params_KP[first:last, start:stop]


def as_rows(params: Tensor | Rows) -> Rows:
    """A tensor [K,P] as `Rows` that are views of it; `Rows` as they are. ValueError for another number of axes."""
    if not isinstance(params, Tensor):
        return params
    if params.ndim != 2:
        raise PdiffError(f"parameters have shape {list(params.shape)}, expected networks x parameters.")
    return TensorRows(params)


class PickedRows:
    """Some rows of another `Rows`, in the order of `indices`; nothing is read before `read`."""

    def __init__(self, rows: Rows, indices: Sequence[int]):
        self._rows, self._indices = rows, list(indices)
        self.num_rows, self.num_params = len(self._indices), rows.num_params

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        runs = list(_runs(self._indices[first:last]))
        if len(runs) == 1:  # no copy: networks that are judged one by one are read often
            return self._rows.read(*runs[0], start, stop)
        picked_RS, position = torch.empty(0, stop - start), 0
        for run_first, run_last in runs:
            read_RS = self._rows.read(run_first, run_last, start, stop)
            if position == 0:  # where these rows are, so are the others
                picked_RS = read_RS.new_empty(last - first, stop - start)
            picked_RS[position : position + len(read_RS)] = read_RS
            position += len(read_RS)
        return picked_RS


class ShardRows:
    """Rows in safetensors files, each with one float32 tensor `params` [rows, P] (other tensors are ignored).

    The files are memory-mapped: a slice costs only the pages it touches, and a rectangle within one file is a view of
    the mapping (private to the process: writing to it does not change the file).
    Raises ValueError naming a file that is truncated, not safetensors, or of another shape.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], num_params: int, digests: Digests | None = None):
        self._files, self.num_params, self._digests = list(files), num_params, digests or Digests({})
        self.num_rows = sum(rows for _, rows in self._files)
        for path, rows in self._files:
            self._check(path, rows)

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        overlaps = list(_overlaps(self._files, first, last))
        self._digests.compare_all(path for path, *_ in overlaps)
        parts = [self._read_file(path, rows, slice(a, b), slice(start, stop)) for path, rows, a, b in overlaps]
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0, stop - start)

    def _check(self, path: Path, rows: int) -> None:
        found, expected = read_header(path).get(SHARD_TENSOR), Stored(torch.float32, (rows, self.num_params))
        if found != expected:
            raise PdiffError(
                f"{path}: tensor {SHARD_TENSOR!r} is {found or 'missing'}, expected {expected}; restore the file from "
                "where the data set came from."
            )

    def _read_file(self, path: Path, rows: int, which: slice, columns: slice) -> Tensor:
        self._digests.compare(path)
        try:
            with safe_open(path, framework="pt") as file:
                tensor = file.get_slice(SHARD_TENSOR)
                part_RS: Tensor = tensor[which, columns]
        except SafetensorError as error:
            raise PdiffError(f"{path} is damaged ({error}); restore it from where the data set came from.") from error
        if part_RS.dtype != torch.float32 or tensor.get_shape() != [rows, self.num_params]:
            raise PdiffError(f"{path} was changed while it was read; leave the files of an open data set as they are.")
        return part_RS


def write_shard(file: Path, num_rows: int, num_params: int, pieces: Iterable[tuple[int, int, Tensor]]) -> None:
    """Writes a safetensors file for `ShardRows` out of `pieces`: (first row, first column, float32 [R,S]).

    The pieces come in any order and cover the tensor. Each is written to its place, so that only one is in memory.
    """
    begin_shard(file, num_rows, num_params)
    write_pieces(file, num_rows, num_params, pieces)


def begin_shard(file: Path, num_rows: int, num_params: int) -> None:
    """Makes the file of `write_shard` with zeros, for `write_pieces`: in several processes, if each has its rows."""
    header = _shard_header(num_rows, num_params)
    with file.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + 4 * num_rows * num_params)


def write_pieces(file: Path, num_rows: int, num_params: int, pieces: Iterable[tuple[int, int, Tensor]]) -> None:
    """Writes pieces, as of `write_shard`, into the file that `begin_shard` made with the same numbers."""
    begin = len(_shard_header(num_rows, num_params))
    staging = _Staging()
    with file.open("r+b") as stream:
        for first, start, params_RS in pieces:
            for row, params_S in enumerate(staging.read(params_RS), start=first):
                stream.seek(begin + 4 * (row * num_params + start))
                stream.write(params_S.contiguous().numpy().data)


class _Staging:
    """Memory that a GPU writes into at its full speed, and that is used again for each piece.

    Into fresh memory for each piece, an H200 wrote 1 GB/s.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def read(self, params_RS: Tensor) -> Tensor:
        """float32 on the CPU; of a GPU's tensor, only until the next call."""
        if params_RS.device.type != "cuda":
            return params_RS.to("cpu", torch.float32)
        if self._memory.numel() < params_RS.numel():
            try:
                self._memory = torch.empty(params_RS.numel(), pin_memory=True)
            except RuntimeError:  # the system lets no process pin so much: other memory is only slower
                self._memory = torch.empty(params_RS.numel())
        return self._memory[: params_RS.numel()].view(params_RS.shape).copy_(params_RS)


def _shard_header(num_rows: int, num_params: int) -> bytes:
    return safetensors_header({SHARD_TENSOR: (torch.float32, (num_rows, num_params))}, {})


def pieces_of(rows: Rows, first: int, last: int) -> Iterator[tuple[int, int, Tensor]]:
    """Rows first..last as `pieces` for `write_shard`, numbered from `first`: whole rows, or parts of long rows."""
    step = max(1, min(rows.num_params, _PIECE_BYTES // 4))
    at_once = max(1, _PIECE_BYTES // (4 * step))
    for row in range(first, last, at_once):
        for start in range(0, rows.num_params, step):
            stop = min(start + step, rows.num_params)
            yield row - first, start, rows.read(row, min(row + at_once, last), start, stop)


class ParquetRows:
    """Rows in parquet files with a column `params`, a fixed-size list of P float32.

    Whole row groups are decoded from a memory map, so reading all columns at once is fastest.
    Raises ValueError naming a file that is truncated, not parquet, or of another shape.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], num_params: int, digests: Digests | None = None):
        self._files, self.num_params, self._digests = list(files), num_params, digests or Digests({})
        self.num_rows = sum(rows for _, rows in self._files)
        expected = (num_params, pa.float32())
        for path, rows in self._files:
            with open_parquet(path) as file:
                columns = file.schema_arrow
                found = columns.field(PARQUET_COLUMN).type if PARQUET_COLUMN in columns.names else pa.null()
                if not pa.types.is_fixed_size_list(found) or (found.list_size, found.value_type) != expected:
                    raise PdiffError(
                        f"{path}: column {PARQUET_COLUMN!r} is {found}, expected a fixed-size list of "
                        f"{num_params} float32."
                    )
                if file.metadata.num_rows != rows:
                    raise PdiffError(f"{path} holds {file.metadata.num_rows} rows, expected {rows}.")
                require_plain(path, file, 4 * num_params)

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        params_RS = torch.empty(last - first, stop - start)
        target = params_RS.numpy()
        position = 0
        for path, _, a, b in _overlaps(self._files, first, last):
            for block in self._blocks(path, a, b):
                target[position : position + len(block)] = block[:, start:stop]
                position += len(block)
        return params_RS

    def _blocks(self, path: Path, first: int, last: int) -> Iterator[NDArray[np.float32]]:
        """Rows first..last of one file, row group by row group."""
        self._digests.compare(path)
        with open_parquet(path) as file:
            sizes = [(group, file.metadata.row_group(group).num_rows) for group in range(file.num_row_groups)]
            for group, size, a, b in _overlaps(sizes, first, last):
                try:
                    column = file.read_row_group(group, columns=[PARQUET_COLUMN], use_threads=False).column(0)
                    values = pa.concat_arrays(column.chunks).flatten().to_numpy()
                except (pa.ArrowException, OSError) as error:
                    raise PdiffError(f"{path} is damaged: row group {group} cannot be read ({error}).") from error
                if len(column) != size or len(values) != size * self.num_params:
                    raise PdiffError(
                        f"{path} is damaged: row group {group} holds {len(column)} rows and {len(values)} "
                        f"numbers, expected {size} rows of {self.num_params}."
                    )
                yield values.reshape(size, self.num_params)[a:b]


def require_plain(path: Path, file: pq.ParquetFile, row_bytes: int) -> None:
    """PdiffError if the file takes more memory than disk when it is read, or less than `row_bytes` for each row."""
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    columns = [group.column(column) for group in groups for column in range(group.num_columns)]
    if any(each.compression != "UNCOMPRESSED" or not _PLAIN.issuperset(each.encodings) for each in columns):
        raise PdiffError(f"{path} is compressed or coded, which no file of this format is; save the data set anew.")
    rows = file.metadata.num_rows
    if sum(group.num_rows for group in groups) != rows or rows * row_bytes > path.stat().st_size:
        raise PdiffError(f"{path} is damaged: it claims {rows:,} rows, which it is too small for.")


def open_parquet(path: Path) -> pq.ParquetFile:
    """A memory-mapped parquet file (a context manager); ValueError names it if it is truncated or not parquet."""
    with open_regular(path):  # a named pipe would never end
        pass
    try:
        return pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:  # OSError for damaged file metadata
        raise PdiffError(
            f"{path} is truncated or not a parquet file ({one_line(error)}); restore it from where the data set came "
            "from."
        ) from error


def evenly_spaced(num_rows: int, count: int) -> list[int]:
    """`count` different rows of 0..num_rows-1, each in the middle of its stretch; all rows if there are fewer."""
    count = min(count, num_rows)
    return [int((index + 0.5) * num_rows / count) for index in range(count)]


def _overlaps(files: Sequence[tuple[T, int]], first: int, last: int) -> Iterator[tuple[T, int, int, int]]:
    """For (thing, rows) pairs laid end to end: (thing, rows, a, b) for each whose rows a..b lie in first..last."""
    begin = 0
    for thing, rows in files:
        a, b = max(first - begin, 0), min(last - begin, rows)
        if a < b:
            yield thing, rows, a, b
        begin += rows


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of numbers that follow each other: [3,4,5,1] -> (3,6), (1,2)."""
    position = 0
    while position < len(indices):
        length = 1
        while position + length < len(indices) and indices[position + length] == indices[position] + length:
            length += 1
        yield indices[position], indices[position] + length
        position += length
