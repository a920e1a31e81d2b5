"""What dataset.json must say: every field that is read is checked for its type and range, whoever wrote the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from pdiff_hub.errors import PdiffError, shortened
from pdiff_hub.safe_files import read_json
from pdiff_hub.safe_files.checking import checked, require_version
from pdiff_hub.safe_files.layouts import LayoutFields

INDEX_NAME = "dataset.json"
HELD_OUT = "unseen"  # the folder of a second set, of the tasks that this one has not seen
FORMAT = "pdiff-checkpoints"
FORMAT_VERSION = 1
FILE_NAME = re.compile(
    r"data/train-\d{5,}-[0-9a-f]{8}\.parquet|shards/params-\d{5,}-[0-9a-f]{8}\.safetensors|frozen-[0-9a-f]{8}\.safetensors",
    re.ASCII,
)
_REMEDY = "the file is damaged: restore it from where the data set came from."


def read_index(path: Path) -> dict[str, Any]:
    """The dataset.json of folder `path`, checked; FileNotFoundError or ValueError says what is wrong with it."""
    file = path / INDEX_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {INDEX_NAME}: it is no checkpoint data set, or its save was cut off.")
    index = read_json(file)
    if index.get("format") != FORMAT:
        raise PdiffError(f'{file} does not describe a checkpoint data set (expected "format": "{FORMAT}").')
    require_version(index.get("format_version"), FORMAT_VERSION, str(file))
    index.setdefault("frozen", None)
    found = checked(_Index, index, str(file), _REMEDY)
    for tensor in (*found.layout.entries, *found.layout.frozen):
        if not isinstance(getattr(torch, tensor.dtype, None), torch.dtype):
            raise PdiffError(
                f"{file}: tensor {tensor.name!r} is of type {shortened(tensor.dtype)}, expected a type of torch; "
                f"{_REMEDY}"
            )
    entries = file_entries(index)
    for entry in entries:  # the name also keeps paths inside the folder
        if not Path(entry["path"]).stem.endswith(entry["sha256"][:8]):
            raise PdiffError(f"{file}: {entry['path']} is not named by its sha256 {entry['sha256']}; {_REMEDY}")
    if len({entry["path"] for entry in entries}) < len(entries):
        raise PdiffError(f"{file} lists a file twice; {_REMEDY}")
    spans = [entry["stop"] - entry["start"] for entry in index["layout"]["entries"]]
    if sum(spans) != index["num_params"]:
        raise PdiffError(f"{file}: num_params is {index['num_params']}, and its layout holds {sum(spans)}; {_REMEDY}")
    return index


def file_entries(index: Mapping[str, Any]) -> list[Any]:
    """The entries of all files that `index` lists."""
    return [*index["data"], *index["shards"], *([index["frozen"]] if index.get("frozen") else [])]


def _known_name(path: str) -> str:
    if not FILE_NAME.fullmatch(path):
        raise ValueError("expected the name of a file of this format")
    return path


_Count = Annotated[int, Field(ge=1, lt=2**63)]
_Place = Annotated[int, Field(ge=0, lt=2**63)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Statistics(TypedDict):
    count: _Count
    mean: _Finite
    min: _Finite
    max: _Finite


@dataclass(frozen=True)
class _File:
    path: Annotated[str, AfterValidator(_known_name)]
    bytes: _Place
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class _Part(_File):
    rows: _Count
    statistics: dict[str, _Statistics] = field(default_factory=dict)


class _Network(TypedDict, total=False):
    name: str


class _Settings(TypedDict, total=False):
    collect: dict[str, Any]
    seed: int


class _Collect(TypedDict, total=False):
    """How the set was made. Methods add their own; what is read of it is here."""

    method: str
    rule: str
    settings: _Settings
    alignment: dict[str, Any]
    appended: list[dict[str, Any]]


@dataclass(frozen=True)
class _Index:
    num_checkpoints: _Count
    num_params: _Place
    layout: LayoutFields
    network: _Network
    task: dict[str, Any] | None
    collect: _Collect
    data: Annotated[list[_Part], Field(min_length=1)]
    shards: list[_Part]
    frozen: _File | None
    columns: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Any] | None = None
