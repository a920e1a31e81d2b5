"""Tasks read images from IDX files, folders of pictures and parquet. Damaged or ambiguous sources are refused."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pdiff_hub.errors import PdiffError
from pdiff_hub.tasks import Split, Task, load_task
from pdiff_hub.tasks import opening as source_module


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def splits_of(task: Task) -> list[Split]:
    return [task.train, task.validation, task.test]


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "idx"
    folder.mkdir()
    random = np.random.default_rng(0)
    write_idx(folder / "train-images-idx3-ubyte", random.integers(0, 256, (40, 6, 6)))
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.arange(40) % 4)
    write_idx(folder / "t10k-images-idx3-ubyte.gz", random.integers(0, 256, (12, 6, 6)))
    write_idx(folder / "t10k-labels-idx1-ubyte", np.arange(12) % 4)
    return folder


def write_image_folder(folder: Path, splits: dict[str, int], mode: str = "RGB", size: tuple[int, int] = (5, 5)) -> Path:
    """Writes images that can be told apart: the first pixel of each is 10 x its class plus its number."""
    for split, count in splits.items():
        for number in range(count):
            label = number % 2
            place = folder / split / ("cat", "dog")[label]
            place.mkdir(parents=True, exist_ok=True)
            image = Image.new("L", size, 100 + number)
            image.putpixel((0, 0), 10 * label + number)
            image.convert(mode).save(place / f"{number:03}.png")
    return folder


def write_parquet(folder: Path, columns: Mapping[str, Any], name: str = "train.parquet") -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(dict(columns)), folder / name)
    return folder


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.new("L", (4, 4), value)
    image.putpixel((1, 1), 255 - value)
    image.save(buffer, "png")
    return buffer.getvalue()


# IDX files


def test_idx_folder(idx_folder: Path) -> None:
    task = load_task({"dataset": str(idx_folder), "validation_size": 8})
    assert (len(task.train), len(task.validation), len(task.test)) == (32, 8, 12)
    assert (task.num_classes, task.in_channels, task.image_size) == (4, 1, 6)
    raw = gzip.decompress((idx_folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    assert task.test.images_NCHW.numpy().tobytes() == raw
    assert task.test.labels_N.tolist() == [number % 4 for number in range(12)]
    assert load_task(task.spec).spec == task.spec


def test_resizing(idx_folder: Path) -> None:
    task = load_task({"dataset": str(idx_folder), "image_size": 9})
    assert task.image_size == 9 and task.test.images_NCHW.shape == (12, 1, 9, 9)


def test_fashion_mnist_reads_debians_folder(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "DEBIAN_FASHION_MNIST", idx_folder)
    task = load_task("fashion-mnist")
    assert task.spec["dataset"] == "fashion-mnist" and task.spec["resolved"]["source"] == str(idx_folder)
    with pytest.raises(ValueError, match="zalando-datasets/fashion_mnist"):
        load_task({"dataset": "fashion-mnist", "label_column": "label"})


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("keep", [2, 6, -1])
def test_truncated_idx(idx_folder: Path, name: str, keep: int) -> None:
    path = idx_folder / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{name}.*(truncated|no IDX file)"):
        load_task(str(idx_folder))


def test_damaged_idx_folders(idx_folder: Path) -> None:
    write_idx(idx_folder / "t10k-labels-idx1-ubyte", np.arange(11) % 4)
    with pytest.raises(ValueError, match="12 test images but 11 labels"):
        load_task(str(idx_folder))
    write_idx(idx_folder / "t10k-labels-idx1-ubyte", np.arange(12) % 5)
    with pytest.raises(ValueError, match="no training image has"):
        load_task(str(idx_folder))
    write_idx(idx_folder / "t10k-labels-idx1-ubyte", np.zeros((12, 1)))
    with pytest.raises(ValueError, match="no IDX file of 1 dimensions"):
        load_task(str(idx_folder))
    (idx_folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        load_task(str(idx_folder))


# Sources that datasets.load_dataset reads


def test_image_folder(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "pets", {"train": 20, "test": 6})
    task = load_task({"dataset": str(folder), "validation_size": 4, "train_size": 10, "test_size": 4})
    assert (len(task.train), len(task.validation), len(task.test)) == (10, 4, 4)
    assert (task.num_classes, task.in_channels, task.image_size) == (2, 3, 5)
    resolved = task.spec["resolved"]
    assert resolved["classes"] == ["cat", "dog"]
    assert (resolved["image_column"], resolved["label_column"]) == ("image", "label")
    assert (resolved["train_split"], resolved["test_split"]) == ("train", "test")
    numbers = []
    for split in splits_of(task):
        first_pixel = split.images_NCHW[:, 0, 0, 0].long()
        number = split.images_NCHW[:, 0, 1, 1].long() - 100
        assert torch.equal(first_pixel - number, 10 * split.labels_N), "images stay with their labels"
        numbers.append(set(number.tolist()))
    assert not numbers[0] & numbers[1]
    assert load_task(task.spec).spec == task.spec
    with pytest.raises(ValueError, match="no more than 6"):
        load_task({"dataset": str(folder), "test_size": 7})


def test_only_the_images_of_a_split_are_decoded_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    decoded: list[str] = []
    decode = datasets.Image.decode_example

    def counting(feature: Any, value: dict[str, Any], **options: Any) -> Any:
        decoded.append(value["path"])
        return decode(feature, value, **options)

    folder = write_image_folder(tmp_path / "counted", {"train": 20, "test": 6})
    monkeypatch.setattr(datasets.Image, "decode_example", counting)
    load_task({"dataset": str(folder), "validation_size": 4, "train_size": 10, "test_size": 4})
    assert len(decoded) == len(set(decoded)) == 18


def test_grey_and_colour_images_become_colour(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "mixed", {"train": 8, "test": 4}, mode="L")
    assert load_task(str(folder)).in_channels == 1
    for path in (folder / "test").rglob("000.png"):
        Image.open(path).convert("RGBA").save(path)
    task = load_task(str(folder))
    assert task.in_channels == 3
    assert torch.equal(task.train.images_NCHW[:, 0], task.train.images_NCHW[:, 2])


def test_images_that_are_not_square(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "wide", {"train": 8, "test": 4}, size=(9, 5))
    with pytest.raises(ValueError, match="9 x 5 pixels, not square; set image_size"):
        load_task(str(folder))
    assert load_task({"dataset": str(folder), "image_size": 4}).test.images_NCHW.shape == (4, 3, 4, 4)


def test_images_of_different_sizes(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "sizes", {"train": 8})
    write_image_folder(folder, {"test": 4}, size=(6, 6))
    with pytest.raises(ValueError, match="different sizes"):
        load_task(str(folder))
    next((folder / "test").rglob("*.png")).write_bytes(png(3))
    with pytest.raises(ValueError, match="set image_size"):
        load_task(str(folder))


def test_images_of_16_bits_are_refused(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "deep", {"train": 8, "test": 4})
    for path in (folder / "test").rglob("*.png"):
        Image.new("I;16", (5, 5), 1000).save(path)
    with pytest.raises(ValueError, match="I;16"):
        load_task(str(folder))


def test_parquet_folder_of_one_split(tmp_path: Path) -> None:
    names = [["ant", "bee", "cow"][number % 3] for number in range(30)]
    columns = {"picture": [png(number) for number in range(30)], "kind": names, "weight": [0.5] * 30}
    folder = write_parquet(tmp_path / "animals", columns)
    with pytest.raises(ValueError, match="no split 'test', only 'train'"):
        load_task(str(folder))
    task = load_task({"dataset": str(folder), "test_size": 0.4, "validation_size": 0.2})
    assert [len(split) for split in splits_of(task)] == [14, 4, 12]
    assert task.spec["resolved"]["classes"] == ["ant", "bee", "cow"]
    pixel = torch.cat([split.images_NCHW[:, 0, 0, 0] for split in splits_of(task)]).tolist()
    labels = torch.cat([split.labels_N for split in splits_of(task)]).tolist()
    assert sorted(pixel) == list(range(30)) and labels == [value % 3 for value in pixel]


def test_splits_by_name(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "named", {"train": 8, "validation": 6, "test": 4})
    task = load_task({"dataset": str(folder), "validation_split": "validation"})
    assert [len(split) for split in splits_of(task)] == [8, 6, 4] and task.spec["validation_size"] is None
    task = load_task({"dataset": str(folder), "test_split": "validation"})
    assert len(task.test) == 6
    with pytest.raises(ValueError, match="nearest known one is 'test'"):
        load_task({"dataset": str(folder), "test_split": "tests"})
    with pytest.raises(ValueError, match="must be different splits"):
        load_task({"dataset": str(folder), "validation_split": "train"})


def test_columns_that_cannot_be_guessed(tmp_path: Path) -> None:
    columns = {"image": [png(number) for number in range(20)], "fine": list(range(10)) * 2, "coarse": [0, 1] * 10}
    folder = write_parquet(tmp_path / "two_labels", columns)
    spec = {"dataset": str(folder), "test_size": 4}
    with pytest.raises(ValueError, match="set label_column; fine, coarse could each be it"):
        load_task(spec)
    assert load_task({**spec, "label_column": "coarse"}).num_classes == 2
    with pytest.raises(ValueError, match="nearest known one is 'coarse'"):
        load_task({**spec, "label_column": "corse"})
    with pytest.raises(ValueError, match="not labels"):
        load_task({**spec, "label_column": "image"})
    with pytest.raises(ValueError, match="not images"):
        load_task({**spec, "image_column": "fine"})


def test_a_config_that_the_set_lacks(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set", {"image": [png(0)] * 20, "label": [0, 1] * 10})
    with pytest.raises(PdiffError, match=r"set' could not be read: .*odd"):
        load_task({"dataset": str(folder), "config_name": "odd", "test_size": 4})


def test_missing_labels_and_images(tmp_path: Path) -> None:
    images: list[Any] = [png(number) for number in range(20)]
    folder = write_parquet(tmp_path / "no_label", {"image": images, "label": [None, *range(19)]})
    with pytest.raises(ValueError, match="without a label"):
        load_task({"dataset": str(folder), "test_size": 4})
    folder = write_parquet(tmp_path / "no_image", {"image": [*images[:-1], None], "label": [0, 1] * 10})
    with pytest.raises(ValueError, match=r"image \d+ is missing"):
        load_task({"dataset": str(folder), "test_size": 4})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither a local folder with data nor"):
        load_task(str(tmp_path / "empty"))
