"""The networks of held-out tasks travel with a family's data set, and are never part of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_sets import FORMS, assert_same, conditional, contents, dataset, use_small_files
from datasets import load_dataset
from loopback_hub import LoopbackHub
from no_waiting import without_pauses
from typer.testing import CliRunner

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.held_out import require_unseen
from pdiff_hub.checkpoints.index import HELD_OUT, INDEX_NAME
from pdiff_hub.cli import app
from pdiff_hub.travelling.conditioner import ConditionSpec

ID = "user/family"
RULE = "A subset and its complement are one task."


@pytest.fixture(autouse=True)
def quick(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)


def of_tasks(number: int, seed: int) -> CheckpointDataset:
    made = conditional(number, ConditionSpec("classes", "bits", 3, ("a", "b", "c")), seed)
    made.collect = {"method": "family", "rule": RULE}
    return made


def family(folder: Path) -> tuple[CheckpointDataset, CheckpointDataset]:
    seen, unseen = of_tasks(7, 0), of_tasks(3, 1)
    seen.conditions_KD, unseen.conditions_KD = torch.eye(3)[[0, 1, 0, 1, 0, 1, 0]], torch.eye(3)[[2, 2, 2]]
    unseen.frozen = seen.frozen
    with_runs(unseen, "other").save_pretrained(folder / HELD_OUT)
    seen.save_pretrained(folder)
    return CheckpointDataset.from_pretrained(folder), unseen


def with_runs(each: CheckpointDataset, run: str | None) -> CheckpointDataset:
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


@pytest.mark.parametrize("place", ["here", "on the Hub"])
def test_other_programs_see_which_are_held_out(hub: LoopbackHub, tmp_path: Path, place: str) -> None:
    seen, unseen = family(tmp_path / "set")
    seen.push_to_hub(ID)
    card = hub.files(ID, "dataset")["README.md"].decode()
    assert "a set of 3 more checkpoints" in card and RULE in card
    where = str(tmp_path / "set") if place == "here" else ID
    shown = load_dataset(where, HELD_OUT, split="test").with_format("numpy")
    assert len(shown) == 3 and len(load_dataset(where, split="train")) == 7
    assert torch.equal(torch.from_numpy(shown[1]["params"]), unseen.params_KP[1])


def test_sets_with_held_out_tasks_are_pushed_whole(hub: LoopbackHub, tmp_path: Path) -> None:
    """What is added may be of the held-out tasks, and then what is called unseen was seen."""
    seen, _ = family(tmp_path / "set")
    seen.push_to_hub(ID, append=True)  # there is none yet
    head = hub.head(ID, "dataset")
    with pytest.raises(ValueError, match="these checkpoints have networks of held-out tasks"):
        seen.push_to_hub(ID, append=True)
    with pytest.raises(ValueError, match="'user/family' has networks of held-out tasks"):
        of_tasks(2, 5).push_to_hub(ID, append=True)
    assert hub.head(ID, "dataset") == head


def test_parts_take_them_along_where_they_lie_here(hub: LoopbackHub, tmp_path: Path) -> None:
    seen, unseen = family(tmp_path / "set")
    seen.push_to_hub(ID)
    pulled = CheckpointDataset.from_pretrained(ID)
    for whole, carried in ((seen, True), (pulled, False)):
        assert_same(held_out(whole[2:4]), unseen)
        folder = tmp_path / str(carried)
        whole[2:4].save_pretrained(folder)
        assert (folder / HELD_OUT).exists() == carried
    assert_same(held_out(CheckpointDataset.from_pretrained(ID, rows=[1])), unseen)
    without = pulled.with_conditions("step")
    assert without.held_out() is None
    pulled.save_pretrained(tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(tmp_path / "set")


def test_a_later_set_without_them_leaves_none_behind(hub: LoopbackHub, tmp_path: Path) -> None:
    seen, _ = family(tmp_path / "set")
    seen.push_to_hub(ID)
    of_tasks(4, 0).push_to_hub(ID)
    assert not any(HELD_OUT in path for path in hub.files(ID, "dataset"))
    assert CheckpointDataset.from_pretrained(ID).held_out() is None
    with pytest.raises(ValueError, match="is of another data set, and would be taken for a part of this one"):
        dataset(4).save_pretrained(tmp_path / "set")
    assert_same(held_out(CheckpointDataset.from_pretrained(tmp_path / "set")), held_out(seen))


def test_they_come_from_where_the_set_was_opened(hub: LoopbackHub, tmp_path: Path) -> None:
    seen, unseen = family(tmp_path / "set")
    seen.push_to_hub(ID)
    back = CheckpointDataset.from_pretrained(ID, cache_dir=tmp_path / "cache")
    before = len(hub.requests)
    assert_same(held_out(back), unseen)  # a whole set was pulled with them
    assert len(hub.requests) == before
    part = CheckpointDataset.from_pretrained(ID, rows=[0], cache_dir=tmp_path / "another")
    assert_same(held_out(part), unseen)
    assert len(list((tmp_path / "another").rglob(INDEX_NAME))) == 2


def test_damaged_or_linked_ones_are_not_pushed(hub: LoopbackHub, tmp_path: Path) -> None:
    seen, _ = family(tmp_path / "set")
    place = tmp_path / "set" / HELD_OUT
    file = next((place / "data").iterdir())
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=file.name):
        seen.push_to_hub(ID)
    file.write_bytes(content)
    place.rename(tmp_path / "private")
    place.symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=f"{HELD_OUT} is a link to"):
        seen.push_to_hub(ID)
    assert not any("/commit/" in request.path for request in hub.requests)


def test_what_was_seen_is_not_called_unseen(tmp_path: Path) -> None:
    seen, unseen = family(tmp_path / "set")
    require_unseen(seen, unseen)
    with pytest.raises(ValueError, match="hold 'a', which the data set holds too"):  # its complement, say
        require_unseen(seen, with_runs(unseen, "a"))
    with pytest.raises(ValueError, match="do not name the group of their task"):
        require_unseen(seen, with_runs(unseen, None))
    with_runs(unseen, "other").conditions_KD = torch.eye(3)[[2, 2, 1]]
    with pytest.raises(ValueError, match=r"hold \(0.0, 1.0, 0.0\), which the data set holds too"):
        require_unseen(seen, unseen)
    unseen.collect = {**unseen.collect, "settings": {"seed": 3}}
    with pytest.raises(ValueError, match="settings of the collection differ"):
        require_unseen(seen, unseen)
    unseen.save_pretrained(tmp_path / "set" / HELD_OUT)
    with pytest.raises(ValueError, match="settings of the collection differ"):
        seen.held_out()
