"""The networks of held-out tasks travel with a family's data set, and are never part of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_sets import FORMS, assert_same, contents, dataset, use_small_files
from datasets import load_dataset
from loopback_hub import LoopbackHub
from no_waiting import without_pauses
from typer.testing import CliRunner

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.index import HELD_OUT
from pdiff_hub.cli import app
from pdiff_hub.collect.family import require_unseen
from pdiff_hub.travelling.conditioner import ConditionSpec

ID = "user/family"
RULE = "A subset and its complement are one task."


@pytest.fixture(autouse=True)
def quick(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)


def of_tasks(number: int, seed: int) -> CheckpointDataset:
    made = dataset(number, seed=seed)
    return CheckpointDataset(
        made.params_KP,
        made.layout,
        network=made.network,
        task=made.task,
        frozen=made.frozen,
        metadata=made.metadata,
        collect={"method": "family", "rule": RULE},
        conditions=ConditionSpec("classes", "bits", 3, ("a", "b", "c")),
        conditions_KD=(torch.rand(number, 3, generator=torch.Generator().manual_seed(seed)) < 0.5).float(),
    )


def family(folder: Path) -> tuple[CheckpointDataset, CheckpointDataset]:
    seen, unseen = of_tasks(7, 0), of_tasks(3, 1)
    unseen.frozen = seen.frozen
    seen.save_pretrained(folder)
    unseen.save_pretrained(folder / HELD_OUT)
    return CheckpointDataset.from_pretrained(folder), unseen


def with_runs(each: CheckpointDataset, run: str) -> CheckpointDataset:
    each.metadata = [{**row, "run": run} for row in each.metadata]
    return each


def held_out(seen: CheckpointDataset) -> CheckpointDataset:
    found = seen.held_out()
    assert found is not None
    return found


@pytest.mark.parametrize("form", FORMS)
def test_they_travel_with_the_set(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    use_small_files(form, monkeypatch)
    seen, unseen = family(tmp_path / "set")
    assert_same(held_out(seen), unseen)
    url = seen.push_to_hub(ID)
    back = CheckpointDataset.from_pretrained(ID)
    assert len(back) == 7  # they are no part of the set
    assert_same(back, seen)
    assert_same(held_out(back), unseen)
    conditions_KD, found_KD = unseen.conditions_KD, held_out(back).conditions_KD
    assert conditions_KD is not None and found_KD is not None and torch.equal(conditions_KD, found_KD)
    assert back.push_to_hub(ID) == url  # nothing is new
    back.push_to_hub("user/copy")
    assert_same(held_out(CheckpointDataset.from_pretrained("user/copy")), unseen)
    for name, rows in (("pulled", ()), ("all", ("--rows", ":"))):
        done = CliRunner().invoke(app, ["pull", ID, str(tmp_path / name), *rows])
        assert done.exit_code == 0, done.output
        assert contents(tmp_path / name) == contents(tmp_path / "set")


def test_the_card_and_the_viewer_show_them(hub: LoopbackHub, tmp_path: Path) -> None:
    seen, unseen = family(tmp_path / "set")
    seen.push_to_hub(ID)
    card = hub.files(ID, "dataset")["README.md"].decode()
    assert "a set of 3 more checkpoints" in card and RULE in card and f"path: {HELD_OUT}/data/train-*.parquet" in card
    shown = load_dataset(ID, HELD_OUT, split="test").with_format("numpy")
    assert len(shown) == 3 and len(load_dataset(ID, split="train")) == 7
    assert torch.equal(torch.from_numpy(shown[1]["params"]), unseen.params_KP[1])


def test_a_set_with_held_out_tasks_takes_no_more_rows(hub: LoopbackHub, tmp_path: Path) -> None:
    """They may be of the held-out tasks, and then what is called unseen was seen."""
    seen, unseen = family(tmp_path / "set")
    seen.push_to_hub(ID)
    head = hub.head(ID, "dataset")
    with pytest.raises(ValueError, match="holds networks of held-out tasks"):
        unseen.push_to_hub(ID, append=True)
    seen.push_to_hub(ID, append=True)  # these are in it already
    assert hub.head(ID, "dataset") == head


def test_a_later_set_without_them_leaves_none_behind(hub: LoopbackHub, tmp_path: Path) -> None:
    seen, unseen = family(tmp_path / "set")
    seen.push_to_hub(ID)
    assert_same(held_out(CheckpointDataset.from_pretrained(ID)[2:4]), unseen)
    dataset(4).push_to_hub(ID)
    assert not any(HELD_OUT in path for path in hub.files(ID, "dataset"))
    assert CheckpointDataset.from_pretrained(ID).held_out() is None and dataset(4).held_out() is None


def test_damaged_ones_are_not_pushed(hub: LoopbackHub, tmp_path: Path) -> None:
    seen, _ = family(tmp_path / "set")
    file = next((tmp_path / "set" / HELD_OUT / "data").iterdir())
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=file.name):
        seen.push_to_hub(ID)
    outside = tmp_path / "key"
    outside.write_text("private")
    file.unlink()
    file.symlink_to(outside)
    with pytest.raises(ValueError, match=file.name):
        seen.push_to_hub(ID)
    assert not any("/commit/" in request.path for request in hub.requests)


def test_what_was_seen_is_not_called_unseen(tmp_path: Path) -> None:
    seen, unseen = family(tmp_path / "set")
    seen.conditions_KD, unseen.conditions_KD = torch.eye(3)[[0, 1, 0, 1, 0, 1, 0]], torch.eye(3)[[2, 2, 1]]
    with pytest.raises(ValueError, match=r"held-out tasks of a family is .*expected tasks that are not seen"):
        require_unseen(seen, with_runs(unseen, "other"))
    unseen.conditions_KD = torch.eye(3)[[2, 2, 2]]
    require_unseen(seen, with_runs(unseen, "other"))
    with pytest.raises(
        ValueError, match="expected tasks that are not seen"
    ):  # a complement, which has the group's name
        require_unseen(seen, with_runs(unseen, "a"))
    unseen.conditions = None
    with pytest.raises(ValueError, match="do not go with the data set: conditions differ"):
        require_unseen(seen, unseen)
