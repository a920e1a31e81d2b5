"""Data sets on the Hub: pushing a folder, adding rows to a set, and pulling a set or some of its rows."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub.checkpoints.card import render_dataset_card
from pdiff_hub.checkpoints.conditions import joined
from pdiff_hub.checkpoints.files import FILE_PATTERNS, columns_of, statistics_of, write_frozen, write_more
from pdiff_hub.checkpoints.index import HELD_OUT, INDEX_NAME, file_entries, read_index
from pdiff_hub.checkpoints.reading import files_holding, read_folder
from pdiff_hub.checkpoints.rows import Rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files import differences, write_json
from pdiff_hub.transfer import (
    Pushed,
    PushOptions,
    commit_of,
    is_repo_id,
    list_files,
    pull,
    push_files,
    require_own,
    temporary_folder,
)

_WHAT = "checkpoint data set"
_CARD = "README.md"
_HELD_OUT_FILES = tuple(f"{HELD_OUT}/{name}" for name in (INDEX_NAME, *FILE_PATTERNS))


def push_folder(folder: Path, repo_id: str, options: PushOptions, *, with_held_out: bool) -> Pushed:
    """Replaces the data set in the repository by the one in `folder`: its files as they are, and a card.

    with_held_out: and the set of held-out tasks in it. Without, one in the repository is removed.
    Errors as in `read_folder` (a damaged set is not pushed) and `transfer.push_files`.
    """
    index, files = _listed(folder, folder)
    _, table, _ = read_folder(folder, index)
    unseen = None
    if with_held_out:
        unseen, beside = _listed(folder / HELD_OUT, folder)
        read_folder(folder / HELD_OUT, unseen)
        files |= {f"{HELD_OUT}/{path}": file for path, file in beside.items()}
        files[f"{HELD_OUT}/{INDEX_NAME}"] = folder / HELD_OUT / INDEX_NAME
    with temporary_folder("pdiff-checkpoints") as temporary:
        # Sets from older versions lack statistics and columns, which are made from the table here.
        rows, first = [entry["rows"] for entry in index["data"]], 0
        for entry, number in zip(index["data"], rows, strict=True):
            entry.setdefault("statistics", statistics_of(table.slice(first, number)))
            first += number
        index.setdefault("columns", columns_of(table))
        described = _described(index, repo_id, temporary, unseen)
        replaces = (*FILE_PATTERNS, *_HELD_OUT_FILES)
        return push_files({**files, **described}, repo_id, repo_type="dataset", replaces=replaces, **options)


@dataclass(frozen=True)
class Pulled:
    """Where a data set came from: the commit of a repository, and how it was asked for (as of `transfer.pull`)."""

    repo_id: str
    revision: str
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


def find_held_out(folder: Path, pulled: Pulled | None) -> Path | None:
    """The folder of the held-out set of the set in `folder`; None if it has none.

    pulled: of what `folder` is a copy, which may lack files of the held-out set. PdiffError if a link leads to it.
    """
    if pulled is None:
        require_own(folder / HELD_OUT / INDEX_NAME, folder)
    elif pulled.local_files_only:
        folder = _with_held_out(pulled)
    else:
        try:  # a copy of a whole set has them already
            folder = _with_held_out(replace(pulled, local_files_only=True))
        except FileNotFoundError:
            folder = _with_held_out(pulled)
    return folder / HELD_OUT if (folder / HELD_OUT / INDEX_NAME).is_file() else None


def _with_held_out(pulled: Pulled) -> Path:
    """The copy of the commit in the client's cache, with the files of its held-out set, if it has one."""
    patterns = [INDEX_NAME, *_HELD_OUT_FILES]
    return pull(repo_type="dataset", what=_WHAT, required=INDEX_NAME, allow_patterns=patterns, **asdict(pulled))


def append(
    rows: Rows,
    table: pa.Table,
    description: Mapping[str, Any],
    frozen: Mapping[str, Tensor],
    repo_id: str,
    options: PushOptions,
    *,
    held_out: bool,
) -> Pushed | None:
    """Adds rows to the data set in the repository and uploads only their files; None if there is no data set yet.

    The new rows are numbered after its last one. Rows that are its last ones already are not added again. ValueError
    says what differs if layout, network, task, frozen tensors or metadata columns are not the same.
    held_out: whether these have held-out tasks. Sets that have some are pushed whole, since what is added may be of
    tasks that are held out.
    """
    where: dict[str, Any] = {"repo_type": "dataset", "token": options["token"], "revision": options["revision"]}
    try:
        _, names = list_files(repo_id, **where)
    except FileNotFoundError:
        if options["revision"] is not None:  # a branch that does not exist has no rows to add to
            raise
        return None
    if INDEX_NAME not in names:
        return None
    if held_out or f"{HELD_OUT}/{INDEX_NAME}" in names:
        who = "these checkpoints have" if held_out else f"{repo_id!r} has"
        raise PdiffError(
            f"{who} networks of held-out tasks ({HELD_OUT}/), of which what is added may be, too: push these "
            "checkpoints as a data set of their own, without append."
        )
    there = pull(repo_id, what=_WHAT, required=INDEX_NAME, allow_patterns=[INDEX_NAME], **where)
    index = read_index(there)
    different, conditions = _differences(index, description), None
    try:
        conditions = joined(index.get("conditions"), description.get("conditions"))
    except ValueError as error:
        different.append(str(error))
    if different:
        raise PdiffError(
            f"these checkpoints do not go with those of {repo_id!r} ({'; '.join(different)}): push them "
            "as a data set of their own."
        )
    with temporary_folder("pdiff-checkpoints") as folder:
        _require_same_frozen(index, frozen, repo_id, where, folder)
        try:
            grown = write_more(folder, index, rows, table)
            if grown != index and description["collect"] != index["collect"]:
                more = {"num_checkpoints": rows.num_rows, **description["collect"]}
                grown["collect"] = {**index["collect"], "appended": [*index["collect"].get("appended", []), more]}
            if grown != index and conditions is not None:
                grown["conditions"] = conditions
            files = {} if grown == index else _described(grown, repo_id, folder)
        except (KeyError, TypeError) as error:
            raise PdiffError(
                f"the {INDEX_NAME} of {repo_id!r} lacks what appending needs ({error!r}): push the whole set once."
            ) from error
        added = [entry["path"] for key in ("data", "shards") for entry in grown[key][len(index[key]) :]]
        return push_files(
            {**{path: folder / path for path in added}, **files},
            repo_id,
            repo_type="dataset",
            parent_commit=commit_of(there),
            **options,
        )


