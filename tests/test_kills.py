"""A command that is killed at any of its operations and started again ends as one that nobody stopped.

Same bytes (but for times), nothing left over, no trace. `tests/kills.py` tells what an operation is, and prints the
figures of a whole sweep, which takes some minutes for each command, as the slow tests do.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import COMMANDS, Sweep


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    with Sweep("collect-finetune", tmp_path) as sweep:
        assert sweep.count > 40
        assert sweep.kill_again_and_again(20) == []


def test_a_killed_push_goes_on(tmp_path: Path) -> None:
    with Sweep("push-set", tmp_path) as sweep:
        assert sweep.count > 15
        assert {number: found for number in range(1, sweep.count + 1, 4) if (found := sweep.kill_at(number))} == {}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_kills_at_every_operation(command: str, tmp_path: Path) -> None:
    with Sweep(command, tmp_path) as sweep:
        numbers = range(1, sweep.count + 1)
        assert {number: found for number in numbers if (found := sweep.kill_at(number))} == {}
