"""Folders with the four IDX files of MNIST and of the data sets shaped like it (Fashion-MNIST, KMNIST, EMNIST).

The format is described at the end of http://yann.lecun.com/exdb/mnist/: two zero bytes, a type byte (8: unsigned
byte), a byte for the number of dimensions, each dimension as a big-endian 32-bit integer, then the values in C order.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from pdiff_hub.errors import PdiffError

_UNSIGNED_BYTE = 8
_MOST_PACKED = 1032  # bytes that deflate packs into one, at most
_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def is_idx_folder(folder: Path) -> bool:
    """Whether any of the four files is in `folder`, plain or as .gz."""
    return any(_find(folder, name) is not None for name in _FILES.values())


def read_idx_folder(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images, uint8 [N, H, W], and labels, uint8 [N], of the splits "train" and "test".

    Raises:
        FileNotFoundError: one of the four files is missing.
        ValueError: a file is truncated or damaged, or images and labels differ in number.
    """
    arrays = {}
    for key, name in _FILES.items():
        path = _find(folder, name)
        if path is None:
            raise FileNotFoundError(f"{folder} has no {name} (or {name}.gz); an IDX data set needs all four files")
        arrays[key] = read_idx(path, dimensions=3 if key[1] == "images" else 1)
    images = {split: arrays[split, "images"] for split in ("train", "test")}
    labels = {split: arrays[split, "labels"] for split in ("train", "test")}
    for split in images:
        if len(images[split]) != len(labels[split]):
            raise PdiffError(f"{folder}: {len(images[split])} {split} images but {len(labels[split])} labels")
    return images, labels


def read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """The uint8 array in an IDX file (plain or .gz) with `dimensions` axes; ValueError if the file is damaged."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path, dimensions)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PdiffError(f"{path} is truncated or damaged ({error}); copy it again") from None


def _read(file: io.BufferedIOBase, path: Path, dimensions: int) -> np.ndarray:
    start = 4 + 4 * dimensions
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    header = file.read(start)
    if header[:4] != magic:
        raise PdiffError(f"{path} is no IDX file of {dimensions} dimensions: starts with {header[:4]!r}, not {magic!r}")
    if len(header) < start:
        raise PdiffError(f"{path} is truncated: {len(header)} bytes, less than its header of {start}")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", dimensions, offset=4))
    wanted = math.prod(shape)
    # Neither a header nor a packed file may claim more than the file can hold: reading it would cost all memory.
    most = path.stat().st_size * (_MOST_PACKED if path.suffix == ".gz" else 1)
    content = file.read(wanted + 1) if wanted <= most else b""
    if len(content) != wanted:
        found = "more" if len(content) > wanted else len(content) or "fewer"
        raise PdiffError(f"{path} is truncated or damaged: {wanted} values of {shape}, but {found} bytes")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _find(folder: Path, name: str) -> Path | None:
    dotted = name.replace("-idx", ".idx")  # as some programs unpack them
    candidates = (folder / f"{each}{gz}" for each in (name, dotted) for gz in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)
