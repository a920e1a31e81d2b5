"""A finished run is seen to be finished, and only if nothing has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pdiff_hub.cli import app
from pdiff_hub.cli.finished import remember, said_before


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "mine" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text("seed: 1\n")
    folder = tmp_path / "run"
    (folder / "unet").mkdir(parents=True)
    (folder / "training").mkdir()
    (folder / "unet" / "weights").write_text("w")
    (folder / "results.json").write_text("{}")
    (tmp_path / "images" / "cats").mkdir(parents=True)
    (tmp_path / "images" / "cats" / "0.png").write_text("p")
    remember(folder, "mine", ["a.b=1"], recipe, "It does not copy.", Path("images"))
    return folder


def test_the_same_command_finds_what_was_said(run_folder: Path) -> None:
    (run_folder / ".pdiff-lock").write_text("")  # comes and goes
    assert said_before(run_folder, "mine", ["a.b=1"]) == "It does not copy."


def _touch(folder: Path) -> None:
    os.utime(folder / "unet" / "weights", ns=(0, 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "results.json").unlink(),
        lambda folder: (folder / "unet" / "weights").write_text("v"),
        _touch,
        lambda folder: (folder.parent / "images" / "cats" / "1.png").write_text("p"),
        lambda folder: (folder.parent / "images" / "cats" / "0.png").unlink(),
        lambda folder: (folder / "more").write_text(""),
        lambda folder: (folder.parent / "mine" / "recipe.yaml").write_text("seed: 2\n"),
        lambda folder: (folder / "training" / "finished.json").write_text("[1]"),
        lambda folder: (folder / "training" / "finished.json").write_text("[" * 9999),
        lambda folder: os.chdir(folder),
    ],
)
def test_any_change_goes_the_usual_way(run_folder: Path, change: Callable[[Path], object]) -> None:
    change(run_folder)
    assert said_before(run_folder, "mine", ["a.b=1"]) is None


def test_another_command_is_another_run(run_folder: Path) -> None:
    assert said_before(run_folder, "mine", []) is None and said_before(run_folder, "other", ["a.b=1"]) is None
    (run_folder.parent / "shipped").mkdir()
    assert said_before(run_folder.parent / "nowhere", "mine", ["a.b=1"]) is None


def test_it_is_seen_before_torch_is_loaded() -> None:
    code = "import sys; import pdiff_hub.cli.finished; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_says_so_and_does_nothing(run_folder: Path) -> None:
    result = CliRunner().invoke(app, ["run", "mine", "--output-dir", "run", "--override", "a.b=1"])
    assert result.exit_code == 0
    assert result.stdout.startswith("It does not copy.\n") and "finished before" in result.stdout
    before = said_before(run_folder, "mine", ["a.b=1"])
    assert before is not None  # nothing was written
