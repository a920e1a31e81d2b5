"""Opening a folder in the format of `checkpoints/files.py`, or only the files that hold some of its rows.

What the files claim (sizes, numbers of rows, types) is checked before it is used. Their sha256 is compared with
dataset.json: at once for metadata, frozen tensors and small sets; else for each file when parameters are first read
from it (0.35 s for one of 256 MB). So a set of any size opens at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from pdiff_hub.checkpoints.conditions import CONDITION_COLUMN, CONDITION_TYPE
from pdiff_hub.checkpoints.files import PLACE_COLUMNS
from pdiff_hub.checkpoints.index import INDEX_NAME, file_entries
from pdiff_hub.checkpoints.rows import (
    PARQUET_COLUMN,
    Digests,
    ParquetRows,
    PickedRows,
    Rows,
    ShardRows,
    open_parquet,
    require_plain,
)
from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files.tensors import read_tensors

_COMPARED_AT_ONCE = 64 << 20  # bytes; a tenth of a second


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
        if file.stat().st_size != entry["bytes"]:
            raise PdiffError(
                f"{file} is truncated or was changed: it has {file.stat().st_size} bytes, expected {entry['bytes']}."
            )
    files = [(path / entry["path"], len(span)) for entry, span in shards or data]
    digests = Digests({path / entry["path"]: entry["sha256"] for entry in file_entries(index)})
    rows: Rows = (ShardRows if shards else ParquetRows)(files, index["num_params"], digests)
    small = sum(entry["bytes"] for entry, _ in data) <= _COMPARED_AT_ONCE
    for entry, _ in data if shards or small else []:
        digests.compare(path / entry["path"])
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
    frozen = read_tensors(file)
    digests.compare(file)
    return rows, table, frozen


def _read_metadata(file: Path, span: range) -> pa.Table:
    """The metadata in one file of data/, which must hold the rows `span`."""
    with open_parquet(file) as parquet:
        names = [name for name in parquet.schema_arrow.names if name not in (PARQUET_COLUMN, *PLACE_COLUMNS)]
        for name in names:
            kind = parquet.schema_arrow.field(name).type
            if kind != CONDITION_TYPE if name == CONDITION_COLUMN else not _is_metadata(kind):
                raise PdiffError(f"{file}: column {name!r} holds {kind}; expected texts, numbers or booleans.")
        # Checked before the table is read: a file can claim any size.
        if parquet.metadata.num_rows != len(span) or "index" not in names:
            raise PdiffError(
                f"{file} holds {parquet.metadata.num_rows} rows of {', '.join(names)}; expected "
                f"{len(span)} with an index."
            )
        require_plain(file, parquet, 8)  # of the index
        try:
            table = parquet.read(columns=names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise PdiffError(f"{file} is damaged: its metadata cannot be read ({error}).") from error
    if table.column("index").to_pylist() != list(span):
        raise PdiffError(f"{file}: expected the rows {span.start} to {span.stop - 1} in order by its column 'index'.")
    return table


def _is_metadata(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(kind) for test in tests)


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
