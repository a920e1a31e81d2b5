"""The notebooks of examples/ are well-formed, hold no outputs, and run as they stand, from the folder they lie in."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SHARE = "share.ipynb"


def cells(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return found


def code(file: Path) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in cells(file) if cell["cell_type"] == "code")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_well_formed_and_clean(file: Path) -> None:
    """What nbformat 4.5 asks for, so far as we use it."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    names = [cell["id"] for cell in cells(file)]
    assert len(set(names)) == len(names)
    for cell in cells(file):
        assert isinstance(cell["metadata"], dict) and cell["cell_type"] in ("markdown", "code")
        assert all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "clear the outputs"
            ast.parse("".join(cell["source"]))
    assert "".join(cells(file)[0]["source"]).startswith("# ")


def run(file: Path, tmp_path: Path, environment: dict[str, str]) -> str:
    program = tmp_path / "cells.py"
    program.write_text(code(file), encoding="utf-8")
    search = os.pathsep.join(filter(None, [str(FOLDER.parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(program)],
        cwd=file.parent,
        env={**os.environ, "PYTHONPATH": search, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ask_and_fit(tmp_path: Path) -> None:
    lines = run(FOLDER / "ask_and_fit.ipynb", tmp_path, {}).splitlines()
    always = float(lines[-3].split()[-1].rstrip("%")) / 100
    asked, fitted = (float(line.split()[-1]) for line in lines[-2:])
    assert asked > always + 0.2 and fitted > always + 0.05


def test_memorised_or_not(tmp_path: Path) -> None:
    said = run(FOLDER / "memorised_or_not.ipynb", tmp_path, {})
    assert "CheckpointDataset(num_checkpoints=200" in said and "spread" in said and "fresh" in said


def test_share(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        said = run(FOLDER / SHARE, tmp_path, hub.environment(tmp_path / "home"))
        assert "the same networks: True" in said and "num_checkpoints=3" in said
        assert {name for _, name in hub.repos} == {
            f"{hub.user}/{name}" for name in ("digits-mlp3", "digits-mlp3-checkpoints", "one-network")
        }
