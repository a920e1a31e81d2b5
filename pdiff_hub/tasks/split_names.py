"""Which names of folders and files mean a split. Only names at the top count, and only if the rest fits them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from pdiff_hub.errors import PdiffError, unknown_name

_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}
# As `datasets` reads them: "train", "train-images", "my_train"; not "trains".
_LIKE = re.compile(rf"(?:.*[-._ 0-9])?({'|'.join(SPLIT_OF)})(?:[-._ 0-9].*)?", re.IGNORECASE | re.DOTALL)


def split_named(name: str) -> str | None:
    """The split, "train", "validation" or "test", that a name means; None if it may mean anything else."""
    exact = SPLIT_OF.get(name.lower())
    found = None if exact else _LIKE.fullmatch(name)
    return SPLIT_OF[found[1].lower()] if found else exact


def name_splits(tables: Collection[str], options: Mapping[str, Any], location: str) -> dict[str, str]:
    """The data's own names for "train" and, if they exist, "validation" and "test". All names are different."""
    splits = {"train": options.get("train_split", "train")}
    if "validation_split" in options:
        splits["validation"] = options["validation_split"]
    if "test_split" in options or ("test" in tables and "test" not in splits.values()):
        splits["test"] = options.get("test_split", "test")
    for role, split in splits.items():
        if split not in tables:
            raise unknown_name(f"{role}_split of {location}", split, tables)
    if len(set(splits.values())) < len(splits):
        raise PdiffError(f"{location}: train, validation and test must be different splits, found {splits}")
    if "test" not in splits and options["test_size"] is None:
        raise PdiffError(
            f"{location} has no split 'test', only {', '.join(map(repr, tables))}; set test_split to one of them, or "
            "test_size to cut a part (such as 0.2) off the training split"
        )
    return splits
