"""A command that is killed at any of its file operations and started again ends as one that nobody stopped.

Same bytes (but for times), nothing left over, no trace. `tests/kills.py` tells what a file operation is, and prints the
figures of a whole sweep. PDIFF_KILLS says how many kills each command gets; the default takes some ten minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kills import COMMANDS, Sweep


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    sweep = Sweep("collect-finetune", tmp_path)
    assert sweep.count > 40
    assert sweep.kill_again_and_again(20) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_kills_at_file_operations(command: str, tmp_path: Path) -> None:
    sweep = Sweep(command, tmp_path)
    kills = min(sweep.count, int(os.environ.get("PDIFF_KILLS", "12")))
    numbers = {1 + round(each * (sweep.count - 1) / max(1, kills - 1)) for each in range(kills)}
    assert {number: found for number in sorted(numbers) if (found := sweep.kill_at(number))} == {}
