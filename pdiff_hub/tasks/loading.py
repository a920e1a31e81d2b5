"""`load_task`: reads the images of a spec, and splits them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pdiff_hub.errors import PdiffError
from pdiff_hub.tasks.images import same_channels
from pdiff_hub.tasks.listing import local_folder
from pdiff_hub.tasks.memory import is_in_memory
from pdiff_hub.tasks.named_folders import remember
from pdiff_hub.tasks.normalization import statistics_of
from pdiff_hub.tasks.opening import open_source
from pdiff_hub.tasks.source import Source
from pdiff_hub.tasks.spec import RESOLVED, TASK_NAMES, complete_spec
from pdiff_hub.tasks.splits import choose_splits, fingerprint
from pdiff_hub.tasks.task import Split, Task

SPLITS = ("train", "validation", "test")


def load_task(spec: str | Mapping[str, Any], *, seed: int = 0) -> Task:
    """Reads a data set once and splits it.

    Args:
        spec: a data set, or `{"dataset": DATASET, **options}`. DATASET is one of

            - a short name: `digits` (scikit-learn's 8x8 digits, needs no network connection), or on the Hub
              `fashion-mnist`, `mnist`, `cifar10`, `cifar100`, `stl10`, `flowers102`, `pets`, `food101`, `imagenet-1k`.
              `fashion-mnist` is read from Debian's package dataset-fashion-mnist if that is installed. `flowers102`
              brings a validation split; `food101` and `imagenet-1k` use their labelled validation images for test.
            - a Hub id (`owner/name`).
            - a local folder: of pictures, as CLASS/PICTURE or SPLIT/CLASS/PICTURE with splits called train, test or
              validation (val); with the four IDX files of MNIST or Fashion-MNIST, plain or .gz; or in any format that
              `datasets.load_dataset` reads.

            The other options are those of `TaskOptions`; `pdiff options task` lists them.

            A spec from `Task.spec` gives the same task again, or an error if the data have changed.
        seed: of the splits, if the spec gives none; 0 to 2**32 - 1.

    Raises:
        ValueError: an unknown data set, option, column or split, a size out of range, damaged files, images of
            different sizes without `image_size`, data that differ from those of a resolved spec.
        FileNotFoundError: a folder or Hub id that does not exist or cannot be reached.
    """
    options, recorded = complete_spec(spec, seed)
    named = options["dataset"] not in TASK_NAMES and not is_in_memory(options["dataset"])
    if named and (folder := local_folder(options["dataset"])) is not None:
        remember(folder)
    source = open_source(options)
    chosen = choose_splits(source.labels, options)
    mark = fingerprint(source.labels, chosen)
    if recorded is not None and recorded.get("fingerprint") != mark:
        raise PdiffError(
            f"the data set {options['dataset']!r} read from {source.description} is not the one that this task was "
            f"made with: its splits or labels differ (fingerprint {mark[:12]}, recorded "
            f"{str(recorded.get('fingerprint'))[:12]}); use the same data and options, or drop {RESOLVED!r} of the spec"
        )
    train, validation, test = _read_splits(source, chosen, options["image_size"])
    num_channels, image_size = train.images_NCHW.shape[1:3]
    if train.images_NCHW.is_floating_point():  # given in Python: they are what the networks get
        if options.setdefault("normalize", "none") != "none":
            raise PdiffError(
                f"normalize is {options['normalize']!r}, and the images are float numbers, which the networks get as "
                "they are; normalise them yourself, or give uint8 images from 0 to 255"
            )
    else:
        mean, std = _channel_statistics(train)
    if "normalize" in options:
        mean, std = statistics_of(options["normalize"], num_channels)
    resolved = {
        "source": source.description,
        **source.found,
        "sizes": {name: len(split) for name, split in zip(SPLITS, (train, validation, test), strict=True)},
        "fingerprint": mark,
        "in_channels": num_channels,
        "image_size": image_size,
        "num_classes": len(source.classes),
        "classes": list(source.classes),
        "mean": list(mean),
        "std": list(std),
    }
    return Task(
        spec={**options, RESOLVED: resolved},
        num_classes=len(source.classes),
        in_channels=num_channels,
        image_size=image_size,
        mean=mean,
        std=std,
        train=train,
        validation=validation,
        test=test,
    )


def _read_splits(
    source: Source, chosen: dict[str, tuple[str, np.ndarray]], image_size: int | None
) -> tuple[Split, Split, Split]:
    images = {name: source.read(*chosen[name], image_size) for name in SPLITS}
    sizes = {name: array.shape[2:] for name, array in images.items()}
    if len(set(sizes.values())) > 1:
        raise PdiffError(f"the splits of {source.description} have images of different sizes {sizes}; set image_size")
    images = same_channels(images)
    splits = []
    for name in SPLITS:
        origin, index = chosen[name]
        labels_N = torch.from_numpy(source.labels[origin][index])
        splits.append(Split(torch.from_numpy(images[name]), labels_N))
    return splits[0], splits[1], splits[2]


def _channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, for pixels in [0, 1]. Exact: computed from counts of the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel, images_NHW in enumerate(split.images_NCHW.unbind(1)):
        counts = torch.bincount(images_NHW.flatten(), minlength=256).double()
        weights = counts / counts.sum()
        average = (weights * values).sum()
        deviation = (weights * (values - average) ** 2).sum().sqrt().item()
        if deviation == 0:
            raise PdiffError(
                f"channel {channel} of all {len(split)} training images has one value only; nothing to learn"
            )
        mean.append(average.item())
        std.append(deviation)
    return tuple(mean), tuple(std)
