"""Takes images and labels as people have them in Python: tensors, arrays, a `datasets.Dataset`, a torch data set.

Shape suffixes: N images, C channels, H and W pixels, S pixels per side.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.tasks.hub_data import source_of_tables
from pdiff_hub.tasks.images import decode_images, resize_grey
from pdiff_hub.tasks.memory import PREFIX, GivenImages, keep
from pdiff_hub.tasks.source import Source, number_classes

_SPLITS = ("train", "test")
_FORMS = (
    "expected (images, labels) or ((images, labels), (test_images, test_labels)) with tensors or arrays, a "
    "datasets.Dataset or DatasetDict, a torch Dataset or a pair of them"
)
_ROWS = 1000  # of a table that are hashed at once


@dataclass(frozen=True, eq=False)
class InMemory:
    """Images in memory under the name that their content gives; see `GivenImages`."""

    name: str
    _open: Callable[[dict[str, Any]], Source]

    def open(self, options: dict[str, Any]) -> Source:
        """The images as `load_task` reads them."""
        return self._open(options)


def keep_images(data: Any, options: Mapping[str, Any]) -> GivenImages:
    """Images and labels under a name that `load_task` knows as long as what is returned is held.

    Args:
        data: one of

            - `(images, labels)`, or such a pair for training and one for test: tensors or arrays. Images are
              [N, C, H, W] or [N, H, W]: uint8 from 0 to 255, which are normalised like any others, or float, which the
              networks get as they are. Labels are [N] whole numbers or texts; the sorted ones of the training images
              are the classes.
            - a `datasets.Dataset` or `DatasetDict` with a column of images and one of labels.
            - a torch `Dataset` of (image, label), or a pair of them for training and test. It is read once, so random
              transforms do not belong there: a task has `augment`.
        options: the task's other options, of which these read `image_size` and the names of columns and splits.

    Raises:
        ValueError: anything else; shapes that do not fit, numbers that are not finite, a label that no training image
            has.
    """
    tables = _tables(data)
    return keep(_of_arrays(_arrays(data, options)) if tables is None else _of_tables(tables, options))


def _tables(data: Any) -> dict[str, Any] | None:
    """The tables of `datasets`, by split; None for anything else, for which the package is not imported."""
    package = sys.modules.get("datasets")
    if package is None:
        return None
    if isinstance(data, package.IterableDataset | package.IterableDatasetDict):
        raise PdiffError("a data set that streams cannot be split and read again; load it without streaming=True.")
    if isinstance(data, package.Dataset):
        return {"train": data}
    return {str(name): table for name, table in data.items()} if isinstance(data, package.DatasetDict) else None


def _of_tables(tables: dict[str, Any], options: Mapping[str, Any]) -> InMemory:
    for split, table in tables.items():
        if table.format["type"] == "custom":
            raise PdiffError(
                f"the split {split!r} of the data set has a transform, which would be called anew whenever an image is "
                "read; take it off with reset_format(), and give a task `augment` for random changes."
            )

    def opened(given: Mapping[str, Any], name: str) -> Source:
        # Without a split for test, some are cut off; `open_given` says how many.
        return source_of_tables(tables, {"test_size": 1, **_present(given)}, name, name)

    source = opened(options, "the data set")
    if empty := [split for role, split in source.found.items() if role == "train_split" and not len(tables[split])]:
        raise PdiffError(f"the split {empty[0]!r} of the data set has no images; expected at least one of each class.")
    digest = hashlib.sha256(repr(source.classes).encode())
    for role, labels_N in sorted(source.labels.items()):
        digest.update(f"{role} {len(labels_N)}".encode() + labels_N.tobytes())
        for cell in _cells(tables[source.found[f"{role}_split"]], source.found["image_column"]):
            digest.update(hashlib.sha256(cell).digest())
    name = f"{PREFIX}images-{digest.hexdigest()[:12]}"
    return InMemory(name, lambda given: opened(given, name))


def _present(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _cells(table: Any, column: str) -> Iterator[bytes]:
    """The encoded pictures of a column, without decoding them."""
    from datasets import Image

    rows = table.select_columns([column]).cast_column(column, Image(decode=False))
    for batch in rows.iter(_ROWS):
        for cell in batch[column]:
            if cell is None or cell["bytes"] is not None:
                yield b"" if cell is None else cell["bytes"]
            else:
                with open(cell["path"], "rb") as file:
                    yield file.read()


_Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> images [N, C, H, W] and labels [N]


def _arrays(data: Any, options: Mapping[str, Any]) -> _Arrays:
    parts = _parts(data)
    size = options.get("image_size")
    read = {
        split: _read(part, split, size) if _is_torch_dataset(part) else part
        for split, part in zip(_SPLITS, parts, strict=False)
    }
    arrays = {split: (_images(pair[0], split), _labels(pair[1], split)) for split, pair in read.items()}
    for split, (images, labels) in arrays.items():
        if len(images) != len(labels):
            raise PdiffError(f"the {split} split has {len(images)} images and {len(labels)} labels; give one for each.")
    first, *others = [images for images, _ in arrays.values()]
    for other in others:
        if other.dtype != first.dtype or other.shape[1:] != first.shape[1:]:
            raise PdiffError(
                f"the training images are {first.dtype} {list(first.shape[1:])} and those for test {other.dtype} "
                f"{list(other.shape[1:])}; prepare both in the same way."
            )
    return arrays


def _parts(data: Any) -> Sequence[Any]:
    """What is given for training and, if there is any, for test."""
    if _is_torch_dataset(data):
        return [data]
    if isinstance(data, list | tuple) and len(data) == 2:
        if all(_is_torch_dataset(each) or (isinstance(each, list | tuple) and len(each) == 2) for each in data):
            return data
        if isinstance(data[0], Tensor | np.ndarray):
            return [data]
    raise PdiffError(f"a task in memory is {type(data).__name__}; {_FORMS}.")


def _is_torch_dataset(data: Any) -> bool:
    return isinstance(data, torch.utils.data.Dataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _read(dataset: Any, split: str, image_size: int | None) -> tuple[Any, Any]:
    """All images and labels of a torch data set, read once."""
    items = [dataset[index] for index in range(len(dataset))]
    if not items or not all(isinstance(item, list | tuple) and len(item) == 2 for item in items):
        raise PdiffError(f"the {split} data set of torch gives no pairs of an image and a label; {_FORMS}.")
    images, labels = zip(*items, strict=True)
    labels = tuple(label.item() if isinstance(label, Tensor) and label.numel() == 1 else label for label in labels)
    if isinstance(images[0], Tensor | np.ndarray):
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise PdiffError(f"the {split} data set has images of different shapes {sorted(shapes)[:3]}; resize them.")
        return torch.stack([torch.as_tensor(image) for image in images]), labels
    pictures = ((f"{split}: image {number}", image) for number, image in enumerate(images))
    return decode_images(pictures, len(images), image_size, split), labels


def _images(given: Any, split: str) -> np.ndarray:
    """uint8 or float32 [N, C, H, W]."""
    what = f"the images of the {split} split"
    if not isinstance(given, Tensor | np.ndarray):
        raise PdiffError(f"{what} are {type(given).__name__}; {_FORMS}.")
    tensor = torch.as_tensor(given).detach().cpu()
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    if tensor.ndim != 4 or not len(tensor):
        raise PdiffError(
            f"{what} have the shape {list(given.shape)}, expected [N, C, H, W] or [N, H, W] with N above 0."
        )
    if tensor.shape[3] in (1, 3) and tensor.shape[1] == tensor.shape[2]:
        raise PdiffError(
            f"{what} have the shape {list(given.shape)}, expected [N, C, H, W]: put the channels first, with "
            "images.permute(0, 3, 1, 2) of a tensor or images.transpose(0, 3, 1, 2) of an array."
        )
    if tensor.is_floating_point():
        tensor = tensor.float()
        if not bool(tensor.isfinite().all()):
            raise PdiffError(f"{what} hold NaN or Inf; expected finite numbers.")
    elif tensor.dtype != torch.uint8:
        raise PdiffError(
            f"{what} are {str(tensor.dtype).removeprefix('torch.')}, expected uint8 from 0 to 255, or float numbers "
            "that the networks get as they are; convert them."
        )
    return np.ascontiguousarray(tensor.numpy())


def _labels(given: Any, split: str) -> np.ndarray:
    labels = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if labels.ndim != 1 or labels.dtype.kind not in "biuU":
        raise PdiffError(
            f"the labels of the {split} split are {labels.dtype} of the shape {list(labels.shape)}, expected [N] whole "
            "numbers or texts, one for each image."
        )
    return labels


def _of_arrays(arrays: _Arrays) -> InMemory:
    labels, classes = number_classes({split: part[1] for split, part in arrays.items()}, "the task in memory")
    digest = hashlib.sha256(repr(classes).encode())
    for split, (images, _) in sorted(arrays.items()):
        digest.update(f"{split} {images.dtype} {images.shape}".encode() + labels[split].tobytes())
        digest.update(images.data)
    name = f"{PREFIX}images-{digest.hexdigest()[:12]}"

    def read(split: str, index: np.ndarray, image_size: int | None) -> np.ndarray:
        return _resized(arrays[split][0][index], image_size, f"{name}, {split}")

    return InMemory(name, lambda options: Source(name, labels, classes, read))


def _resized(images_NCHW: np.ndarray, image_size: int | None, what: str) -> np.ndarray:
    channels, height, width = images_NCHW.shape[1:]
    if height == width and image_size in (None, height):
        return images_NCHW
    if images_NCHW.dtype != np.uint8 or channels not in (1, 3) or image_size is None:
        wanted = f"{image_size} x {image_size}" if image_size else "squares"
        raise PdiffError(
            f"{what}: the images are {channels} x {height} x {width} {images_NCHW.dtype} numbers, expected {wanted}; "
            "resize them before, or give uint8 images with 1 or 3 channels and image_size."
        )
    if channels == 1:
        return resize_grey(images_NCHW[:, 0], image_size, what)
    from PIL import Image

    pictures = (
        (f"{what}: image {n}", Image.fromarray(each)) for n, each in enumerate(images_NCHW.transpose(0, 2, 3, 1))
    )
    return decode_images(pictures, len(images_NCHW), image_size, what)
