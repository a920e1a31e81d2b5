"""Images in memory: tensors, arrays, tables of `datasets` and data sets of torch are tasks like any others."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from pdiff_hub.errors import PdiffError
from pdiff_hub.tasks import Task, load_recorded_task, load_task
from pdiff_hub.tasks.given import keep_images

GENERATOR = torch.Generator().manual_seed(0)
BYTES = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=GENERATOR)
FLOATS = torch.randn(60, 1, 8, 8, generator=GENERATOR)
LABELS = torch.arange(60) % 3


def task_of(data: Any, **options: Any) -> tuple[Any, Task]:
    held = keep_images(data, options)
    return held, load_task({"dataset": held.name, **options})


def test_float_images_are_what_networks_get() -> None:
    _, task = task_of((FLOATS, LABELS))
    assert {name: len(getattr(task, name)) for name in ("train", "validation", "test")} == {
        "train": 43,
        "validation": 5,
        "test": 12,
    }
    before = task.train.images_NCHW.clone()
    assert torch.equal(task.inputs(task.train), before) and torch.equal(
        task.inputs(task.train, slice(0, 9)), before[:9]
    )
    assert torch.equal(task.train.images_NCHW, before) and task.spec["normalize"] == "none"
    again = load_task(task.spec)
    assert torch.equal(again.test.images_NCHW, task.test.images_NCHW) and again.spec == task.spec
    _, half = task_of((FLOATS.to(torch.bfloat16), LABELS.tolist()), seed=3)
    assert half.train.images_NCHW.dtype == torch.float32


def test_bytes_are_normalised_and_resized_like_files() -> None:
    _, task = task_of((BYTES.numpy()[:, 0], LABELS.numpy()), image_size=6, test_size=10)
    assert task.train.images_NCHW.shape == (45, 1, 6, 6) and len(task.test) == 10
    assert task.inputs(task.train).mean().abs() < 1e-3
    _, colour = task_of((BYTES.expand(-1, 3, -1, -1), LABELS), image_size=6, test_size=10)
    assert torch.equal(colour.train.images_NCHW[:, 0], task.train.images_NCHW[:, 0])


def test_a_part_for_test_and_names_of_classes() -> None:
    names = ["cat", "dog", "eel"]
    pairs = (
        (BYTES[:40], [names[label] for label in LABELS[:40]]),
        (BYTES[40:], [names[label] for label in LABELS[40:]]),
    )
    _, task = task_of(pairs)
    assert len(task.test) == 20 and task.spec["resolved"]["classes"] == names and task.spec["test_size"] is None
    with pytest.raises(PdiffError, match="the test split has the label 9, which no training image has"):
        keep_images(((BYTES, LABELS), (BYTES[:1], torch.tensor([9]))), {})


def test_tables_and_torch_data_sets() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "answer": datasets.ClassLabel(names=["a", "b", "c"])})
    arrays = [np.asarray(image) for image in BYTES[:, 0].numpy()]
    table = datasets.Dataset.from_dict({"picture": arrays, "answer": LABELS.tolist()}, features=features)
    held, task = task_of(table)
    assert len(task.test) == 12 and task.spec["resolved"]["classes"] == ["a", "b", "c"]
    assert keep_images(table, {}).name == held.name != keep_images(table.select(range(50)), {}).name
    _, split = task_of(table.train_test_split(0.25, seed=0))
    assert len(split.test) == 15
    _, other = task_of(datasets.DatasetDict(train=table, held_out=table), test_split="held_out")
    assert len(other.test) == 60
    with pytest.raises(PdiffError, match="'train' of the data set has a transform"):
        keep_images(table.with_transform(lambda batch: {"picture": [0], "answer": [0]}), {})
    with pytest.raises(PdiffError, match="'train' of the data set has no images"):
        keep_images(table.select([]), {})
    with pytest.raises(PdiffError, match="streams"):
        keep_images(table.to_iterable_dataset(), {})

    class Pictures(TorchDataset[tuple[Any, int]]):
        def __len__(self) -> int:
            return 60

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return pillow.fromarray(arrays[index]), int(LABELS[index])

    _, pictures = task_of(Pictures())
    _, tensors = task_of(TensorDataset(BYTES, LABELS))
    _, plain = task_of((BYTES, LABELS))
    assert tensors.spec == plain.spec == pictures.spec and torch.equal(
        pictures.train.images_NCHW, plain.train.images_NCHW
    )
    _, two = task_of((TensorDataset(BYTES[:40], LABELS[:40]), TensorDataset(BYTES[40:], LABELS[40:])))
    assert len(two.test) == 20


def test_they_are_known_as_long_as_somebody_holds_them() -> None:
    held, task = task_of((FLOATS * 3, LABELS))
    assert load_recorded_task(task.spec).spec == task.spec
    twice = keep_images((FLOATS * 3, LABELS), {})
    assert twice is held
    del twice
    assert load_task(task.spec).spec == task.spec
    del held
    gc.collect()
    for load in (load_task, load_recorded_task):
        with pytest.raises(PdiffError, match="were given in Python and are not on the disk"):
            load(task.spec)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((BYTES, LABELS[:3]), {}, "has 60 images and 3 labels"),
        ((BYTES.permute(0, 2, 3, 1), LABELS), {}, r"put the channels first, with images\.permute\(0, 3, 1, 2\)"),
        ((BYTES.int(), LABELS), {}, "are int32, expected uint8"),
        ((FLOATS / 0, LABELS), {}, "hold NaN or Inf"),
        ((BYTES[0, 0], LABELS), {}, r"have the shape \[8, 8\]"),
        ((BYTES, LABELS.float()), {}, r"labels of the train split are float32 of the shape \[60\]"),
        (((BYTES, LABELS), (FLOATS, LABELS)), {}, "the training images are uint8 .* those for test float32"),
        ((FLOATS[..., :6], LABELS), {}, "expected squares; resize them before"),
        ((FLOATS, LABELS), {"image_size": 6}, "expected 6 x 6; resize them before"),
        ((FLOATS, LABELS), {"normalize": "imagenet"}, "float numbers, which the networks get as they are"),
        ({"train": 3}, {}, "a task in memory is dict; expected"),
        (TensorDataset(BYTES), {}, "gives no pairs of an image and a label"),
    ],
)
def test_what_is_no_task_is_one_sentence(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PdiffError, match=message):
        task_of(data, **options)
