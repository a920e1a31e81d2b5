"""A data set from elsewhere opens with the numbers that were saved, or is refused in one sentence, soon."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checkpoint_sets import FORMS, assert_same, dataset, seal, use_small_files
from safetensors.torch import load_file, save_file

from pdiff_hub.checkpoints import CheckpointDataset, reading
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub import describe

ORIGINAL = dataset(7)


@pytest.fixture(params=FORMS)
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    use_small_files(request.param, monkeypatch)
    ORIGINAL.save_pretrained(tmp_path / "set")
    return tmp_path / "set"


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "dataset.json")


def test_any_other_byte_is_noticed(folder: Path) -> None:
    for file in files_of(folder):
        whole = file.read_bytes()
        for place in (0, len(whole) // 3, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(PdiffError, match=file.name):
                _ = CheckpointDataset.from_pretrained(folder).params_KP
        file.write_bytes(whole)
    assert_same(CheckpointDataset.from_pretrained(folder), ORIGINAL)


def test_a_large_set_opens_before_its_numbers_are_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_COMPARED_AT_ONCE", 0)
    monkeypatch.setattr("pdiff_hub.checkpoints.dataset._KEPT_BYTES", 0)
    last = next(file for file in reversed(files_of(folder)) if file.parent.name in ("shards", "data"))
    whole = last.read_bytes()
    place = whole.rindex(ORIGINAL.params_KP[-1].numpy().tobytes())
    last.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    opened = CheckpointDataset.from_pretrained(folder)
    assert torch.equal(opened.rows.read(0, 1, 0, 52), ORIGINAL.params_KP[:1])  # of another file
    with pytest.raises(PdiffError, match=rf"{last.name} was changed or is damaged: its sha256 begins with"):
        opened.rows.read(6, 7, 0, 1)
    last.write_bytes(whole)
    compared: list[int] = []
    digest = hashlib.file_digest

    def counted(opened: Any, kind: str) -> Any:
        compared.append(1)
        return digest(opened, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(3):
        assert torch.equal(opened.rows.read(0, 7, 3, 5), ORIGINAL.params_KP[:, 3:5])
    assert len(compared) == len(list(last.parent.iterdir())) - 1  # once each, and the first was compared above


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*path, key))


def test_every_field_of_the_index_has_its_type(folder: Path) -> None:
    text = (folder / "dataset.json").read_text()
    opened, told = 0, list[str]()
    for number, place in enumerate(places(json.loads(text))):
        for other in ([None, 1.5, "x"], [-1, [], {}], [10**30, True, [[]]])[number % 3]:
            index = json.loads(text)
            parent = index
            for key in place[:-1]:
                parent = parent[key]
            if other is None:
                del parent[place[-1]]
            else:
                parent[place[-1]] = other
            (folder / "dataset.json").write_text(json.dumps(index))
            try:
                describe(folder)
                assert torch.equal(CheckpointDataset.from_pretrained(folder).params_KP, ORIGINAL.params_KP)
                opened += 1
            except (PdiffError, FileNotFoundError) as error:
                told.append(str(error))
    assert told and all("\n" not in each and str(folder) in each for each in told)
    assert opened < 130  # what describes the network and how it was trained may say anything
    index = json.loads(text)
    index["layout"]["entries"][0]["__class__"] = 1
    (folder / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(PdiffError, match=r"'layout\.entries\.0\.__class__' is wrong"):
        describe(folder)


def test_a_header_that_lies_about_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_files("shards", monkeypatch)
    ORIGINAL.save_pretrained(tmp_path)
    for file in (next(tmp_path.glob("shards/*")), next(tmp_path.glob("frozen-*"))):
        whole = file.read_bytes()
        lie = whole.replace(b'"F32"', b'"I32"').replace(b'"I64"', b'"U64"')
        assert lie != whole
        file.write_bytes(lie)
        shutil.copytree(tmp_path, tmp_path.parent / "lie")
        seal(tmp_path.parent / "lie")
        with pytest.raises(PdiffError, match=r"int32 \[\d+, 52\], expected float32|is uint64 \[\], and the layout"):
            CheckpointDataset.from_pretrained(tmp_path.parent / "lie")
        shutil.rmtree(tmp_path.parent / "lie")
        file.write_bytes(whole)


def test_numbers_are_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_files("shards", monkeypatch)
    data = dataset(select=["0.weight", "0.bias", "3.weight", "3.bias"])
    data.save_pretrained(tmp_path)
    shard = next(tmp_path.glob("shards/*00000-*"))
    tensors = load_file(shard)
    tensors["params"][1, 3] = math.nan
    save_file(tensors, shard)
    seal(tmp_path)
    opened = CheckpointDataset.from_pretrained(tmp_path)
    with pytest.raises(PdiffError, match=r"checkpoint \d: tensor '0.weight' holds NaN or Inf"):
        _ = opened.params_KP
    frozen = next(tmp_path.glob("frozen-*"))
    tensors = load_file(frozen)
    tensors["1.running_mean"][2] = math.nan
    save_file(tensors, frozen)
    seal(tmp_path)
    with pytest.raises(PdiffError, match=r"frozen tensor '1.running_mean' holds NaN"):
        CheckpointDataset.from_pretrained(tmp_path)


def rewritten(folder: Path, table: pa.Table, **options: Any) -> None:
    (file,) = folder.glob("data/*.parquet")
    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), 52)
    schema = pa.schema(
        [field if field.name != "params" else pa.field("params", kind, nullable=False) for field in table.schema]
    )
    with pq.ParquetWriter(file, schema, **{"compression": "none", "use_dictionary": False, **options}) as writer:
        writer.write_table(table.cast(schema))
    seal(folder)


@pytest.mark.parametrize("how", ["plain", "date", "list", "binary", "zstd", "dictionary", "delta"])
def test_columns_and_how_they_are_stored(tmp_path: Path, how: str) -> None:
    ORIGINAL.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("data/*.parquet")
    table = pq.read_table(file)
    more = {
        "date": [datetime.now(UTC)] * 7,
        "list": [[1.0]] * 7,
        "binary": [b"x"] * 7,
    }
    options: dict[str, dict[str, Any]] = {
        "zstd": {"compression": "zstd"},
        "dictionary": {"use_dictionary": ["note"]},
        "delta": {"column_encoding": {"note": "DELTA_BYTE_ARRAY"}},
    }
    if how in more:
        table = table.append_column("more", pa.array(more[how]))
    rewritten(tmp_path, table, **options.get(how, {}))
    if how == "plain":
        assert_same(CheckpointDataset.from_pretrained(tmp_path), ORIGINAL)
        return
    expected = "'more' holds .*expected texts, numbers" if how in more else "is compressed or coded"
    with pytest.raises(PdiffError, match=expected):
        CheckpointDataset.from_pretrained(tmp_path)


def test_rows_that_no_file_could_hold(tmp_path: Path) -> None:
    """The file holds a million rows of nothing in a few bytes; what they claim to take is not made."""
    ORIGINAL.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("data/*.parquet")
    rows = 10**6
    kind = pa.list_(pa.float32(), 52)
    table = pa.table({"index": pa.array(range(rows)), "params": pa.nulls(rows, kind)})
    pq.write_table(table, file, compression="none", use_dictionary=False)
    index = json.loads((tmp_path / "dataset.json").read_text())
    index["num_checkpoints"] = index["data"][0]["rows"] = rows
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    seal(tmp_path)
    with pytest.raises(PdiffError, match=r"it claims 1,000,000 rows, which it is too small for"):
        CheckpointDataset.from_pretrained(tmp_path)


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "nowhere"])
def test_only_regular_files_are_opened(folder: Path, what: str) -> None:
    for file in [*files_of(folder), folder / "dataset.json"]:
        kept = file.rename(folder.parent / "kept")
        make = {
            "pipe": os.mkfifo,
            "device": lambda path: path.symlink_to("/dev/zero"),
            "folder": Path.mkdir,
            "nowhere": lambda path: path.symlink_to("/nowhere"),
        }[what]
        make(file)
        with pytest.raises(
            (PdiffError, FileNotFoundError), match="no dataset.json" if file.suffix == ".json" else file.name
        ):
            CheckpointDataset.from_pretrained(folder)
        shutil.rmtree(file) if what == "folder" else file.unlink()
        file.symlink_to(kept)  # as in the Hub's cache
        assert_same(CheckpointDataset.from_pretrained(folder), ORIGINAL)
        file.unlink()
        kept.rename(file)


def test_a_text_without_end(tmp_path: Path) -> None:
    ORIGINAL.save_pretrained(tmp_path)
    for content in (b" " * (17 << 20), b"[" * 10**6, b'{"format": ' + b"9" * 5000):
        (tmp_path / "dataset.json").write_bytes(content)
        with pytest.raises(PdiffError, match=r"dataset\.json"):
            CheckpointDataset.from_pretrained(tmp_path)
