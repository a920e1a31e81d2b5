"""The options of a task, with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TaskOptions:
    """What a task can say beside its data set.

    Sizes are a number of images or a fraction. If the data have a split of that name, a part of it is taken; if not, it
    is cut off the training split. Classes keep their proportions.

    Attributes:
        dataset: a short name (digits, fashion-mnist, ...), a Hub id (owner/name), or a folder: of pictures
            (CLASS/PICTURE or SPLIT/CLASS/PICTURE), of IDX files, or of what `datasets.load_dataset` reads.
        train_size (at least 1, or a fraction above 0 and below 1): null: all that is left.
        validation_size (as train_size): null: the data's own split if `validation_split` names one, else a tenth; of
            digits a fifth of what is not test.
        test_size (as train_size): null: the data's own split; of digits 0.4.
        image_size (at least 1): side in pixels; images are centre-cropped to squares and resized. null: as they are.
        normalize ("zero_one", "none", "imagenet", or a mapping of mean and std): how pixels become inputs. zero_one: 0
            to 1, as of torchvision's ToTensor; none: 0 to 255; imagenet: less the mean and over the standard deviation
            of ImageNet; `{mean: [...], std: [...]}`: the same with these, of each channel. null: mean and standard
            deviation of the training split. Networks that were trained elsewhere need what they were trained with.
        augment (a mapping of flip and crop_padding): `flip: true` mirrors training images at random, `crop_padding: 4`
            shifts them by up to 4 pixels. null: neither.
        seed (at least 0, at most 4294967295): of the splits; null: the recipe's.
        config_name: of a data set that `datasets.load_dataset` reads: which of its configurations.
        revision: of a data set on the Hub: a branch, tag or commit.
        image_column: needed only if several columns hold images.
        label_column: needed only if several columns can be the label.
        train_split: null: train.
        validation_split: null: none, and validation images are cut off the training split.
        test_split: null: test, if there is one.
    """

    dataset: str
    train_size: float | None = None
    validation_size: float | None = None
    test_size: float | None = None
    image_size: int | None = None
    normalize: str | Mapping[str, Any] | None = None
    augment: Mapping[str, Any] | None = None
    seed: int | None = None
    config_name: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None


TASK_OPTIONS = tuple(each.name for each in fields(TaskOptions))
