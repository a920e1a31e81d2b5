"""The files of a set of checkpoints, on disk and on the Hub; format version 1.

    dataset.json                               layout, network, task, collect and the list of the files below
    data/train-00000-XXXXXXXX.parquet          one row per checkpoint: `index`, the metadata, `condition` (a list of
                                               float32) if the set has conditions, and `params` (a fixed-size list of
                                               P float32) where P <= 250,000
    shards/params-00000-XXXXXXXX.safetensors   for larger P: float32 `params` [rows, P]; data/ then has
                                               each row's `shard` and `shard_row`
    frozen-XXXXXXXX.safetensors                the tensors that all checkpoints share, if any

XXXXXXXX is the start of the file's sha256: new content gets a new name. So a folder holds the old set until
dataset.json, replaced last, names the new files, and the Hub gets only changed files. `datasets.load_dataset(folder)`
reads the parquet files (as split "train"). The networks of held-out tasks are a second set, in `unseen/`; then
.huggingface.yaml keeps `datasets` from taking its rows for rows of the first. A file may have any number of rows: a set
grows by adding files. So that it can grow without its old rows, dataset.json also holds the `columns` of data/ and the
`statistics` of each file there.
Shapes: K checkpoints, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import fsum, isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from torch import Tensor

from pdiff_hub.checkpoints.conditions import CONDITION_COLUMN, CONDITION_TYPE
from pdiff_hub.checkpoints.index import (
    FILE_NAME,
    FORMAT,
    FORMAT_VERSION,
    HELD_OUT,
    INDEX_NAME,
    file_entries,
    read_index,
)
from pdiff_hub.checkpoints.rows import PARQUET_COLUMN, PickedRows, Rows, pieces_of, write_shard
from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files import remove_unfinished, replacing, save_tensors, write_json, write_named_by_content
from pdiff_hub.safe_files.lock import alone_in

# Above this, `datasets` gets slow, and its viewer on the Hub gives up at row groups of 300 MB (measured).
MAX_PARQUET_PARAMS = 250_000
_ROW_GROUP_BYTES, _PARQUET_BYTES, _SHARD_BYTES = 1 << 20, 16 << 20, 256 << 20
# Globs of a data set's files, for listing, downloading or deleting them.
_CONFIGS = ".huggingface.yaml"
FILE_PATTERNS = ("data/train-*.parquet", "shards/params-*.safetensors", "frozen-*.safetensors")

_STANDARD_COLUMNS = {
    "run": pa.string(),
    "seed": pa.int64(),
    "step": pa.int64(),
    "train_loss": pa.float64(),
    "validation_loss": pa.float64(),
    "validation_accuracy": pa.float64(),
}
PLACE_COLUMNS = ("shard", "shard_row")  # where a row's parameters are, for readers without this package
_RESERVED_COLUMNS = ("index", CONDITION_COLUMN, PARQUET_COLUMN, *PLACE_COLUMNS)


def metadata_table(metadata: Sequence[Mapping[str, Any]]) -> pa.Table:
    """K metadata rows -> a table with an `index` column, the six standard columns, and all others in the rows.

    What a row lacks is null. Values are str, int, float, bool or None, of one kind per column; the standard columns
    have fixed types. ValueError names the column and what is wrong with it.
    """
    names = dict.fromkeys([*_STANDARD_COLUMNS, *(name for row in metadata for name in row)])
    columns = {"index": pa.array(range(len(metadata)), pa.int64())}
    for name in names:
        if name in _RESERVED_COLUMNS:
            raise PdiffError(f"metadata column {name!r} is kept for the data set itself; call it something else.")
        values = [row.get(name) for row in metadata]
        wanted = _STANDARD_COLUMNS.get(name)
        try:
            array = pa.array(values, wanted)
            array = array.cast(pa.string()) if array.type == pa.null() else array
        except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            raise PdiffError(
                f"metadata column {name!r}: expected {wanted or 'values of one kind'} or None in every row ({error})."
            ) from error
        if pa.types.is_nested(array.type):
            raise PdiffError(f"metadata column {name!r} holds {array.type}; expected str, int, float, bool or None.")
        columns[name] = array
    return pa.table(columns)


def write_folder(
    path: Path, rows: Rows, table: pa.Table, description: Mapping[str, Any], frozen: Mapping[str, Tensor]
) -> None:
    """Writes a whole set into `path` (made if needed), streaming from `rows`; other files there stay.

    A kill leaves the old set or the new one. After an error (OSError for a full disk) what was written is removed.
    PdiffError if another process writes into `path`.
    """
    if (path / INDEX_NAME).exists():
        read_index(path)  # refuses to replace what this version does not understand
    index: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "num_checkpoints": rows.num_rows,
        "num_params": rows.num_params,
        **description,
        "columns": columns_of(table),
        "data": [],
        "shards": [],
        "frozen": None,
    }
    with alone_in(path):
        try:
            index |= _write_rows(path, rows, table, rows.num_params <= MAX_PARQUET_PARAMS, first_data=0, first_shard=0)
            if frozen:
                index["frozen"] = write_frozen(path, frozen)
            if (path / HELD_OUT / INDEX_NAME).is_file():
                with replacing(path / _CONFIGS) as temporary:
                    temporary.write_text(yaml.safe_dump({"configs": viewer_configs(held_out=True)}, sort_keys=False))
            write_json(path / INDEX_NAME, index)
        except BaseException:
            remove_unlisted(path, read_index(path) if (path / INDEX_NAME).exists() else None)
            raise
        remove_unlisted(path, index)


def viewer_configs(*, held_out: bool) -> list[dict[str, Any]]:
    """What `datasets` calls the parts of a set: its rows, and those of its held-out tasks."""
    parts = [("default", "train", "data/train-*.parquet")]
    if held_out:
        parts.append((HELD_OUT, "test", f"{HELD_OUT}/data/train-*.parquet"))
    return [{"config_name": name, "data_files": [{"split": split, "path": path}]} for name, split, path in parts]


def write_more(path: Path, index: Mapping[str, Any], rows: Rows, table: pa.Table) -> dict[str, Any]:
    """Writes `rows` into folder `path` as further files of the set that `index` describes; -> the grown index.

    The set's own files need not be there. If these very rows are its last ones already, as after an append whose answer
    was lost, `index` comes back unchanged. ValueError names a metadata column that the set does not have, or has with
    another type. Columns that `table` lacks are null.
    """
    total, in_parquet = index["num_checkpoints"], not index["shards"]
    tail = _entries_of_last(index["data"], rows.num_rows), _entries_of_last(index["shards"], rows.num_rows)
    if tail[0] and (in_parquet or tail[1]):
        same = _write_rows(
            path,
            rows,
            _like(table, index["columns"], total - rows.num_rows),
            in_parquet,
            len(index["data"]) - len(tail[0]),
            len(index["shards"]) - len(tail[1]),
        )
        if (same["data"], same["shards"]) == tail:
            return dict(index)
    more = _write_rows(
        path, rows, _like(table, index["columns"], total), in_parquet, len(index["data"]), len(index["shards"])
    )
    return {
        **index,
        "num_checkpoints": total + rows.num_rows,
        **{key: [*index[key], *entries] for key, entries in more.items()},
    }


def columns_of(table: pa.Table) -> dict[str, str]:
    """A table's columns as dataset.json lists them: name -> type."""
    return {field.name: str(field.type) for field in table.schema}


