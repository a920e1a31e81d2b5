"""Folders of pictures: FOLDER/CLASS/PICTURE, or FOLDER/SPLIT/CLASS/PICTURE with splits called train, test, val, ...

What a split is, is read from the folders at the top alone: no name of a class or a picture means one. Every picture is
used, or an error or the log names those that are not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from pdiff_hub.errors import PdiffError, require_known
from pdiff_hub.tasks.images import decode_images, opened
from pdiff_hub.tasks.listing import Listing
from pdiff_hub.tasks.source import Source
from pdiff_hub.tasks.split_names import SPLIT_OF, name_splits, split_named

logger = logging.getLogger(__name__)

_COLUMNS = {"image_column": "image", "label_column": "label"}  # as `datasets` calls them for such folders
_MOST_NAMED = 3
_Parts = tuple[str, ...]


@dataclass(frozen=True)
class Pictures:
    """The pictures of a listing, and the files that are none."""

    listing: Listing
    files: list[_Parts]
    others: list[_Parts]


def pictures_in(listing: Listing) -> Pictures:
    """Tells pictures from other files by the ends of their names, as `datasets` does."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    ends = {*ImageFolder.EXTENSIONS, ".avif"}
    files: list[_Parts] = []
    others: list[_Parts] = []
    for parts in listing.files:
        (files if PurePath(parts[-1]).suffix.lower() in ends else others).append(parts)
    return Pictures(listing, files, others)


def open_picture_folder(pictures: Pictures, options: dict[str, Any]) -> Source:
    """Finds splits and classes. `Source.read` decodes only the pictures that are asked for.

    Raises:
        ValueError: pictures that are in no class or no split, one class only, an unknown split or option.
    """
    folder = pictures.listing.folder
    for option, column in _COLUMNS.items():
        require_known(f"{option} of {folder}", [options.get(option, column)], [column])
    require_known(f"config_name of {folder}", [options.get("config_name", "default")], ["default"])
    tables = _splits(pictures)
    classes = sorted({parts[-2] for files in tables.values() for parts in files})
    if len(classes) < 2:
        raise PdiffError(
            f"all pictures of {folder} are of one class, {classes[0]!r}: a network that always answers so would be "
            "right. Give each class a folder of its own."
        )
    splits = name_splits(tables, options, str(folder))
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {
        role: np.array([numbers[parts[-2]] for parts in tables[split]], np.int64) for role, split in splits.items()
    }
    if absent := sorted(set(classes) - {parts[-2] for parts in tables[splits["train"]]}):
        logger.warning("%s: the class %r has no picture to train on", folder, absent[0])
    _log_what_is_not_read(pictures, tables, splits)

    def read(role: str, index: np.ndarray, image_size: int | None) -> np.ndarray:
        from datasets import Image

        files = tables[splits[role]]
        paths = (pictures.listing.path(files[number]) for number in index)
        # As bytes: of a damaged file, Pillow would leave the file open.
        cells = ((str(path), {"path": str(path), "bytes": path.read_bytes()}) for path in paths)
        images = ((name, opened(Image(), cell, name)) for name, cell in cells)
        return decode_images(images, len(index), image_size, f"{options['dataset']}, {splits[role]}")

    found = {**{f"{role}_split": split for role, split in splits.items()}, **_COLUMNS}
    return Source(str(folder.absolute()), labels, classes, read, found)


def _splits(pictures: Pictures) -> dict[str, list[_Parts]]:
    """The pictures of each split; all of them are "train" if the folders at the top are no splits."""
    folder, files = str(pictures.listing.folder), pictures.files
    level = 0
    while (tables := _by_split(folder, files, level)) is None:
        if len({parts[level] for parts in files}) > 1 or any(len(parts) <= level + 2 for parts in files):
            tables = {"train": files}
            level = -1
            break
        level += 1  # a folder alone, such as the one that an archive was unpacked to, says nothing
    for parts in (parts for table in tables.values() for parts in table):
        if len(parts) < level + 3:
            raise PdiffError(f"{folder}: the picture {_shown(parts)} is in no folder of a class; move or remove it.")
        if inner := [name for name in parts[level + 1 : -2] if name.lower() in SPLIT_OF]:
            raise PdiffError(
                f"{folder}: {inner[0]!r} in {_shown(parts)} is called as a split, and lies below another folder; put "
                "the folders of splits at the top, and those of classes into them."
            )
    depths = {len(parts): parts for table in tables.values() for parts in table}
    if len(depths) > 1:
        one, other, *_ = map(_shown, depths.values())
        raise PdiffError(
            f"{folder}: pictures lie at different depths ({one}, {other}), so it is not known which folders are "
            "classes; put each picture directly into the folder of its class."
        )
    return tables


def _by_split(folder: str, files: Sequence[_Parts], level: int) -> dict[str, list[_Parts]] | None:
    """Pictures by split, if the folders at `level` are splits: they are called so, and hold folders of classes."""
    nested = {parts[level] for parts in files if len(parts) > level + 2}
    flat = {parts[level] for parts in files if len(parts) == level + 2}  # these hold pictures
    exact = sorted(name for name in nested if name.lower() in SPLIT_OF)
    named = {name: split for name in {*nested, *flat} if (split := split_named(name)) is not None}
    all_nested_are = bool(nested) and nested <= named.keys()
    all_flat_are = not nested and all(name.lower() in SPLIT_OF for name in flat)  # which is then an error
    if not exact and not all_nested_are and not (flat and all_flat_are):
        return None
    if without := sorted(flat & named.keys()):
        raise PdiffError(
            f"{folder}: {without[0]!r} is called as a split, and has pictures that are in no folder of a class; move "
            "them into such folders, or call it otherwise."
        )
    if strangers := sorted(nested - named.keys()):
        raise PdiffError(
            f"{folder}: {strangers[0]!r} lies beside the split {exact[0]!r}, and no split is called so; call it one of "
            f"{', '.join(SPLIT_OF)}, or move it elsewhere."
        )
    tables: dict[str, list[_Parts]] = {split: [] for split in ("train", "validation", "test")}
    for parts in files:
        if parts[level] in nested:
            tables[named[parts[level]]].append(parts)
    return {split: table for split, table in tables.items() if table}


def _log_what_is_not_read(pictures: Pictures, tables: dict[str, list[_Parts]], splits: dict[str, str]) -> None:
    folder = pictures.listing.folder
    for split in sorted(tables.keys() - set(splits.values())):
        logger.warning(
            "%s: the %d pictures of the split %r are not used; set validation_split or test_split to use them",
            *(folder, len(tables[split]), split),
        )
    in_a_split = {parts for table in tables.values() for parts in table}
    notes = {
        "pictures in no split": [parts for parts in pictures.files if parts not in in_a_split],
        "files that are no pictures": [parts for parts in pictures.others if len(parts) > 1],
        "folders without any file": [parts for parts in pictures.listing.empty if parts],
    }
    for what, found in notes.items():
        if found:
            more = ", ..." if len(found) > _MOST_NAMED else ""
            named = ", ".join(map(_shown, found[:_MOST_NAMED]))
            logger.warning("%s: %s are not read, %d in all: %s%s", folder, what, len(found), named, more)


def _shown(parts: _Parts) -> str:
    return repr("/".join(parts))
