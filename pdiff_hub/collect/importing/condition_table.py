"""A table beside imported files: what is known of each network, such as how it was trained, as columns of the metadata.

A CSV file has a line of column names, one of them `file`, and a line per checkpoint. A JSON file has a list of objects
with a `file` each, or an object `{FILE: {COLUMN: VALUE, ...}, ...}`. A column holds numbers, or it holds names.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import inf, isfinite
from pathlib import Path
from typing import Any

from pdiff_hub.checkpoints.files import metadata_table
from pdiff_hub.errors import PdiffError, require, unknown_name
from pdiff_hub.safe_files import open_regular

_KEY = "file"
_REMEDY = "leave it empty (null in JSON) where it is not known"


@dataclass(frozen=True)
class ConditionTable:
    """What a table says of the imported files.

    Attributes:
        rows: by name of the file; a value that is not known is missing.
        columns: the names of the columns, without `file`.
        source: the name of the table's file and its sha256, for the data set's description.
    """

    rows: Mapping[str, Mapping[str, Any]]
    columns: tuple[str, ...]
    source: Mapping[str, str]

    def added(self, name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of the file `name` with the table's columns; what the table knows replaces what was there."""
        return {**metadata, **{each: metadata.get(each) for each in self.columns}, **self.rows.get(name, {})}


def read_condition_table(path: Path, names: Sequence[str]) -> ConditionTable:
    """The table in a .csv or .json file on the checkpoints `names`; a checkpoint needs no row.

    FileNotFoundError if there is no such file. ValueError, which names the file and the column, for a name that is not
    among `names` or comes twice; for a column that has numbers in some rows and names in others; for NaN and Inf.
    """
    kinds = {".csv": _csv_rows, ".json": _json_rows}
    require(path.suffix in kinds, "conditions", str(path), "a .csv or .json file with a row per checkpoint")
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is no file; conditions names a table, and is sought in the folder of the checkpoints (with "
            "revisions, in the current folder)."
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PdiffError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from error
    known_names, rows = set(names), dict[str, dict[str, Any]]()
    for row in kinds[path.suffix](text, path):
        name = row.pop(_KEY)
        if name not in known_names:
            raise unknown_name(f"{_KEY} in {path}", name, names)
        if name in rows:
            raise PdiffError(f"{path} has more than one row for {_KEY} {name!r}; keep one.")
        rows[name] = row
    columns = tuple(dict.fromkeys(column for row in rows.values() for column in row))
    if not columns:
        raise PdiffError(f"{path} has no column but {_KEY!r}; give it a column of numbers or names, and rows.")
    for column in columns:
        _make_alike(path, column, rows)
    known = {name: {each: value for each, value in row.items() if value is not None} for name, row in rows.items()}
    try:
        metadata_table(list(known.values()))  # which columns are reserved, and the types of the standard ones
    except PdiffError as error:
        raise PdiffError(f"{path}: {error}") from error
    return ConditionTable(known, columns, {"file": path.name, "sha256": sha256(content).hexdigest()})


def _csv_rows(text: str, path: Path) -> Iterator[dict[str, Any]]:
    """Each line as a dict of texts, and None for an empty cell."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, path)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise PdiffError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, expected {len(header)}, one for each of "
                    f"{', '.join(header)}; put quotes around a text with commas."
                )
            row = {name: cell.strip() or None for name, cell in zip(header, cells, strict=True)}
            if row[_KEY] is None:
                raise PdiffError(f"{path}, line {reader.line_num}: {_KEY!r} is empty; expected the name of a file.")
            yield row
    except csv.Error as error:
        raise PdiffError(f"{path}, line {reader.line_num}, is not CSV ({error}).") from error


def _check_header(header: Sequence[str], path: Path) -> None:
    if _KEY not in header:
        raise PdiffError(f"{path} has the columns {list(header)}, expected one named {_KEY!r} and commas between them.")
    for name in header:
        if not name:
            raise PdiffError(f"{path} has a column without a name; name it, or remove it (in pandas: index=False).")
        if header.count(name) > 1:
            raise PdiffError(f"{path} has more than one column {name!r}; keep one.")


def _json_rows(text: str, path: Path) -> Iterator[dict[str, Any]]:
    """Each object with its name under "file"; values are texts, numbers or None."""
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates)
    except PdiffError as error:
        raise PdiffError(f"{path} {error}") from error
    except (ValueError, RecursionError) as error:
        raise PdiffError(f"{path} is not JSON ({error}).") from error
    if isinstance(content, dict):
        for name, row in content.items():
            if isinstance(row, dict) and (found := row.setdefault(_KEY, name)) != name:
                raise PdiffError(f"{path}: the row of {name} says {_KEY!r} is {found!r}; keep one of the two names.")
        content = list(content.values())
    if not isinstance(content, list):
        raise PdiffError(f"{path} holds a {type(content).__name__}, expected a list of objects, or one object by file.")
    for row in content:
        if not isinstance(row, dict) or not isinstance(row.get(_KEY), str):
            raise PdiffError(
                f"{path} has the row {str(row)[:60]}; expected an object with the name of a file under {_KEY!r}, or by "
                "the name of its file."
            )
        for column, value in row.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
                raise PdiffError(
                    f"{path}: {column!r} of {row[_KEY]} is {json.dumps(value)[:60]}; expected a number or a name (0 or "
                    "1 for yes or no)."
                )
        yield row


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise PdiffError(f"has {name!r} more than once in one object; keep one.")
    return found


def _make_alike(path: Path, column: str, rows: Mapping[str, dict[str, Any]]) -> None:
    """Makes numbers of the texts of a column, if all are numbers; ValueError if only some are."""
    if column == "run":  # names a training run, in digits too
        return
    there = {name: row[column] for name, row in rows.items() if row.get(column) is not None}
    as_numbers = {name: _number(value, path.suffix == ".csv") for name, value in there.items()}
    for name, number in as_numbers.items():
        if number is not None and not isfinite(float(number)):
            raise PdiffError(
                f"{path}: {column!r} of {name} is {there[name]!r}; expected a finite number or a name; {_REMEDY}."
            )
    numbers = {name: number for name, number in as_numbers.items() if number is not None}
    if names := [name for name in there if name not in numbers]:
        if numbers:
            first = next(iter(numbers))
            raise PdiffError(
                f"{path}: {column!r} of {names[0]} is {there[names[0]]!r}, and of {first} the number {numbers[first]}; "
                f"expected numbers in all rows, or names in all; {_REMEDY}."
            )
        return
    whole = all(isinstance(number, int) for number in numbers.values())
    for name, number in numbers.items():
        rows[name][column] = number if whole else float(number)


def _number(value: str | int | float, from_text: bool) -> int | float | None:
    """The number that a value is; None for a name. from_text: whether a text may be a number."""
    if isinstance(value, str) and (not from_text or "_" in value):  # Python reads 1_000 as a number
        return None
    try:
        number = float(value)
    except OverflowError:  # of an integer
        return inf
    except ValueError:
        return None
    try:
        return int(value) if isinstance(value, str | int) else number
    except ValueError:  # a text such as 0.5
        return number
