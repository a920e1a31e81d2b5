"""A command that is killed at any of its operations and started again ends as one that nobody stopped.

Same bytes (but for times), nothing left over, no trace. `tests/kills.py` tells what an operation is, and prints the
figures of a whole sweep, which takes some minutes for each command, as the slow tests do.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kills import COMMANDS, Command, Sweep, differences


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    with Sweep("collect-finetune", tmp_path) as sweep:
        assert sweep.count > 40
        assert sweep.kill_again_and_again(20) == []


def test_a_killed_push_goes_on(tmp_path: Path) -> None:
    with Sweep("push-set", tmp_path) as sweep:
        assert sweep.count > 15
        assert {number: found for number in range(1, sweep.count + 1, 4) if (found := sweep.kill_at(number))} == {}


def test_only_times_may_differ(tmp_path: Path) -> None:
    def folder(name: str, results: dict[str, object], picture: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        (tmp_path / name / "picture.png").write_text(picture)
        return tmp_path / name

    one = folder("one", {"accuracy": {"mean": 0.5}, "seconds": {"train": 3}}, "a")
    assert [*differences(one, folder("later", {"accuracy": {"mean": 0.5}, "seconds": {"train": None}}, "a"))] == []
    assert [*differences(one, folder("worse", {"accuracy": {"mean": 0.4}, "seconds": {"train": 3}}, "a"))] == [
        "results.json"
    ]
    other = folder("other", {"accuracy": {"mean": 0.5}}, "b")
    (other / "more").touch()
    assert sorted(differences(one, other)) == ["more", "picture.png"]


def test_a_command_that_fails_before_any_kill_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "wrong", Command(("info", "nothing-here")))
    with pytest.raises(AssertionError, match="pdiff: "):
        Sweep("wrong", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_kills_at_every_operation(command: str, tmp_path: Path) -> None:
    with Sweep(command, tmp_path) as sweep:
        numbers = range(1, sweep.count + 1)
        assert {number: found for number in numbers if (found := sweep.kill_at(number))} == {}
