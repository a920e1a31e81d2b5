"""`Source`: the labels of all images of a data set, and a way to read only the images that a split needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pdiff_hub.errors import PdiffError


@dataclass(frozen=True)
class Source:
    """Holds the labels of all images. The images themselves are read later, and only those that a split needs.

    Attributes:
        description: where the data are, for people.
        labels: int64 [N], 0..len(classes)-1, for "train" and, if the data have them, "validation" and "test".
        classes: the names of the classes, in the order of the labels.
        read: (split, indices, image_size or None) -> uint8 (or float32) [N, C, S, S].
        found: the splits and columns that are read, if there was a choice.
    """

    description: str
    labels: dict[str, np.ndarray]
    classes: Sequence[str]
    read: Callable[[str, np.ndarray, int | None], np.ndarray]
    found: dict[str, str] = field(default_factory=dict)


def number_classes(values: Mapping[str, np.ndarray], what: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Turns whole numbers or strings into labels from 0. The sorted values of the training split are the classes.

    Raises:
        ValueError: another split has a class that the training split lacks.
    """
    classes = np.unique(values["train"])
    labels = {}
    for split, values_N in values.items():
        strangers = np.setdiff1d(values_N, classes)
        if len(strangers):
            raise PdiffError(
                f"{what}: the {split} split has the label {strangers[0].item()!r}, which no training image has"
            )
        labels[split] = np.searchsorted(classes, values_N).astype(np.int64)
    return labels, [str(value) for value in classes]
