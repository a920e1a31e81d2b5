"""Opening a folder in the format of `checkpoints/files.py`, or only the files that hold some of its rows.

What the files claim (sizes, numbers of rows, types) is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub.checkpoints.files import INDEX_NAME, PLACE_COLUMNS
from pdiff_hub.checkpoints.rows import PARQUET_COLUMN, ParquetRows, PickedRows, Rows, ShardRows, open_parquet
from pdiff_hub.errors import PdiffError


def files_holding(index: Mapping[str, Any], rows: Sequence[int]) -> list[str]:
    """The paths of the files that `read_folder` needs for `rows` (each 0..K-1)."""
    entries = [entry for key in ("data", "shards") for entry, _ in _holding(index[key], rows)]
    return [entry["path"] for entry in [*entries, *([index["frozen"]] if index["frozen"] else [])]]


def read_folder(
    path: Path, index: Mapping[str, Any], which: Sequence[int] | None = None
) -> tuple[Rows, pa.Table, dict[str, Tensor]]:
    """The rows (unread, memory-mapped), metadata table and frozen tensors of the set whose index is `index`.

    which: the rows to read (each 0..K-1), in that order; files that hold none of them need not be there.
    """
    num_rows = index["num_checkpoints"]
    for entries in (index["data"], index["shards"] or index["data"]):
        listed = sum(entry["rows"] for entry in entries)
        if listed != num_rows:
            raise PdiffError(f"{path}: expected rows 0 to {num_rows - 1}, and {INDEX_NAME} lists files of {listed}.")
    data, shards = _holding(index["data"], which), _holding(index["shards"], which)
    for entry in [*(entry for entry, _ in [*data, *shards]), *([index["frozen"]] if index["frozen"] else [])]:
        file = path / entry["path"]
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {path / INDEX_NAME} lists it.")
        if file.stat().st_size != entry.get("bytes"):
            raise PdiffError(
                f"{file} is truncated or was changed: it has {file.stat().st_size} bytes, expected "
                f"{entry.get('bytes')}."
            )
    files = [(path / entry["path"], len(span)) for entry, span in shards or data]
    rows: Rows = (ShardRows if shards else ParquetRows)(files, index["num_params"])
    try:
        table = pa.concat_tables([_read_metadata(path / entry["path"], span) for entry, span in data])
    except pa.ArrowException as error:
        raise PdiffError(f"{path}: the metadata in data/ does not fit together ({error}).") from error
    if which is not None:
        rows = PickedRows(rows, _positions(which, [span for _, span in shards or data]))
        table = table.take(_positions(which, [span for _, span in data]))
    if index["frozen"] is None:
        return rows, table, {}
    file = path / index["frozen"]["path"]
    try:
        return rows, table, load_file(file)
    except SafetensorError as error:
        raise PdiffError(f"{file} is truncated or not a safetensors file ({error}).") from error


def _read_metadata(file: Path, span: range) -> pa.Table:
    """The metadata in one file of data/, which must hold the rows `span`."""
    with open_parquet(file) as parquet:
        names = [name for name in parquet.schema_arrow.names if name not in (PARQUET_COLUMN, *PLACE_COLUMNS)]
        # Checked before the table is read: a file can claim any size.
        if parquet.metadata.num_rows != len(span) or "index" not in names:
            raise PdiffError(
                f"{file} holds {parquet.metadata.num_rows} rows of {', '.join(names)}; expected "
                f"{len(span)} with an index."
            )
        try:
            table = parquet.read(columns=names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise PdiffError(f"{file} is damaged: its metadata cannot be read ({error}).") from error
    if table.column("index").to_pylist() != list(span):
        raise PdiffError(f"{file}: expected the rows {span.start} to {span.stop - 1} in order by its column 'index'.")
    return table


def _holding(entries: Sequence[Any], rows: Sequence[int] | None) -> list[tuple[Any, range]]:
    """The entries, of files laid end to end, that hold some of `rows` (None: all entries), each with its own rows."""
    wanted, begin, holding = None if rows is None else set(rows), 0, []
    for entry in entries:
        span = range(begin, begin + entry["rows"])
        begin = span.stop
        if wanted is None or any(row in span for row in wanted):
            holding.append((entry, span))
    return holding


def _positions(rows: Sequence[int], spans: Sequence[range]) -> list[int]:
    """Where each of `rows` lies when only `spans` are laid end to end."""
    positions: dict[int, int] = {}
    begin = 0
    for span in spans:
        positions |= {row: begin + row - span.start for row in rows if row in span}
        begin += len(span)
    return [positions[row] for row in rows]
