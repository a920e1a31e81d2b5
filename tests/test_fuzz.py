"""Damaged and lying folders open with right values or end in one sentence (`tests/fuzz.py`, as `make fuzz` runs it)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def fuzz(mutations: int, seed: int) -> str:
    """The fuzzer's table. A process of its own, which forks: one that tests share has threads."""
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py"))]
    numbers = ["--mutations", str(mutations), "--seed", str(seed)]
    done = subprocess.run([*command, *numbers], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_thousand_mutations() -> None:
    assert "IDX files" in fuzz(1000, seed=0)


@pytest.mark.slow
def test_ten_thousand_other_mutations() -> None:
    fuzz(10_000, seed=1)