def statistics_of(table: pa.Table) -> dict[str, Any]:
    """Per column of floats: count, mean, min and max of its finite numbers. Columns without any are left out."""
    statistics = {}
    for field in table.schema:
        if pa.types.is_floating(field.type):
            values = [value for value in table.column(field.name).to_pylist() if value is not None and isfinite(value)]
            if values:
                mean = fsum(value / len(values) for value in values)  # divided first: no overflow
                statistics[field.name] = {"count": len(values), "mean": mean, "min": min(values), "max": max(values)}
    return statistics


def write_frozen(path: Path, frozen: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes the tensors that all checkpoints share into folder `path`; -> their entry in dataset.json."""
    return _write_file(path, "", "frozen", ".safetensors", partial(save_tensors, tensors=frozen))


def _write_rows(
    path: Path, rows: Rows, table: pa.Table, in_parquet: bool, first_data: int, first_shard: int
) -> dict[str, list[dict[str, Any]]]:
    """Writes files of parameters and metadata, numbered from `first_data` and `first_shard` on; -> their entries."""
    row_bytes = 4 * rows.num_params
    entries: dict[str, list[dict[str, Any]]] = {"data": [], "shards": []}
    shards = [] if in_parquet else _chunks(rows.num_rows, max(1, _SHARD_BYTES // row_bytes))
    places: list[tuple[str, int]] = []
    for number, (first, last) in enumerate(shards, start=first_shard):
        write = partial(
            write_shard, num_rows=last - first, num_params=rows.num_params, pieces=pieces_of(rows, first, last)
        )
        entry = _write_file(path, "shards", f"params-{number:05d}", ".safetensors", write)
        entries["shards"].append({**entry, "rows": last - first})
        places += [(entry["path"], row) for row in range(last - first)]
    if places:
        for name, values in zip(PLACE_COLUMNS, zip(*places, strict=True), strict=True):
            table = table.append_column(name, pa.array(values))
    data = _chunks(rows.num_rows, max(1, _PARQUET_BYTES // row_bytes) if in_parquet else rows.num_rows)
    for number, (first, last) in enumerate(data, start=first_data):
        part = table.slice(first, last - first)
        write = partial(_write_parquet, table=part, rows=PickedRows(rows, range(first, last)) if in_parquet else None)
        entry = _write_file(path, "data", f"train-{number:05d}", ".parquet", write)
        entries["data"].append({**entry, "rows": last - first, "statistics": statistics_of(part)})
    return entries


def _write_file(path: Path, folder: str, stem: str, suffix: str, write: Callable[[Path], None]) -> dict[str, Any]:
    directory = path / folder
    directory.mkdir(parents=True, exist_ok=True)
    file, digest = write_named_by_content(directory, stem, suffix, write)
    return {"path": file.relative_to(path).as_posix(), "bytes": file.stat().st_size, "sha256": digest}


def _entries_of_last(entries: Sequence[dict[str, Any]], num_rows: int) -> list[dict[str, Any]]:
    """The last entries that hold exactly `num_rows` rows together; empty if there are none."""
    for first in range(len(entries)):
        if sum(entry["rows"] for entry in entries[first:]) == num_rows:
            return list(entries[first:])
    return []


def _like(table: pa.Table, columns: Mapping[str, str], first_index: int) -> pa.Table:
    """`table` with the columns of a set; its `index` begins at `first_index`."""
    for name in table.column_names:
        if name not in columns:
            raise PdiffError(
                f"metadata column {name!r} is not in the set that is there, whose columns are "
                f"{', '.join(columns)}: leave it out, or push the whole set anew."
            )
    arrays = {}
    for name, kind in columns.items():
        try:
            wanted = CONDITION_TYPE if name == CONDITION_COLUMN else pa.type_for_alias(kind)
            if name == "index":
                arrays[name] = pa.array(range(first_index, first_index + len(table)), wanted)
            elif name not in table.column_names:
                arrays[name] = pa.nulls(len(table), wanted)
            elif table.column(name).null_count == len(table) or table.column(name).type == wanted:
                arrays[name] = table.column(name).cast(wanted)
            else:
                raise PdiffError(f"it holds {table.column(name).type} here")
        except (ValueError, pa.ArrowException) as error:
            raise PdiffError(
                f"metadata column {name!r} is {kind} in the set that is there, and does not fit: {error}."
            ) from error
    return pa.table(arrays)


def remove_unlisted(path: Path, index: Mapping[str, Any] | None) -> None:
    """Removes what earlier, killed or failed saves left: files with names of this format that `index` does not list."""
    listed = {path / entry["path"] for entry in file_entries(index)} if index else set()
    for pattern in FILE_PATTERNS:
        for file in set(path.glob(pattern)) - listed:
            if FILE_NAME.fullmatch(file.relative_to(path).as_posix()):
                file.unlink()
    for directory in (path, path / "data", path / "shards"):
        remove_unfinished(directory)


def _chunks(total: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, total)) for first in range(0, total, size)]


def _write_parquet(file: Path, table: pa.Table, rows: Rows | None) -> None:
    """Writes `table` with the parameters of its `rows` (None: without parameters)."""
    num_params = 0 if rows is None else rows.num_params
    # Not nullable and neither compressed nor dictionary-coded: weights do not compress, and this reads fastest.
    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), num_params)
    schema = table.schema if rows is None else table.schema.append(pa.field(PARQUET_COLUMN, kind, nullable=False))
    group_rows = max(1, _ROW_GROUP_BYTES // (4 * num_params)) if num_params else max(1, len(table))
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for a, b in _chunks(len(table), group_rows):
            part = table.slice(a, b - a)
            if rows is not None:
                values = rows.read(a, b, 0, num_params).contiguous().numpy().reshape(-1)
                part = part.append_column(
                    schema.field(PARQUET_COLUMN), pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind)
                )
            writer.write_table(part)