def find_folder(
    path_or_id: str | Path,
    rows: Sequence[int] | None,
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """The local folder of a data set, or its copy in the client's cache with the files that hold `rows` (None: all)."""
    folder = Path(path_or_id)
    if folder.is_dir():
        if revision is not None:
            raise PdiffError(f"{folder} is a local folder, which has no revision {revision!r}.")
        return folder
    repo_id = str(path_or_id)
    if not is_repo_id(repo_id):
        raise FileNotFoundError(
            f'{repo_id!r} is neither a folder here nor the name of a data set on the Hub ("user/name").'
        )
    where: dict[str, Any] = {
        "repo_type": "dataset",
        "what": _WHAT,
        "required": INDEX_NAME,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    try:
        if rows is None:
            patterns = [INDEX_NAME, *FILE_PATTERNS, *_HELD_OUT_FILES]
            return pull(repo_id, revision=revision, allow_patterns=patterns, **where)
        folder = pull(repo_id, revision=revision, allow_patterns=[INDEX_NAME], **where)
        index = read_index(folder)
        needed = files_holding(index, require_rows(rows, index["num_checkpoints"]))
        return pull(repo_id, revision=commit_of(folder), allow_patterns=[INDEX_NAME, *needed], **where)
    except FileNotFoundError as error:
        missing = f"{repo_id!r} is no folder here, and {error}"
    raise FileNotFoundError(missing)


def require_rows(rows: Sequence[int], num_rows: int) -> list[int]:
    """`rows` as a list; ValueError if one is not in 0..num_rows-1 or there is none."""
    checked = [operator.index(row) for row in rows]
    for row in checked:
        if not 0 <= row < num_rows:
            raise PdiffError(f"checkpoint {row} does not exist; there are {num_rows}, counted from 0.")
    if not checked:
        raise PdiffError(f"rows is empty; give at least one row of 0..{num_rows - 1}.")
    return checked


def _listed(folder: Path, inside: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """The index of the set in `folder`, and path -> file of what it lists: only files that lie in `inside`."""
    require_own(folder / INDEX_NAME, inside)
    index = read_index(folder)
    return index, {entry["path"]: require_own(folder / entry["path"], inside) for entry in file_entries(index)}


def _described(
    index: Mapping[str, Any], repo_id: str, folder: Path, unseen: Mapping[str, Any] | None = None
) -> dict[str, Path]:
    """Writes dataset.json and the card into `folder`; -> path in the repository -> file. unseen: the held-out index."""
    files = {INDEX_NAME: folder / INDEX_NAME, _CARD: folder / _CARD}
    write_json(files[INDEX_NAME], index)
    files[_CARD].write_text(render_dataset_card(index, repo_id, unseen), encoding="utf-8")
    return files


def _differences(index: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """The differences between two sets that should be of the same network, trained on the same data."""
    found = []
    for key in ("entries", "frozen"):
        pairs = zip_longest(index["layout"].get(key, []), description["layout"][key])
        found += [
            f"layout: tensor {_named(there)} there and {_named(here)} here" for there, here in pairs if there != here
        ][:1]
    parts: list[dict[str, Any]] = [{key: each.get(key) for key in ("network", "task")} for each in (index, description)]
    return found + differences(parts[0], parts[1])


def _named(entry: Mapping[str, Any] | None) -> str:
    return "none" if entry is None else f"{entry.get('name')!r} {entry.get('dtype')} {entry.get('shape')}"


def _require_same_frozen(
    index: Mapping[str, Any], frozen: Mapping[str, Tensor], repo_id: str, where: Mapping[str, Any], folder: Path
) -> None:
    """ValueError names the first frozen tensor that differs. The tensors are downloaded only if their file differs."""
    if not frozen or not index["frozen"] or write_frozen(folder, frozen)["sha256"] == index["frozen"].get("sha256"):
        return
    path = index["frozen"]["path"]
    there = load_file(pull(repo_id, what=_WHAT, required=path, allow_patterns=[path], **where) / path)
    for name, tensor in frozen.items():
        if name not in there or not torch.equal(there[name], tensor):
            raise PdiffError(
                f"frozen tensor {name!r} is not the one that the checkpoints of {repo_id!r} share: push "
                "these as a data set of their own."
            )
