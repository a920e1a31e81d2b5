"""The options of a task's spec, their defaults, and the data sets that have a short name."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from pdiff_hub.errors import PdiffError, require_known, unknown_name
from pdiff_hub.tasks.listing import local_folder
from pdiff_hub.tasks.normalization import checked_normalize

RESOLVED = "resolved"
SIZES = ("train_size", "validation_size", "test_size")
HUB_OPTIONS = (
    "config_name",
    "revision",
    "image_column",
    "label_column",
    "train_split",
    "validation_split",
    "test_split",
)
_OPTIONS = ("dataset", *HUB_OPTIONS, *SIZES, "image_size", "normalize", "augment", "seed")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_AUGMENT = {"flip": False, "crop_padding": 0}

# Short names of data sets on the Hub, with the options that their columns and splits need. A spec's own options win.
HUB_DATASETS: dict[str, dict[str, str]] = {
    "fashion-mnist": {"id": "zalando-datasets/fashion_mnist"},
    "mnist": {"id": "ylecun/mnist"},
    "cifar10": {"id": "uoft-cs/cifar10"},
    "cifar100": {"id": "uoft-cs/cifar100", "label_column": "fine_label"},
    "stl10": {"id": "tanganke/stl10"},
    "flowers102": {"id": "dpdl-benchmark/oxford_flowers102", "validation_split": "validation"},
    "pets": {"id": "timm/oxford-iiit-pet", "label_column": "label"},  # the breed; label_cat_dog is the species
    "food101": {"id": "ethz/food101", "test_split": "validation"},
    # Gated: needs a login. Its split "test" has no labels.
    "imagenet-1k": {"id": "ILSVRC/imagenet-1k", "test_split": "validation"},
}
TASK_NAMES = ("digits", *HUB_DATASETS)
DIGITS_SCALE = 15  # scikit-learn's values run from 0 (black) to 16. Times 15 they fill most of a byte and stay exact.


def described_pixels(spec: Mapping[str, Any]) -> str:
    """What the raw images of a task are, before they are normalised, for people who prepare images of their own."""
    text = "0 (black) to 255"
    if spec.get("dataset") == "digits":
        text += f"; of scikit-learn's digits, whose values are 0 to 16, {DIGITS_SCALE} times the value"
    if (side := spec.get("image_size")) is not None:
        text += f"; of another size: cropped to a square at the centre, resized to {side} x {side} (bilinear)"
    return text


def is_hub_id(dataset: str) -> bool:
    """Whether `dataset` is written as an id on the Hub."""
    return _HUB_ID.fullmatch(dataset) is not None


def hub_id_of(task: Mapping[str, Any]) -> str | None:
    """The Hub id of a task's data, from the task's complete spec; None if the data are not on the Hub."""
    dataset = task["dataset"]
    # A data set's source is its id if it was read from the Hub, and an absolute path if it was read from a folder.
    if is_hub_id(dataset) and task.get(RESOLVED, {}).get("source") == dataset:
        return str(dataset)
    return HUB_DATASETS.get(dataset, {}).get("id")


def complete_spec(spec: str | Mapping[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The options with their defaults, and what an earlier `load_task` recorded (None in a user's own spec).

    `HUB_OPTIONS` that neither the spec nor `HUB_DATASETS` gives stay absent: whether they apply depends on where the
    data are found. So does `normalize`, whose default the training split gives.
    """
    if not isinstance(spec, (str, Mapping)):
        raise PdiffError(f"a task is the name of a data set or a mapping with a 'dataset', found {spec!r}")
    given: dict[str, Any] = {"dataset": spec} if isinstance(spec, str) else copy.deepcopy(dict(spec))
    recorded = given.pop(RESOLVED, None)
    if recorded is not None and not isinstance(recorded, dict):
        raise PdiffError(f"{RESOLVED!r} of a task is what load_task recorded, a dict; found {recorded!r}")
    require_known("task option", given, _OPTIONS)
    dataset = given.get("dataset")
    if not isinstance(dataset, str) or not dataset:
        raise PdiffError(f"a task needs a 'dataset', for example {{'dataset': 'digits'}}; found {spec!r}")
    if dataset not in TASK_NAMES and "/" not in dataset and local_folder(dataset) is None:
        raise PdiffError(
            f"{unknown_name('task', dataset, TASK_NAMES)}; a data set on the Hub is written owner/name, "
            "a local folder must exist"
        )
    options: dict[str, Any] = {"dataset": dataset}
    known = HUB_DATASETS.get(dataset, {})
    for option in HUB_OPTIONS:
        value = known.get(option) if given.get(option) is None else given[option]
        if value is not None:
            options[option] = _string(option, value)
    for option in SIZES:
        options[option] = _size(option, given.get(option))
    if options["validation_size"] is None and "validation_split" not in options:
        options["validation_size"] = 0.2 if dataset == "digits" else 0.1
    if options["test_size"] is None and dataset == "digits":
        options["test_size"] = 0.4  # 719 images: one test image is 0.14 points
    options["image_size"] = given.get("image_size")
    if options["image_size"] is not None:
        _whole_number("image_size", options["image_size"], 1)
    if given.get("normalize") is not None:
        options["normalize"] = checked_normalize(given["normalize"])
    options["augment"] = _augment(given.get("augment"))
    options["seed"] = _whole_number("seed", given.get("seed", seed), 0)
    if options["seed"] >= 2**32:
        raise PdiffError(f"the seed of a task must be below 2**32, found {options['seed']}")
    return options, recorded


def _augment(value: Any) -> dict[str, Any]:
    if value is None:
        return dict(_AUGMENT)
    if not isinstance(value, dict):
        raise PdiffError(f"augment must be a mapping such as {{'flip': true, 'crop_padding': 4}}, found {value!r}")
    require_known("augment option", value, _AUGMENT)
    augment = {**_AUGMENT, **value}
    if not isinstance(augment["flip"], bool):
        raise PdiffError(f"augment: flip must be true or false, found {augment['flip']!r}")
    _whole_number("augment: crop_padding", augment["crop_padding"], 0)
    return augment


def _string(option: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise PdiffError(f"{option} of a task must be a string, found {value!r}")
    return value


def _size(option: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, float) and 0 < value < 1:
        return value
    if type(value) is int and value >= 1:
        return value
    raise PdiffError(
        f"{option} must be a number of images (an integer from 1) or a fraction in (0, 1), found {value!r}"
    )


def _whole_number(option: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise PdiffError(f"{option} of a task must be an integer from {least}, found {value!r}")
    return value
