"""How a set of checkpoints lies on disk and on the Hub, format version 1.

    dataset.json                               layout, network, task, collect and the list of the files below
    data/train-00000-XXXXXXXX.parquet          one row a checkpoint: `index`, the metadata, and `params` (a fixed-size
                                               list of P float32) where P <= 250,000
    shards/params-00000-XXXXXXXX.safetensors   else float32 `params` [rows, P], and data/ tells each row's
                                               `shard` and `shard_row`
    frozen-XXXXXXXX.safetensors                the tensors that all checkpoints share, if any

XXXXXXXX begins the file's sha256: new content gets a new name, so that a folder is its old self until dataset.json,
replaced last, names the new files; and what did not change is not uploaded again. `datasets.load_dataset(folder)`
reads the parquet files (as split "train"). Rows per file are free: a set grows by adding files.
Shapes: K checkpoints, P parameters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub.checkpoint_rows import (
    PARQUET_COLUMN,
    SHARD_TENSOR,
    ParquetRows,
    PickedRows,
    Rows,
    ShardRows,
    open_parquet,
)
from pdiff_hub.safe_files import remove_unfinished, save_tensors, write_json, write_named_by_content

INDEX_NAME = "dataset.json"
FORMAT = "pdiff-checkpoints"
FORMAT_VERSION = 1
# Above, datasets and its viewer get slow or give up (measured; shared/platform.md).
MAX_PARQUET_PARAMS = 250_000
_ROW_GROUP_BYTES, _PARQUET_BYTES, _SHARD_BYTES = 1 << 20, 16 << 20, 256 << 20
_FILE_NAME = re.compile(
    r"data/train-\d{5,}-[0-9a-f]{8}\.parquet|shards/params-\d{5,}-[0-9a-f]{8}\.safetensors|frozen-[0-9a-f]{8}\.safetensors"
)
# What the files of a data set are called, for those who list, download or delete them by pattern.
FILE_PATTERNS = ("data/train-*.parquet", "shards/params-*.safetensors", "frozen-*.safetensors")

_STANDARD_COLUMNS = {"run": pa.string(), "seed": pa.int64(), "step": pa.int64(), "train_loss": pa.float64(),
                     "validation_loss": pa.float64(), "validation_accuracy": pa.float64()}
_PLACE_COLUMNS = ("shard", "shard_row")  # where a row's parameters are, for readers without this package
_RESERVED_COLUMNS = ("index", PARQUET_COLUMN, *_PLACE_COLUMNS)


def metadata_table(metadata: Sequence[Mapping[str, Any]]) -> pa.Table:
    """K metadata rows -> a table with an `index` column, the six standard columns, and whatever others there are.

    What a row lacks is null. Values are str, int, float, bool or None, of one kind a column; the standard columns
    have set types. ValueError names the column and what is wrong with it.
    """
    names = dict.fromkeys([*_STANDARD_COLUMNS, *(name for row in metadata for name in row)])
    columns = {"index": pa.array(range(len(metadata)), pa.int64())}
    for name in names:
        if name in _RESERVED_COLUMNS:
            raise ValueError(f"metadata column {name!r} is kept for the data set itself; call it something else.")
        values = [row.get(name) for row in metadata]
        wanted = _STANDARD_COLUMNS.get(name)
        try:
            array = pa.array(values, wanted)
            array = array.cast(pa.string()) if array.type == pa.null() else array
        except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            raise ValueError(f"metadata column {name!r}: expected {wanted or 'values of one kind'} or None in every "
                             f"row ({error}).") from error
        if pa.types.is_nested(array.type):
            raise ValueError(f"metadata column {name!r} holds {array.type}; expected str, int, float, bool or None.")
        columns[name] = array
    return pa.table(columns)


def write_folder(
    path: Path, rows: Rows, table: pa.Table, description: Mapping[str, Any], frozen: Mapping[str, Tensor]
) -> None:
    """Writes a whole set into `path` (made if needed), streaming from `rows`; other people's files there stay.

    A kill leaves the old set or the new one; an error (a full disk) removes what was written and raises OSError.
    """
    if (path / INDEX_NAME).exists():
        read_index(path)  # refuses to replace what this version does not understand

    def add(folder: str, stem: str, suffix: str, write: Callable[[Path], None]) -> dict[str, Any]:
        directory = path / folder
        directory.mkdir(parents=True, exist_ok=True)
        file, digest = write_named_by_content(directory, stem, suffix, write)
        return {"path": file.relative_to(path).as_posix(), "bytes": file.stat().st_size, "sha256": digest}

    row_bytes = 4 * rows.num_params
    in_parquet = rows.num_params <= MAX_PARQUET_PARAMS
    index: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "num_checkpoints": rows.num_rows,
                             "num_params": rows.num_params, **description, "data": [], "shards": [], "frozen": None}
    try:
        shards = [] if in_parquet else _chunks(rows.num_rows, max(1, _SHARD_BYTES // row_bytes))
        places: list[tuple[str, int]] = []
        for number, (first, last) in enumerate(shards):
            tensors = {SHARD_TENSOR: rows.read(first, last, 0, rows.num_params)}
            entry = add("shards", f"params-{number:05d}", ".safetensors", partial(save_tensors, tensors=tensors))
            index["shards"].append({**entry, "rows": last - first})
            places += [(entry["path"], row) for row in range(last - first)]
        if places:
            for name, values in zip(_PLACE_COLUMNS, zip(*places, strict=True), strict=True):
                table = table.append_column(name, pa.array(values))
        data = _chunks(rows.num_rows, max(1, _PARQUET_BYTES // row_bytes) if in_parquet else rows.num_rows)
        for number, (first, last) in enumerate(data):
            write = partial(_write_parquet, table=table.slice(first, last - first),
                            rows=PickedRows(rows, range(first, last)) if in_parquet else None)
            entry = add("data", f"train-{number:05d}", ".parquet", write)
            index["data"].append({**entry, "rows": last - first})
        if frozen:
            index["frozen"] = add("", "frozen", ".safetensors", partial(save_tensors, tensors=frozen))
        write_json(path / INDEX_NAME, index)
    except BaseException:
        remove_unlisted(path, read_index(path) if (path / INDEX_NAME).exists() else None)
        raise
    remove_unlisted(path, index)


def remove_unlisted(path: Path, index: Mapping[str, Any] | None) -> None:
    """Removes files of earlier, killed or failed saves: those with names of this format that `index` does not list."""
    listed = {path / entry["path"] for entry in _file_entries(index)} if index else set()
    for pattern in FILE_PATTERNS:
        for file in set(path.glob(pattern)) - listed:
            if _FILE_NAME.fullmatch(file.relative_to(path).as_posix()):
                file.unlink()
    for directory in (path, path / "data", path / "shards"):
        remove_unfinished(directory)


def read_index(path: Path) -> dict[str, Any]:
    """The dataset.json of folder `path`, checked; FileNotFoundError or ValueError say what is wrong with it."""
    file = path / INDEX_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {INDEX_NAME}: it is no checkpoint data set, or its save was cut off.")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}).") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{file} does not describe a checkpoint data set (expected \"format\": \"{FORMAT}\").")
    version = index.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(f"{file} has format version {version!r}, and this pdiff-hub reads up to {FORMAT_VERSION}; "
                         "upgrade with: pip install -U pdiff-hub.")
    expected = {"num_checkpoints": int, "num_params": int, "layout": dict, "data": list, "shards": list,
                "collect": dict}
    for key, kind in expected.items():
        if not isinstance(index.get(key), kind):
            raise ValueError(f"{file}: {key!r} is {index.get(key)!r}, expected a {kind.__name__}; the file is damaged.")
    for entry in _file_entries(index):
        name = entry.get("path") if isinstance(entry, dict) else None
        # Also keeps paths inside the folder, whoever wrote the file.
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise ValueError(f"{file} lists {entry!r}, which is no file of this format.")
    if not index["data"]:
        raise ValueError(f"{file} lists no file in data/; the file is damaged.")
    for entry in [*index["data"], *index["shards"]]:
        if not isinstance(entry.get("rows"), int) or entry["rows"] < 1:
            raise ValueError(f"{file}: {entry['path']} has rows={entry.get('rows')!r}, expected 1 or more.")
    return index


def read_folder(path: Path, index: Mapping[str, Any]) -> tuple[Rows, pa.Table, dict[str, Tensor]]:
    """The rows (unread, memory-mapped), metadata table and frozen tensors of the set whose `read_index` is `index`."""
    for entry in _file_entries(index):
        file = path / entry["path"]
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {path / INDEX_NAME} lists it.")
        if file.stat().st_size != entry.get("bytes"):
            raise ValueError(f"{file} is truncated or was changed: it has {file.stat().st_size} bytes, expected "
                             f"{entry.get('bytes')}.")
    data = [(path / entry["path"], entry["rows"]) for entry in index["data"]]
    shards = [(path / entry["path"], entry["rows"]) for entry in index["shards"]]
    rows: Rows = (ShardRows if shards else ParquetRows)(shards or data, index["num_params"])
    tables = []
    for file, _ in data:
        with open_parquet(file) as parquet:
            names = [name for name in parquet.schema_arrow.names if name not in (PARQUET_COLUMN, *_PLACE_COLUMNS)]
            tables.append(parquet.read(columns=names, use_threads=False))
    try:
        table = pa.concat_tables(tables)
        found = table.column("index").to_pylist()
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"{path}: the metadata in data/ does not fit together ({error}).") from error
    if found != list(range(index["num_checkpoints"])) or rows.num_rows != len(found):
        raise ValueError(f"{path}: expected rows 0 to {index['num_checkpoints'] - 1} in order, found {len(found)} "
                         f"metadata rows and {rows.num_rows} rows of parameters.")
    if index["frozen"] is None:
        return rows, table, {}
    file = path / index["frozen"]["path"]
    try:
        return rows, table, load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or not a safetensors file ({error}).") from error


def _file_entries(index: Mapping[str, Any]) -> list[Any]:
    return [*index["data"], *index["shards"], *([index["frozen"]] if index.get("frozen") else [])]


def _chunks(total: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, total)) for first in range(0, total, size)]


def _write_parquet(file: Path, table: pa.Table, rows: Rows | None) -> None:
    """`table`, with the parameters of as many `rows` beside it (None: without)."""
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
                part = part.append_column(schema.field(PARQUET_COLUMN),
                                          pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind))
            writer.write_table(part)
