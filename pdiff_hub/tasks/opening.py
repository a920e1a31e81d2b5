"""Where images come from: scikit-learn's digits, IDX files, folders of pictures, and what `datasets` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pdiff_hub.errors import PdiffError
from pdiff_hub.tasks.hub_data import open_hub_data
from pdiff_hub.tasks.idx import is_idx_folder, read_idx_folder
from pdiff_hub.tasks.images import resize_grey
from pdiff_hub.tasks.listing import list_folder, local_folder
from pdiff_hub.tasks.picture_folder import open_picture_folder, pictures_in
from pdiff_hub.tasks.source import Source, number_classes
from pdiff_hub.tasks.spec import DIGITS_SCALE, HUB_DATASETS, HUB_OPTIONS, TASK_NAMES
from pdiff_hub.tasks.table_files import METADATA, splits_of, splits_of_described, states_its_files, table_files

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist


def open_source(options: dict[str, Any]) -> Source:
    """The source of `options["dataset"]`."""
    dataset = options["dataset"]
    folder = None if dataset in TASK_NAMES else local_folder(dataset)
    if dataset == "digits":
        _refuse_hub_options(options, "scikit-learn's digits have")
        return _digits()
    if dataset == "fashion-mnist" and DEBIAN_FASHION_MNIST.is_dir():
        _refuse_hub_options(options, f"the IDX files in {DEBIAN_FASHION_MNIST} have", HUB_DATASETS[dataset]["id"])
        return _idx(DEBIAN_FASHION_MNIST)
    return open_hub_data(options) if folder is None else _open_folder(folder, options)


def _open_folder(folder: Path, options: dict[str, Any]) -> Source:
    if is_idx_folder(folder):
        _refuse_hub_options(options, f"the IDX files in {folder} have")
        return _idx(folder)
    listing = list_folder(folder)
    if states_its_files(listing):
        return open_hub_data(options)
    pictures, tables = pictures_in(listing), table_files(listing)
    metadata = [parts for parts in listing.files if parts[-1] in METADATA]
    if pictures.files and metadata and (files := splits_of_described(listing, pictures.files, metadata)):
        return open_hub_data(options, files, len(pictures.files))
    if len(pictures.files) > len(tables):
        return open_picture_folder(pictures, options)
    return open_hub_data(options, splits_of(listing, tables) if tables else None)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images_NHW = (bunch.images * DIGITS_SCALE).astype(np.uint8)
    labels, classes = number_classes({"train": bunch.target}, "digits")

    def read(_: str, index: np.ndarray, image_size: int | None) -> np.ndarray:
        return resize_grey(images_NHW[index], image_size, "digits")

    return Source("scikit-learn", labels, classes, read)


def _idx(folder: Path) -> Source:
    images, values = read_idx_folder(folder)
    labels, classes = number_classes(values, str(folder))

    def read(split: str, index: np.ndarray, image_size: int | None) -> np.ndarray:
        return resize_grey(images[split][index], image_size, f"{folder}, {split}")

    return Source(str(folder.absolute()), labels, classes, read)


def _refuse_hub_options(options: dict[str, Any], whose: str, hub_id: str | None = None) -> None:
    if given := [option for option in HUB_OPTIONS if option in options]:
        instead = f", or name the data set on the Hub, {hub_id}" if hub_id else ""
        raise PdiffError(f"{whose} no columns, splits or versions to choose: leave out {', '.join(given)}{instead}")
