"""Whether imported networks were trained on images that were prepared in another way than the task prepares them.

Nothing in a file of weights says so, and nothing fails: the networks are only less accurate than they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import PickedRows, evenly_spaced
from pdiff_hub.prediction.predictions import SplitImages, evaluate
from pdiff_hub.tasks import Split, Task

logger = logging.getLogger(__name__)

_NETWORKS, _IMAGES = 3, 200  # enough for differences of so many points, and little work for large networks
_FAR, _BETTER = 0.10, 0.05
_USUAL: dict[str, str | dict[str, list[float]]] = {
    "zero_one": "zero_one",
    "{mean: 0.5, std: 0.5}": {"mean": [0.5], "std": [0.5]},
    "none": "none",
}


def warn_of_preprocessing(dataset: CheckpointDataset, network: nn.Module, task: Task) -> None:
    """Logs a warning if some of the networks do far worse on training images than their metadata say, or than they do
    with the images normalised in another usual way. The latter only if the task does not say how to normalise.
    """
    rows = PickedRows(dataset.rows, chosen := evenly_spaced(len(dataset), min(_NETWORKS, len(dataset))))
    index = evenly_spaced(len(task.train), min(_IMAGES, len(task.train)))
    some = Split(task.train.images_NCHW[index], task.train.labels_N[index])

    def accuracy(prepared: Task) -> float:
        images = SplitImages(prepared, some)
        found = evaluate(network, dataset.layout, dataset.frozen, rows, images, some.labels_N)
        return float(found.accuracy_B.mean())

    now = accuracy(task)
    others: dict[str, float] = {}
    if "normalize" not in task.spec:
        usual = {**_USUAL, **({"imagenet": "imagenet"} if task.in_channels == 3 else {})}
        others = {name: accuracy(task.normalized(option)) for name, option in usual.items()}
    best = max(others, key=lambda name: others[name], default="")
    known = _known_accuracy([dataset.metadata[row] for row in chosen])
    if best and others[best] > now + _BETTER:
        logger.warning(
            "of %d training images, the imported networks know %.1f %% as the task normalises them, and %.1f %% with "
            "task: {normalize: %s}: set it if they were trained so",
            *(len(index), 100 * now, 100 * others[best], best),
        )
    elif known is not None and now < known - _FAR:
        logger.warning(
            "the imported networks score far below the accuracy in their metadata (%.1f %% of %d training images, and "
            "%.1f %%); set task.normalize and image_size as they were in training, and check the order of classes",
            *(100 * now, len(index), 100 * known),
        )


def _known_accuracy(metadata: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean of the lowest accuracy that is known of each checkpoint: a fraction; None if some have none."""
    lowest = []
    for each in metadata:
        numbers = [
            value / 100 if value > 1 else value  # percent
            for name, value in each.items()
            if "acc" in name.lower() and isinstance(value, (int, float)) and 0 < value <= 100
        ]
        if not numbers:
            return None
        lowest.append(min(numbers))
    return sum(lowest) / len(lowest) if lowest else None
