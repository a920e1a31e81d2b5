"""Image-classification data sets that `datasets.load_dataset` reads, from the Hub or from a local folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pdiff_hub.errors import PdiffError, one_line, unknown_name
from pdiff_hub.tasks.images import decode_images, opened
from pdiff_hub.tasks.listing import local_folder
from pdiff_hub.tasks.source import Source, number_classes
from pdiff_hub.tasks.spec import HUB_DATASETS
from pdiff_hub.tasks.split_names import name_splits
from pdiff_hub.transfer import bounded

if TYPE_CHECKING:
    from datasets import Dataset

_MOST_LETTERS = 1000  # of what `datasets` says
logger = logging.getLogger(__name__)


def open_hub_data(
    options: dict[str, Any], files: Mapping[str, Sequence[str]] | None = None, num_pictures: int = 0
) -> Source:
    """Finds splits and columns and reads all labels. `Source.read` decodes only the images that are asked for.

    files: of a local folder, by split; None for data that say themselves which files are theirs. num_pictures: how many
    of them are pictures; the log says so if fewer are described.

    Raises:
        FileNotFoundError: the data set is neither a folder nor reachable on the Hub.
        ValueError: an unknown split or column, more than one possible column, missing labels.
    """
    dataset = options["dataset"]
    known = HUB_DATASETS.get(dataset, {"id": dataset})
    folder = local_folder(known["id"])
    location = known["id"] if folder is None else str(folder)
    tables = _load(location, options, files)
    if (described := sum(map(len, tables.values()))) < num_pictures:
        logger.warning(
            "%s: of %d pictures, the metadata name %d; only these are read", location, num_pictures, described
        )
    return source_of_tables(tables, options, dataset, location if folder is None else str(folder.absolute()))


def source_of_tables(tables: Mapping[str, Dataset], options: Mapping[str, Any], dataset: str, location: str) -> Source:
    """The source that the tables of a data set are, by their own names of splits. Errors as in `open_hub_data`.

    dataset, location: what errors about an image, and all others, call the data set.
    """
    splits = name_splits(tables, options, location)
    parts = {role: tables[split] for role, split in splits.items()}
    image_column = _image_column(parts["train"], options.get("image_column"), location)
    label_column = _label_column(parts["train"], options.get("label_column"), image_column, location)
    for role, part in parts.items():
        for column in (image_column, label_column):
            if column not in part.column_names:
                raise PdiffError(f"{location}: the split {splits[role]!r} has no column {column!r}")
    labels, classes = _labels(parts, label_column, location)

    def read(role: str, index: np.ndarray, image_size: int | None) -> np.ndarray:
        from datasets import Image

        what = f"{dataset}, {splits[role]}"
        rows = parts[role].select_columns([image_column]).select(index)
        found = rows.features[image_column]
        feature = found if isinstance(found, Image) else Image()
        # Other programs write pictures to parquet as columns of encoded bytes. The cast makes pictures of these, too.
        cells = (row[image_column] for row in rows.cast_column(image_column, Image(decode=False)))

        def pictures() -> Iterator[tuple[str, Any]]:
            for number, cell in enumerate(cells):
                path = "" if cell is None or cell["path"] is None else f" ({Path(cell['path']).name})"
                name = f"{what}: image {number}{path}"
                yield name, opened(feature, cell, name)

        return decode_images(pictures(), len(index), image_size, what)

    found = {f"{role}_split": split for role, split in splits.items()}
    found |= {"image_column": image_column, "label_column": label_column}
    return Source(location, labels, classes, read, found)


def _load(location: str, options: dict[str, Any], files: Mapping[str, Sequence[str]] | None) -> dict[str, Dataset]:
    from datasets import load_dataset

    config, revision = options.get("config_name"), options.get("revision")
    try:
        with bounded(location, repo_type="dataset", revision=revision) if files is None else nullcontext():
            loaded = load_dataset(location, name=config, revision=revision, data_files=files)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"the data set {location!r} is neither a local folder with data nor one that the Hub gives: {error}"
        ) from error
    except (
        Exception
    ) as error:  # a damaged file, or a config that is none of the set's, can make datasets raise anything
        reason = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error, _MOST_LETTERS)
        raise PdiffError(f"the data set {location!r} could not be read: {reason}") from error
    return {str(name): table for name, table in loaded.items()}


def _image_column(table: Dataset, named: str | None, location: str) -> str:
    from datasets import Image

    if named is not None:
        _require_column(table, "image_column", named, location)
        if not isinstance(table.features[named], Image) and not _is_encoded(table.features[named]):
            raise PdiffError(f"{location}: the column {named!r} holds {table.features[named]}, not images")
        return named
    images = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    encoded = [name for name, feature in table.features.items() if _is_encoded(feature)]
    return _only("image_column", images or encoded, table, location)


def _label_column(table: Dataset, named: str | None, image_column: str, location: str) -> str:
    from datasets import ClassLabel

    if named is not None:
        _require_column(table, "label_column", named, location)
        if named == image_column or not _is_label(table.features[named]):
            raise PdiffError(f"{location}: the column {named!r} holds {table.features[named]}, not labels")
        return named
    others = {name: feature for name, feature in table.features.items() if name != image_column}
    classes = [name for name, feature in others.items() if isinstance(feature, ClassLabel)]
    return _only(
        "label_column", classes or [name for name, feature in others.items() if _is_label(feature)], table, location
    )


def _is_encoded(feature: Any) -> bool:
    """Whether a column holds the bytes of picture files, or the {bytes, path} pairs that store the Image feature."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _is_label(feature: Any) -> bool:
    from datasets import ClassLabel, Value

    whole = ("int", "uint", "bool", "string", "large_string")
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype.startswith(whole))


def _require_column(table: Dataset, option: str, name: str, location: str) -> None:
    if name not in table.column_names:
        raise unknown_name(f"{option} of {location}", name, table.column_names)


def _only(option: str, candidates: list[str], table: Dataset, location: str) -> str:
    if len(candidates) != 1:
        found = "none of its columns can be it" if not candidates else f"{', '.join(candidates)} could each be it"
        columns = ", ".join(f"{name} ({feature})" for name, feature in table.features.items())
        raise PdiffError(f"{location}: set {option}; {found}. Columns: {columns}")
    return candidates[0]


def _labels(parts: dict[str, Dataset], column: str, location: str) -> tuple[dict[str, np.ndarray], list[str]]:
    from datasets import ClassLabel

    feature = parts["train"].features[column]
    values = {}
    for role, part in parts.items():
        raw: Iterable[Any] = part.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
        if None in raw or (isinstance(feature, ClassLabel) and -1 in raw):
            raise PdiffError(f"{location}: the {role} split has images without a label in the column {column!r}")
        values[role] = np.array(raw)
    if not isinstance(feature, ClassLabel):
        return number_classes(values, location)
    for role, part in parts.items():
        if part.features[column] != feature:
            raise PdiffError(f"{location}: the {role} split numbers its classes otherwise than the training split")
    return {role: values_N.astype(np.int64) for role, values_N in values.items()}, list(feature.names)
