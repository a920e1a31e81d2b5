"""Splits of tasks are disjoint, exact and fixed by the seed. Only the training split sets how inputs are normalised."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdiff_hub.tasks import Split, Task, load_task
from pdiff_hub.tasks.splits import choose_splits

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def digits() -> Task:
    return load_task("digits")


def splits_of(task: Task) -> list[Split]:
    return [task.train, task.validation, task.test]


# Splits


def test_digits(digits: Task) -> None:
    assert (digits.num_classes, digits.in_channels, digits.image_size) == (10, 1, 8)
    assert [len(split) for split in splits_of(digits)] == [862, 216, 719]
    assert digits.spec["resolved"]["sizes"] == {"train": 862, "validation": 216, "test": 719}
    for split in splits_of(digits):
        assert split.images_NCHW.dtype == torch.uint8 and split.labels_N.dtype == torch.int64
        assert split.images_NCHW.is_contiguous()
        assert split.labels_N.bincount().min() >= len(split) // 11, "stratified"


def test_digits_keep_every_image_and_value(digits: Task) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = torch.cat([split.images_NCHW.flatten(1) for split in splits_of(digits)]).numpy()
    labels = torch.cat([split.labels_N for split in splits_of(digits)]).numpy()
    together = np.column_stack([rows / 15, labels])
    expected = np.column_stack([bunch.data, bunch.target])
    assert np.array_equal(np.unique(together, axis=0), np.unique(expected, axis=0))
    assert len(together) == len(expected)


def test_same_seed_same_splits_and_a_resolved_spec_reloads(digits: Task) -> None:
    spec = json.loads(json.dumps(digits.spec))
    again = load_task(spec, seed=7)  # a spec with its own seed keeps it
    assert again.spec == digits.spec
    for first, second in zip(splits_of(digits), splits_of(again), strict=True):
        assert torch.equal(first.images_NCHW, second.images_NCHW) and torch.equal(first.labels_N, second.labels_N)
    other = load_task("digits", seed=7)
    assert other.spec["seed"] == 7
    assert other.spec["resolved"]["fingerprint"] != digits.spec["resolved"]["fingerprint"]
    assert not torch.equal(other.test.images_NCHW, digits.test.images_NCHW)
    spec["train_size"] = 100
    with pytest.raises(ValueError, match="not the one that this task was made with"):
        load_task(spec)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=4, max_size=80),
    test_size=st.one_of(st.integers(1, 2), st.floats(0.05, 0.5)),
    validation_size=st.one_of(st.integers(1, 1), st.floats(0.05, 0.5)),
    seed=st.integers(0, 2**32 - 1),
)
def test_carved_splits_partition_the_data(
    labels: list[int], test_size: float, validation_size: float, seed: int
) -> None:
    labels_N = np.array(labels)
    options = {"test_size": test_size, "validation_size": validation_size, "train_size": None, "seed": seed}
    chosen = choose_splits({"train": labels_N}, options)
    together = np.concatenate([index for _, index in chosen.values()])
    assert sorted(together) == list(range(len(labels)))
    test = chosen["test"][1]
    assert len(test) == (test_size if isinstance(test_size, int) else max(1, round(test_size * len(labels))))
    for number in range(4):
        share = (labels_N == number).sum() * len(test) / len(labels)
        assert abs((labels_N[test] == number).sum() - share) < 1
    again = choose_splits({"train": labels_N}, options)
    assert all(np.array_equal(chosen[name][1], again[name][1]) for name in SPLITS)


def test_a_subset_for_training_leaves_the_other_splits_alone(digits: Task) -> None:
    small = load_task({"dataset": "digits", "train_size": 50})
    assert len(small.train) == 50
    assert torch.equal(small.test.images_NCHW, digits.test.images_NCHW)
    assert torch.equal(small.validation.images_NCHW, digits.validation.images_NCHW)


# Inputs and augmentation


def test_inputs_are_normalised_by_the_training_split(digits: Task) -> None:
    inputs = digits.inputs(digits.train)
    assert inputs.dtype == torch.float32 and inputs.shape == (862, 1, 8, 8)
    assert inputs.mean().abs() < 1e-5 and (inputs.std(unbiased=False) - 1).abs() < 1e-5
    pixels = digits.train.images_NCHW.double() / 255
    assert digits.mean[0] == pytest.approx(pixels.mean().item()) == digits.spec["resolved"]["mean"][0]
    assert digits.std[0] == pytest.approx(pixels.std(unbiased=False).item())
    index = torch.tensor([5, 3, 3])
    assert torch.equal(digits.inputs(digits.train, index), inputs[index])
    assert torch.equal(digits.inputs(digits.train, slice(2, 9)), inputs[2:9])


def test_no_augmentation_by_default(digits: Task) -> None:
    images = digits.inputs(digits.train, slice(0, 4))
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert digits.augment(images, generator) is images
    assert torch.equal(generator.get_state(), state)


def test_augmented_images_are_shifts_and_mirror_images() -> None:
    task = load_task({"dataset": "digits", "augment": {"flip": True, "crop_padding": 2}})
    images = task.inputs(task.train, slice(0, 64))
    augmented = task.augment(images, torch.Generator().manual_seed(1))
    assert torch.equal(augmented, task.augment(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(augmented, task.augment(images, torch.Generator().manual_seed(2)))
    black = -task.mean[0] / task.std[0]
    seen = set()
    for image, result in zip(images, augmented, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2), value=black)
        possible = {
            (dy, dx, flip): (padded.flip(2) if flip else padded)[:, dy : dy + 8, dx : dx + 8]
            for dy in range(5)
            for dx in range(5)
            for flip in (False, True)
        }
        matches = [key for key, candidate in possible.items() if torch.equal(candidate, result)]
        assert matches
        seen.add(matches[0])
    assert len(seen) > 15 and {flip for *_, flip in seen} == {False, True}


def test_to_device_moves_the_splits_alone(digits: Task) -> None:
    moved = digits.to("meta")
    assert {split.images_NCHW.device.type for split in splits_of(moved)} == {"meta"}
    assert moved.spec is digits.spec and digits.train.images_NCHW.device.type == "cpu"


# Bad specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "nearest known one is 'digits'"),
        ("fashion_mnist", "nearest known one is 'fashion-mnist'"),
        ({}, "needs a 'dataset'"),
        ({"dataset": "digits", "tain_size": 1}, "nearest known one is 'train_size'"),
        ({"dataset": "digits", "label_column": "label"}, "leave out label_column"),
        ({"dataset": "digits", "test_size": 1797}, "no more than 1796"),
        ({"dataset": "digits", "train_size": 1.5}, "a fraction in"),
        ({"dataset": "digits", "train_size": True}, "a fraction in"),
        ({"dataset": "digits", "image_size": 0}, "image_size of a task must be an integer from 1"),
        ({"dataset": "digits", "augment": {"flop": True}}, "nearest known one is 'flip'"),
        ({"dataset": "digits", "augment": {"flip": 1}}, "flip must be true or false"),
        ({"dataset": "digits", "augment": {"crop_padding": -1}}, "crop_padding"),
        ({"dataset": "digits", "augment": True}, "augment must be a mapping"),
        ({"dataset": "digits", "seed": -1}, "seed of a task"),
        ({"dataset": "digits", "seed": 2**32}, "below"),
        ({"dataset": "./nowhere", "label_column": 3}, "label_column of a task must be a string"),
        ({"dataset": "digits", "resolved": 3}, "what load_task recorded"),
    ],
)
def test_bad_specs(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task(spec)
