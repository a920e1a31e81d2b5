"""The notebook and the lines of docs/notebook.md run to their ends, as they are."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pdiff_hub import PDiffTrainer
from pdiff_hub.recipes import EvaluateConfig
from pdiff_hub.training.config import DiffusionConfig

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "notebooks" / "own_network.ipynb"
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "notebook.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other defaults, under which a run takes seconds, in an empty folder."""
    for kind, options in (
        (DiffusionConfig, {"steps": 20, "widths": (16,), "batch_size": 16, "log_every": 5}),
        (EvaluateConfig, {"baselines": 0}),
    ):
        names = [*inspect.signature(kind).parameters]
        defaults = {**{each.name: each.default for each in inspect.signature(kind).parameters.values()}, **options}
        monkeypatch.setattr(kind.__init__, "__defaults__", tuple(defaults[name] for name in names))
    monkeypatch.chdir(tmp_path)


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    return ["".join(cell["source"]) for cell in code]


@pytest.mark.usefixtures("quick")
def test_the_first_lines_of_the_page_are_twelve_and_do_all() -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 12
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(BLOCKS[0], space)
    trainer = space["trainer"]
    assert isinstance(trainer, PDiffTrainer) and trainer.results is not None
    assert len(space["networks"]) == 5 and len(trainer.collect()) == 20 and Path("runs/own/report.html").is_file()
    # The page's other blocks go on from there.
    for block in BLOCKS[1:]:
        exec(block, space)
    assert len(space["out"].state_dicts) == 3 and space["args"].collect.num_checkpoints == 50
    PDiffTrainer(space["network"], space["task"], trainer.args, callbacks=[space["StopWhenGood"]()])


@pytest.mark.usefixtures("quick")
def test_the_notebook_runs() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells():
        exec(cell, space)
    assert space["losses"].of_step and space["trainer"].results is not None


@pytest.mark.slow
def test_the_first_lines_of_the_page_with_every_default(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKS[0]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "At the same novelty of errors" in done.stdout, done.stderr
