"""Functions run only where the user says so: a name out of a recipe's file, a data set or a pipeline is not called."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pdiff_hub import CheckpointDataset
from pdiff_hub.cli import app
from pdiff_hub.errors import PdiffError, printable, printable_lines
from pdiff_hub.networks import factory
from pdiff_hub.recipes import functions_of, load_recipe, recipe_from_dict, require_trust
from pdiff_hub.runs import stages
from pdiff_hub.runs.collecting import collect

SHIPPED = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"
SMALL = {
    "collect": {"num_checkpoints": 8, "epochs": 1, "save_every": 1},
    "diffusion": {"steps": 10, "widths": [16], "batch_size": 8},
    "generate": {"num_models": 2, "num_inference_steps": 2},
    "evaluate": {"baselines": 0},
}
MODULE = """
from torch import nn
open({mark!r}, "a").close()
def make(in_channels, image_size, num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, width), nn.Linear(width, num_classes))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a recipe, and a module with the function that it names, which leaves a mark if imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(factory, "_searched", [])
    monkeypatch.delitem(sys.modules, "strangers_networks", raising=False)
    (tmp_path / "strangers_networks.py").write_text(MODULE.format(mark=str(tmp_path / "imported")))
    recipe = {"task": "digits", "network": {"name": "strangers_networks:make", "width": 5}, **SMALL}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return tmp_path


@pytest.mark.parametrize("command", ["run", "collect"])
def test_a_recipe_calls_nothing_without_the_flag(command: str, folder: Path) -> None:
    failed = CliRunner().invoke(app, [command, ".", "--output-dir", "out"])
    assert isinstance(failed.exception, PdiffError)
    assert "names 'strangers_networks:make' for its network" in str(failed.exception)
    assert "give --trust-remote-code" in str(failed.exception)
    assert not (folder / "imported").exists() and not (folder / "out").exists()
    assert str(folder) not in sys.path and "" not in sys.path


def test_with_the_flag_it_does_and_the_current_folder_is_off_the_path_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = [*sys.path]
    done = CliRunner().invoke(app, ["run", ".", "--output-dir", "out", "--trust-remote-code"])
    assert done.exit_code == 0, done.exception
    assert (folder / "imported").exists() and sys.path == path
    card = (folder / "out" / "README.md").read_text()
    assert "--trust-remote-code\n```\n\nIt calls `strangers_networks:make`: read that code" in card
    # Nothing of what the run has left is called by anybody else without the flag (for the user: test_made_here.py).
    monkeypatch.setenv("PDIFF_HUB_STATE", str(folder / "of another user"))
    for arguments in (["audit", "out"], ["evaluate", "out", "--dataset", "out/checkpoints", "--output-dir", "report"]):
        failed = CliRunner().invoke(app, [*arguments, "--num-models", "2"])
        assert "which is not allowed here because the spec came from" in str(failed.exception)
    (folder / "imported").unlink()
    sys.modules.pop("strangers_networks")
    for arguments in (["generate", "out", "--output-dir", "networks"], ["info", "out"], ["info", "out/checkpoints"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    trained = CliRunner().invoke(app, ["train", ".", "--dataset", "out/checkpoints", "--output-dir", "trained"])
    assert trained.exit_code == 0, trained.exception
    assert not (folder / "imported").exists()


@pytest.mark.parametrize("key", ["network", "family"])
def test_names_given_in_python_need_no_flag_and_those_of_files_do(key: str, folder: Path) -> None:
    data = {"task": "digits", "network": "mlp3", "collect": {"method": "family"}}
    if key == "network":
        data["network"] = "os:system"
    else:
        data["collect"] = {"method": "family", "family": "os:system"}
    (folder / "recipe.yaml").write_text(json.dumps(data))
    found = load_recipe(folder)
    assert functions_of(found) == {key: "os:system"}
    for stage in (collect, stages.run):
        with pytest.raises(PdiffError, match=rf"recipe.yaml names 'os:system' for its {key}"):
            stage(found, folder / "out")
    require_trust(found, trust_remote_code=True)
    require_trust(recipe_from_dict(data), trust_remote_code=False)
    require_trust(load_recipe("digits-mlp3"), trust_remote_code=False)


def mark(file: str, **options: object) -> object:
    """What somebody else's data set names; it leaves a mark."""
    Path(file).touch()
    raise AssertionError("called")


def test_what_a_found_data_set_or_pipeline_names_is_not_called(tmp_path: Path) -> None:
    recipe = recipe_from_dict({"task": "digits", "network": {"name": f"{__name__}:own_network"}, **SMALL})
    hostile = {"name": f"{__name__}:mark", "file": str(tmp_path / "ran"), "passed_from_task": []}
    hostile |= {"in_channels": 1, "image_size": 8, "num_classes": 10}
    stages.run(recipe, tmp_path / "run")
    for place in ("checkpoints/dataset.json", "autoencoder/config.json"):
        found = tmp_path / place.partition("/")[0]
        shutil.copytree(tmp_path / "run", found)
        index = json.loads((found / place).read_text())
        index["network"] = hostile
        (found / place).write_text(json.dumps(index))
        with pytest.raises(PdiffError, match=r"network\.file was .*network\.name was '.*mark' and is '.*own_network'"):
            stages.run(recipe, found)
    dataset = CheckpointDataset.from_pretrained(tmp_path / "checkpoints" / "checkpoints")
    with pytest.raises(PdiffError, match=r"network\.name was '.*mark' and is '.*own_network'"):
        stages.run(recipe, tmp_path / "new", dataset=dataset)
    plain = dataclasses.replace(recipe, network="mlp3")
    with pytest.raises(PdiffError, match=r"'.*mark' is built by calling that function, which is not allowed|other"):
        stages.run(plain, tmp_path / "newer", dataset=dataset)
    assert not (tmp_path / "ran").exists()


def own_network(in_channels: int, image_size: int, num_classes: int) -> object:
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))


@pytest.mark.parametrize(
    "way", [["-m", "pdiff_hub.cli"], ["-c", "from pdiff_hub.cli import main; main()"]], ids=("m", "c")
)
def test_nothing_in_the_current_folder_is_imported(way: list[str], tmp_path: Path) -> None:
    """-c stands for the installed command, which is a script of another folder (so PYTHONSAFEPATH)."""
    planted = [
        "chardet",
        "colorama",
        "cuda",
        "brotlicffi",
        "bottleneck",
        "typing",
        "__future__",
        "torch",
        "yaml",
        "rich",
    ]
    for name in planted:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / name)!r} + '.ran', 'w').close()\n")
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, **({"PYTHONSAFEPATH": "1"} if way[0] == "-c" else {})}
    done = subprocess.run(
        [sys.executable, *way, "info", str(SHIPPED)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "pipeline: " in done.stdout, done.stderr
    assert sorted(file.name for file in tmp_path.glob("*.ran")) == []


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    text = "a\x1b]0;owned\x07b\u202ec\ud800\u3000é\nd\te"
    assert printable(text) == "a\\x1b]0;owned\\x07b\\u202ec\\ud800\u3000é d\\te"
    assert printable_lines(text) == "a\\x1b]0;owned\\x07b\\u202ec\\ud800\u3000é\nd\\te"
