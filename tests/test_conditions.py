"""Conditions: what a request means, and that they stay with their checkpoints in memory, on disk and on the Hub."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sets import DIGITS, FORMS, assert_same, conditional, contents, dataset, use_small_files
from hypothesis import given
from hypothesis import strategies as st
from loopback_hub import LoopbackHub
from no_waiting import without_pauses

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.card import render_dataset_card
from pdiff_hub.checkpoints.index import read_index
from pdiff_hub.travelling.conditioner import ConditionSpec

ANGLE = ConditionSpec("angle", "scalar", 2, low=(-30.0,), high=(90.0,), period=360.0)
ACCURACY = ConditionSpec("validation_accuracy", "scalar", 1, low=(0.5,), high=(0.9,))
COLOUR = ConditionSpec("colour", "class", 3, ("red", "green", "blue"))
PLACE = ConditionSpec("place", "vector", 2, ("x", "y"), low=(0.0, -1.0), high=(2.0, -1.0))
TEXT = ConditionSpec("prompt", "text", 4, ("an-encoder",))
SPECS = [DIGITS, ANGLE, ACCURACY, COLOUR, PLACE, TEXT]


def assert_same_conditions(left: CheckpointDataset, right: CheckpointDataset) -> None:
    assert_same(left, right)
    assert left.conditions == right.conditions
    assert left.conditions_KD is not None and right.conditions_KD is not None
    assert torch.equal(left.conditions_KD.nan_to_num(-7.0), right.conditions_KD.nan_to_num(-7.0))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_a_spec_comes_back_from_json(spec: ConditionSpec) -> None:
    assert ConditionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("spec", "value", "numbers"),
    [
        (DIGITS, [0, 3, "7"], [1, 0, 0, 1, 0, 0, 0, 1, 0, 0]),
        (DIGITS, "0, 3,7", [1, 0, 0, 1, 0, 0, 0, 1, 0, 0]),
        (DIGITS, [], [0] * 10),
        (COLOUR, "green", [0, 1, 0]),
        (COLOUR, 2, [0, 0, 1]),
        (ACCURACY, 0.75, [0.75]),
        (ACCURACY, "0.75", [0.75]),
        (ANGLE, 90, [1, 0]),
        (ANGLE, 450.0, [1, 0]),
        (PLACE, [1, -1], [1, -1]),
        (PLACE, "1,-1", [1, -1]),
        (TEXT, [1, 2, 3, 4], [1, 2, 3, 4]),
    ],
)
def test_what_a_request_means(spec: ConditionSpec, value: Any, numbers: list[float]) -> None:
    assert torch.allclose(spec.encode(value), torch.tensor(numbers, dtype=torch.float32), atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        (DIGITS, [0, 12], "unknown classes: 12"),
        (DIGITS, [-1], "unknown classes: -1"),
        (DIGITS, [False, True], "unknown classes: False"),
        (COLOUR, "grene", "nearest known one is 'green'"),
        (COLOUR, ["red", "blue"], "expected one of red, green, blue"),
        (ACCURACY, "high", "is 'high', expected 1 finite number"),
        (ACCURACY, math.nan, "1 finite number"),
        (ACCURACY, [0.1, 0.2], "1 finite number"),
        (PLACE, [1, 2, 3], "2 finite number"),
        (TEXT, "a network for cats", "that an-encoder gives for the text"),
    ],
)
def test_a_request_that_means_nothing(spec: ConditionSpec, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec.encode(value)


@pytest.mark.parametrize(
    "parts",
    [
        {"kind": "sound"},
        {"size": 0},
        {"size": True},
        {"names": ("0", "1")},
        {"names": ("0",) * 10},
        {"names": tuple(range(10))},
        {"low": (0.0,), "high": (1.0,)},
        {"kind": "scalar", "size": 1, "names": (), "low": (0.0,), "high": (math.nan,)},
        {"kind": "scalar", "size": 2, "names": (), "low": (0.0,), "high": (1.0,)},
        {"kind": "scalar", "size": 1, "names": (), "low": (1.0,), "high": (0.0,)},
        {"kind": "scalar", "size": 1, "names": (), "low": (0.0,), "high": (1e300,)},
        {"kind": "scalar", "size": 1, "names": (), "low": (0.0,), "high": (10**400,)},
        {"period": 360.0},
        {"name": ""},
        {"extra": 1},
        {"names": 3},
        {"kind": {}},
        {"low": 1.0, "high": 2.0},
    ],
)
def test_a_spec_whose_parts_do_not_fit(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="describes no condition"):
        ConditionSpec.from_dict({**DIGITS.to_dict(), **parts})


@given(st.floats(-1000, 1000))
def test_angles_are_outside_only_where_they_are(angle: float) -> None:
    turned = (angle + 30) % 360 - 30
    outside = ANGLE.outside(ANGLE.encode(angle)[None])
    if min(abs(turned - edge) for edge in (-30, 90, 330)) > 0.1:
        assert bool(outside) == (not -30 <= turned <= 90)


def test_outside_names_the_number() -> None:
    assert PLACE.outside(torch.tensor([[1.0, -1.0]])) == ""
    assert "condition 'place' (y) is 0, outside" in PLACE.outside(torch.tensor([[1.0, -1.0], [1.0, 0.0]]))
    assert "0.95" in ACCURACY.outside(torch.tensor([[0.95]]))
    assert "condition 'classes' (3) is 0.5, and the generator has seen 0 and 1 only" in DIGITS.outside(
        torch.eye(10)[3:4] / 2
    )
    assert DIGITS.outside(torch.ones(1, 10)) == "" and TEXT.outside(torch.ones(1, 4)) == ""


def test_channels_are_of_size_one_and_none_is_zero() -> None:
    numbers = torch.stack([DIGITS.encode([0, 9]), torch.full((10,), math.nan)])
    assert DIGITS.channels(numbers).tolist() == [[1.0, *[-1.0] * 8, 1.0, 1.0], [0.0] * 11]
    assert torch.allclose(ACCURACY.channels(torch.tensor([[0.5], [0.7], [0.9]]))[:, 0], torch.tensor([-1.0, 0, 1]))
    # A number that never differed is not divided by its range.
    assert PLACE.channels(torch.tensor([[2.0, -1.0]])).tolist() == [[1.0, 0.0, 1.0]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, spec: ConditionSpec) -> None:
    use_small_files(form, monkeypatch)
    original = conditional(7, spec)
    assert original.conditions_KD is not None
    original.conditions_KD[3] = math.nan  # no condition
    original.save_pretrained(tmp_path / "set")
    back = CheckpointDataset.from_pretrained(tmp_path / "set")
    assert_same_conditions(back, original)
    rows = CheckpointDataset.from_pretrained(tmp_path / "set", rows=[5, 3])
    assert_same_conditions(rows, original.select_rows([5, 3]))
    back.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "set")
    assert "## What can be asked" in render_dataset_card(read_index(tmp_path / "set"), "user/set")


def test_load_dataset_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    original = conditional(3)
    original.save_pretrained(tmp_path / "set")
    rows = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert original.conditions_KD is not None and rows["condition"][:] == original.conditions_KD.tolist()


def test_a_set_without_them_is_what_it_was(tmp_path: Path) -> None:
    dataset().save_pretrained(tmp_path)
    assert "condition" not in json.dumps(read_index(tmp_path))


def test_on_the_hub_they_grow_with_the_set(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)
    first, second = conditional(3, ACCURACY), conditional(2, ACCURACY, seed=1)
    wider = ConditionSpec("validation_accuracy", "scalar", 1, low=(0.2,), high=(0.6,))
    second.conditions = wider
    first.push_to_hub("user/set")
    second.push_to_hub("user/set", append=True)
    back = CheckpointDataset.from_pretrained("user/set")
    assert first.conditions_KD is not None and second.conditions_KD is not None and back.conditions_KD is not None
    assert torch.equal(back.conditions_KD, torch.cat([first.conditions_KD, second.conditions_KD]))
    assert back.conditions is not None and (back.conditions.low, back.conditions.high) == ((0.2,), (0.9,))
    for other in (conditional(2, COLOUR, seed=2), dataset(2, seed=2)):
        with pytest.raises(ValueError, match="conditions: 'validation_accuracy' "):
            other.push_to_hub("user/set", append=True)


def test_from_metadata(tmp_path: Path) -> None:
    plain = dataset(4)
    asked = plain.with_conditions("train_loss")
    assert asked.conditions == ConditionSpec("train_loss", "scalar", 1, low=(0.125,), high=(0.5,))
    assert asked.conditions_KD is not None and asked.conditions_KD[:, 0].tolist() == pytest.approx(
        [0.5, 0.25, 1 / 6, 0.125]
    )
    assert plain.conditions is None
    named = plain.with_conditions("note")
    assert named.conditions is not None and named.conditions.names == ("n0", "n1", "n2", "n3")
    asked.save_pretrained(tmp_path)
    assert_same_conditions(CheckpointDataset.from_pretrained(tmp_path), asked)
    some = dataset(4)
    some.metadata[2]["train_loss"] = None
    assert some.with_conditions("train_loss").conditions_KD.isnan().flatten().tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("column", "message"),
    [("run", "1 different value"), ("lernrate", "unknown metadata column"), ("seed", "1 different")],
)
def test_a_column_that_tells_nothing(column: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset().with_conditions(column)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (torch.zeros(4, 9), r"\[4, 9\], expected float \[4, 10\]"),
        (torch.zeros(3, 10), "expected float"),
        (torch.zeros(4, 10, dtype=torch.int64), "int64"),
        (torch.zeros(4, 10).index_fill_(1, torch.tensor([2]), math.nan), "checkpoint 0: its condition"),
        (torch.full((4, 10), math.inf), "checkpoint 0: its condition"),
        (None, "go together"),
    ],
)
def test_conditions_that_do_not_fit(numbers: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conditional(4, conditions_KD=numbers)
