"""Folders decide what splits and classes are, no word in a file's name does, and no picture is left out in silence."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pdiff_hub.errors import PdiffError
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.tasks.split_names import split_named


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def draw(folder: Path, classes: Mapping[str, Iterable[object]]) -> Path:
    """Writes 4 x 4 pictures as `classes` says: folder -> names. No two are equal, and the brightest pixel is 255."""
    number = 0
    for place, names in classes.items():
        for name in names:
            (folder / place).mkdir(parents=True, exist_ok=True)
            pixels = np.full((4, 4), number % 250, np.uint8)
            pixels[0, 0] = 255
            Image.fromarray(pixels).save(folder / place / f"{name}.png")
            number += 1
    return folder


def sizes(task: Task) -> list[int]:
    return list(task.spec["resolved"]["sizes"].values())


def levels(task: Task) -> list[int]:
    """What tells the pictures of a task apart, of all its splits."""
    return sorted(
        torch.cat([split.images_NCHW[:, 0, 1, 1] for split in (task.train, task.validation, task.test)]).tolist()
    )


def test_names_of_splits_in_names_of_pictures_mean_nothing(tmp_path: Path) -> None:
    names = [*range(20), "train-1", "train_2", "my test 3", "val", "evaluation-of-5"]
    folder = draw(tmp_path / "a", {"cat": names, "dog": names})
    with pytest.raises(PdiffError, match="no split 'test', only 'train'; set test_split"):
        load_task(str(folder))
    task = load_task({"dataset": str(folder), "test_size": 10})
    assert sizes(task) == [36, 4, 10] and levels(task) == list(range(50))


@pytest.mark.parametrize("name", ["train", "test", "dev", "val-2", "my train"])
def test_a_class_may_be_called_as_a_split(tmp_path: Path, name: str) -> None:
    folder = draw(tmp_path / "b", {"car": range(10), "plane": range(10), name: range(10)})
    task = load_task({"dataset": str(folder), "test_size": 6})
    assert task.spec["resolved"]["classes"] == sorted(["car", "plane", name]) and sum(sizes(task)) == 30
    split = draw(tmp_path / "c", {f"{split}/{each}": range(6) for split in ("train", "test") for each in ("car", name)})
    assert sizes(load_task({"dataset": str(split), "validation_size": 2})) == [10, 2, 12]


@pytest.mark.parametrize("name", ["photos [2024]", "a*b?", "{x}", "it's", "[[]]", "50% off", "#1 é", "a [!b]/c"])
def test_paths_of_any_letters(tmp_path: Path, name: str) -> None:
    folder = draw(tmp_path / name, {"cat [x]": range(5), "dog*": range(5)})
    task = load_task({"dataset": str(folder), "test_size": 2})
    assert levels(task) == list(range(10)) and task.spec["resolved"]["classes"] == ["cat [x]", "dog*"]
    assert load_task(task.spec).spec == task.spec


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere", {"cats": range(6), "dogs": range(6)})
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    (folder / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    (tmp_path / "elsewhere" / "cats" / "loop").symlink_to(folder)
    (folder / "self").symlink_to(folder)
    assert levels(load_task({"dataset": str(folder), "test_size": 2})) == list(range(12))
    (folder / "hound").symlink_to(folder / "dog")
    with pytest.raises(PdiffError, match=r"hound' and '.*dog' are one folder, by a link"):
        load_task({"dataset": str(folder), "test_size": 2})
    (folder / "hound").unlink()
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(PdiffError, match=r"gone\.png' cannot be read"):
        load_task({"dataset": str(folder), "test_size": 2})


def test_splits_are_folders_at_the_top(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = draw(tmp_path / "e", {f"{s}/{c}": range(4) for s in ("Training", "val", "test") for c in ("cat", "dog")})
    task = load_task({"dataset": str(folder), "validation_split": "validation"})
    assert sizes(task) == [8, 8, 8] and caplog.messages == []
    assert sizes(load_task({"dataset": str(folder), "validation_size": 2})) == [6, 2, 8]
    assert "the 8 pictures of the split 'validation' are not used; set validation_split" in caplog.text
    wrapped = draw(
        tmp_path / "f", {f"unpacked/my-{s}/{c}": range(4) for s in ("train", "test") for c in ("cat", "dog")}
    )
    assert sizes(load_task({"dataset": str(wrapped), "validation_size": 2})) == [6, 2, 8]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["cat", "dog", ""], "'0.png' is in no folder of a class"),
        (["cat", "dog/puppy"], "different depths"),
        (["train/cat", "train/dog", "test"], "'test' is called as a split, and has pictures that are in no folder"),
        (["train", "test"], "is called as a split, and has pictures that are in no folder"),
        (["train/cat", "train/dog", "more/cat"], "'more' lies beside the split 'train'"),
        (["a/train/cat", "a/train/dog", "b/test/cat"], "called as a split, and lies below another folder"),
        (["cat"], "all pictures .* are of one class, 'cat'"),
    ],
)
def test_folders_that_may_mean_several_things(tmp_path: Path, places: list[str], message: str) -> None:
    folder = draw(tmp_path / "g", {place: range(4) for place in places})
    with pytest.raises(PdiffError, match=message):
        load_task({"dataset": str(folder), "test_size": 2})


def test_what_is_not_read_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = draw(
        tmp_path / "h",
        {"train/cat": range(6), "train/dog": range(6), "test/cat": [1], "test/dog": [1], "test/emu": [1], "raw": [1]},
    )
    (folder / "train" / "cat" / "notes.txt").write_text("of cats")
    (folder / "train" / "cat" / ".DS_Store").write_text("litter")
    (folder / "train" / "bird").mkdir()
    (folder / "README.md").write_text("# Pets")
    task = load_task({"dataset": str(folder), "validation_size": 2})
    assert sizes(task) == [10, 2, 3] and task.spec["resolved"]["classes"] == ["cat", "dog", "emu"]
    told = [message.replace(f"{folder}: ", "") for message in caplog.messages]
    assert told == [
        "the class 'emu' has no picture to train on",
        "pictures in no split are not read, 1 in all: 'raw/1.png'",
        "files that are no pictures are not read, 1 in all: 'train/cat/notes.txt'",
        "folders without any file are not read, 1 in all: 'train/bird'",
    ]


@pytest.mark.parametrize("keep", [0, 20, -20])
def test_a_damaged_picture_is_named(tmp_path: Path, keep: int) -> None:
    folder = draw(tmp_path / "i", {"cat": range(6), "dog": range(6)})
    path = folder / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PdiffError, match=r"dog/3\.png cannot be read as a picture: "):
        load_task({"dataset": str(folder), "test_size": 2})


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.full((4, 4), value, np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(path: Path, numbers: Iterable[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    some = list(numbers)
    table = {
        "image": [{"bytes": png(number), "path": f"{number}.png"} for number in some],
        "label": [number % 2 for number in some],
        "taken": pa.array([number * 86_400 for number in some], pa.timestamp("s")),
    }
    pq.write_table(pa.table(table), path)


def test_all_tables_of_a_folder_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "tables [1]"
    write_parquet(folder / "latest.parquet", range(10))
    write_parquet(folder / "more" / "contest.parquet", range(10, 20))
    task = load_task({"dataset": str(folder), "test_size": 4})
    assert levels(task) == list(range(20)) and sizes(task) == [14, 2, 4]
    write_parquet(folder / "test-1.parquet", range(20, 24))
    with pytest.raises(
        PdiffError, match=r"'test-1\.parquet' is called as a split, and 'latest\.parquet' is called as none"
    ):
        load_task({"dataset": str(folder), "test_size": 4})
    shards = tmp_path / "shards"
    for name, numbers in (
        ("train-00000-of-00002", range(8)),
        ("train-00001-of-00002", range(8, 16)),
        ("test-00000-of-00001", range(16, 20)),
    ):
        write_parquet(shards / "data" / f"{name}.parquet", numbers)
    assert sizes(load_task({"dataset": str(shards), "validation_size": 4})) == [12, 4, 4]
    with pytest.raises(PdiffError, match=r"'taken' holds .*, not labels"):
        load_task({"dataset": str(shards), "label_column": "taken"})
    assert caplog.messages == []
    (shards / "data" / "train-00001-of-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(PdiffError, match="could not be read: "):
        load_task(str(shards))


def test_a_card_that_states_the_files_is_believed(tmp_path: Path) -> None:
    folder = tmp_path / "stated"
    write_parquet(folder / "one.parquet", range(8))
    write_parquet(folder / "two.parquet", range(8, 12))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: train, path: one.parquet}\n  - {split: test, path: two.parquet}\n---\n# Stated\n"
    )
    assert sizes(load_task({"dataset": str(folder), "validation_size": 2})) == [6, 2, 4]


def test_a_damaged_picture_in_a_table_is_named(tmp_path: Path) -> None:
    table = {
        "image": [{"bytes": png(n)[: 40 if n == 5 else None], "path": f"{n}.png"} for n in range(12)],
        "label": [0, 1] * 6,
    }
    (tmp_path / "j").mkdir()
    pq.write_table(pa.table(table), tmp_path / "j" / "all.parquet")
    with pytest.raises(PdiffError, match=r"image \d+ \(5\.png\) cannot be read as a picture"):
        load_task({"dataset": str(tmp_path / "j"), "test_size": 2})


def test_pictures_with_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = draw(tmp_path / "k", {"train-pictures": range(10), "others": range(10)})
    files = [(f"{place}/{number}.png", number) for place in ("train-pictures", "others") for number in range(9)]
    rows = ({"file_name": file, "kind": number % 2, "day": f"2024-01-{number + 1:02}"} for file, number in files)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    task = load_task({"dataset": str(folder), "test_size": 4, "label_column": "kind"})
    assert sizes(task) == [13, 1, 4] and "of 20 pictures, the metadata name 18" in caplog.text
    assert task.spec["resolved"]["classes"] == ["0", "1"]


# What `datasets` reads where its guess is right, is read in the same order


# `datasets` drops whatever begins with two underscores without a word, a class too; we do not (below).
_NAME = st.text("ab -_.1Z", min_size=1, max_size=4).filter(
    lambda name: name.strip(". ") and not name.startswith((".", "__"))
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    classes=st.lists(_NAME, min_size=2, max_size=3, unique=True),
    names=st.lists(_NAME, min_size=2, max_size=4, unique=True),
    splits=st.sampled_from([("",), ("train/", "test/"), ("training/", "val/", "eval/")]),
)
def test_order_and_classes_are_those_of_datasets(
    tmp_path_factory: pytest.TempPathFactory, classes: list[str], names: list[str], splits: tuple[str, ...]
) -> None:
    from datasets import load_dataset

    folder = draw(tmp_path_factory.mktemp("like"), {f"{split}{each}": names for split in splits for each in classes})
    theirs = load_dataset(str(folder), cache_dir=str(tmp_path_factory.mktemp("cache")))
    more = {"test_size": 1} if splits == ("",) else {}
    task = load_task({"dataset": str(folder), "validation_size": 1, **more})
    assert task.spec["resolved"]["classes"] == theirs["train"].features["label"].names
    rows = [(np.asarray(row["image"])[1, 1], row["label"]) for row in theirs["train"]]
    ours = zip(task.train.images_NCHW[:, 0, 1, 1].tolist(), task.train.labels_N.tolist(), strict=True)
    remaining = iter(rows)
    assert all(each in remaining for each in ours), "a subsequence, in the same order"
    assert len(task.train) + len(task.validation) + (len(task.test) if more else 0) == len(rows)


def test_a_class_may_begin_with_underscores(tmp_path: Path) -> None:
    folder = draw(tmp_path / "u", {"__": range(4), "__b": range(4), "Z": range(4), "__MACOSX": [1], ".cache": [1]})
    task = load_task({"dataset": str(folder), "test_size": 2, "validation_size": 1})
    assert task.spec["resolved"]["classes"] == ["Z", "__", "__b"] and sum(sizes(task)) == 12


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("Val", "validation"), ("my_test", "test"), ("dev-2", "validation"), ("trains", None)],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_named(name) == split


# IDX files


def write_idx(path: Path, array: np.ndarray) -> None:
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def test_idx_files_with_dots(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 12)):
        write_idx(tmp_path / f"{part}-images.idx3-ubyte", random.integers(0, 256, (count, 6, 6), np.uint8))
        write_idx(tmp_path / f"{part}-labels.idx1-ubyte", np.arange(count, dtype=np.uint8) % 4)
    task = load_task({"dataset": str(tmp_path), "validation_size": 8})
    assert sizes(task) == [32, 8, 12]
    raw = (tmp_path / "t10k-images.idx3-ubyte").read_bytes()[16:]
    assert task.test.images_NCHW.numpy().tobytes() == raw


def test_an_idx_header_cannot_claim_more_than_its_file_holds(tmp_path: Path) -> None:
    test_idx_files_with_dots(tmp_path)
    path = tmp_path / "train-images.idx3-ubyte"
    path.write_bytes(path.read_bytes()[:4] + struct.pack(">3I", 2**31, 2**15, 2**15) + path.read_bytes()[16:])
    with pytest.raises(PdiffError, match="truncated or damaged: 2305843009213693952 values"):
        load_task(str(tmp_path))
