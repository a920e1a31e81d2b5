"""Pipelines that come with the package are found by their names, and what the command is given is checked first."""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import LoopbackHub
from typer.testing import CliRunner

import pdiff_hub
from pdiff_hub import PDiffPipeline
from pdiff_hub.cli import app
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub import describe, kind_of, pull, push_folder
from pdiff_hub.recipes import EvaluateConfig
from pdiff_hub.records import RunFolder
from pdiff_hub.records.shipped import folder_or_shipped, hint, is_shipped, shipped
from pdiff_hub.runs import judging_numbers
from pdiff_hub.runs.judging import notes_on_fewer

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "pipelines" / "digits-mlp3"
WITH_WEIGHTS = sorted(file.parent.name for file in (ROOT / "pipelines").glob("*/model_index.json"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def said(*arguments: object) -> str:
    """The sentence by which the command refuses these arguments."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert isinstance(done.exception, ValueError | OSError), (done.output, done.exception)
    assert "\n" not in str(done.exception)
    return str(done.exception)


def shown(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_folder_goes_first_then_what_is_shipped_then_the_hub(elsewhere: Path) -> None:
    assert folder_or_shipped("digits-mlp3") == shipped()["digits-mlp3"] == SHIPPED and is_shipped(SHIPPED)
    pipe = PDiffPipeline.from_pretrained("digits-mlp3")
    assert pipe.folder == SHIPPED and pipe.hub_id is None
    assert (
        folder_or_shipped("user/digits-mlp3")
        is folder_or_shipped("digits-mpl3")
        is folder_or_shipped("pipelines/digits-mlp3")
        is None
    )
    (elsewhere / "digits-mlp3").mkdir()
    assert folder_or_shipped("digits-mlp3") == Path("digits-mlp3") and not is_shipped(Path("digits-mlp3"))
    with pytest.raises(FileNotFoundError, match=rf"^digits-mlp3 is no pipeline: .*of this name is in {SHIPPED}"):
        PDiffPipeline.from_pretrained("digits-mlp3")
    assert "holds no pipeline" in said("info", "digits-mlp3")


@pytest.mark.usefixtures("elsewhere")
def test_a_recipe_without_weights_and_names_that_nobody_knows() -> None:
    with pytest.raises(PdiffError, match=r"without weights: make them with `pdiff run digits-mlp3-seeds --output-dir"):
        PDiffPipeline.from_pretrained("digits-mlp3-seeds")
    for command in (["generate"], ["audit"], ["info"], ["evaluate"], ["fit", "--task", "digits"]):
        more = [] if command[0] in ("info", "audit") else ["--output-dir", "none"]
        assert "without weights" in said(*command, "digits-rotations", *more)
    with pytest.raises(PdiffError, match="shipped with this package, which has no revision 'v1'"):
        PDiffPipeline.from_pretrained("digits-mlp3", revision="v1")
    assert "the nearest one is 'digits-mlp3'; `pdiff list`" in said("info", "digits-mpl3")
    assert "the nearest one is 'digits-mlp3'" in said("generate", "digits-mlp", "--output-dir", "none")
    assert hint("user/name") == "" and "nearest" not in hint("qqqqq")
    assert "shipped without" not in said("push", "nothing-here", "user/x") and not Path("none").exists()


def test_an_audit_says_what_to_do_where_checkpoints_are_not_shipped(elsewhere: Path) -> None:
    assert "pdiff run digits-subsets --output-dir runs/digits-subsets" in said("audit", "digits-subsets")
    assert "--dataset" in said("evaluate", "digits-subsets", "--output-dir", "report")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.usefixtures("elsewhere")
def test_generate_and_info_by_name() -> None:
    shown("generate", "digits-mlp3", "--num-models", 2, "--seed", 3, "--num-inference-steps", 2, "--output-dir", "nets")
    text = shown("info", "nets")
    assert text.startswith("2 generated networks") and "8,970 numbers in 6 tensors" in text and "seed 3" in text
    (Path("nets") / "generated.json").unlink()
    assert "how it was made is not known" in shown("info", "nets")
    assert "pipeline: ParamLayout" in shown("info", "digits-mlp3")
    assert "--condition classes=" in shown("info", "digits-subsets")


@pytest.mark.usefixtures("elsewhere")
def test_push_by_name_and_a_published_network(hub: LoopbackHub) -> None:
    push_folder("digits-mlp3", "user/digits")
    assert kind_of("user/digits") == "pipeline"
    shown("generate", "digits-mlp3", "--seed", 3, "--num-inference-steps", 2, "--push-to-hub", "user/net")
    assert kind_of("user/net") == "network"
    text = shown("info", "user/net")
    assert text.startswith("generated network: mlp3, 8,970 numbers in 6 tensors") and "seed 3, index 0" in text
    assert pull("user/net", "net") == "network" and (Path("net") / "model.safetensors").is_file()
    assert describe("net") == describe("user/net")
    with pytest.raises(FileNotFoundError, match="the nearest one is 'digits-mlp3'"):
        kind_of("digits-mpl3")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "--num-models", "0"], "--num-models is 0, expected a whole number from 1 to 1,000,000."),
        (["generate", "--num-models=-3"], "--num-models is -3, expected"),
        (["generate", "--num-models", str(10**12)], f"--num-models is {10**12}, expected"),
        (["generate", "--num-inference-steps", "0"], "--num-inference-steps is 0, expected"),
        (["generate", "--guidance-scale", "nan"], "--guidance-scale is nan, expected a number of at least 0."),
        (["generate", "--guidance-scale=-1"], "--guidance-scale is -1.0, expected"),
        (["generate", "--guidance-scale", "2"], "takes no condition"),
        (["evaluate", "--num-models", "0"], "--num-models is 0, expected"),
        (["evaluate", "--baselines=-1"], "--baselines is -1, expected a whole number from 0"),
        (["audit", "--num-inference-steps", "0"], "--num-inference-steps is 0, expected"),
        (["fit", "--task", ""], "--task is '', expected a folder of images"),
        (["fit", "--task", "digits", "--num-models", "0"], "--num-models is 0, expected"),
    ],
)
def test_numbers_are_checked_before_any_work(arguments: list[str], sentence: str, elsewhere: Path) -> None:
    command, *options = arguments
    assert sentence in said(command, "digits-mlp3", "--output-dir", "out", *options)
    assert list(elsewhere.iterdir()) == []


def test_the_list_has_a_line_for_each_of_80_columns() -> None:
    table, _, notes = shown("list").partition("\n\n")
    lines = table.splitlines()
    assert max(map(len, [*lines, *notes.splitlines()])) <= 80
    assert {line.split()[0] for line in lines[1:]} == set(shipped())
    assert sorted(line.split()[0] for line in lines if " yes" in line) == WITH_WEIGHTS
    facts = {name: RunFolder(ROOT / "pipelines" / name).read_results() for name in WITH_WEIGHTS}
    for name, results in facts.items():
        assert results is not None
        took = sum(seconds or 0 for seconds in results.seconds.values())
        line = next(line for line in lines if line.split()[0] == name)
        assert line.endswith(f"{took:.0f} s" if took < 100 else f"{took / 60:.0f} min")


def test_the_version() -> None:
    assert shown("--version") == f"pdiff-hub {pdiff_hub.__version__}\n"


def test_misspelt_commands_and_options_name_the_nearest() -> None:
    for arguments, nearest in ((["generat"], "generate"), (["generate", "x", "--num-model", "2"], "--num-models")):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2 and nearest in done.output


def test_the_wheel_holds_whole_pipelines() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for target in ("wheel", "sdist"):
        included = project["tool"]["hatch"]["build"]["targets"][target]["include"]
        for name in (*WITH_WEIGHTS, "list.yaml"):
            assert f"/pipelines/{name}" in included, (target, name)
        recipes = [f"/pipelines/{name}/recipe.yaml" for name in shipped()]
        assert all(any(fnmatch(file, pattern) for pattern in included) for file in recipes)


def test_judged_as_in_its_run(tmp_path: Path) -> None:
    assert (judging_numbers(RunFolder(tmp_path), 1000).num_models, judging_numbers(RunFolder(tmp_path), 1000).seed) == (
        200,
        0,
    )
    shutil.copyfile(SHIPPED / "recipe.yaml", tmp_path / "recipe.yaml")
    recipe: dict[str, Any] = {"seed": 7, "generate": {"num_models": 30}, "evaluate": {"baselines": 5}}
    folder = RunFolder(tmp_path)
    folder.recipe.write_text(json.dumps({"task": "digits", "network": "mlp3", **recipe}))
    numbers = judging_numbers(folder, 1000)
    assert (numbers.num_models, numbers.seed, numbers.config.baselines) == (30, 7, 5)
    numbers = judging_numbers(folder, 1000, num_models=4, seed=1, baselines=0)
    assert (numbers.num_models, numbers.seed, numbers.config.baselines) == (4, 1, 0)
    folder.recipe.write_text(json.dumps({"task": "digits", "network": "mlp3", "generate": {"num_models": 10**9}}))
    with pytest.raises(PdiffError, match="asks for 1,000,000,000 networks to judge; say how many you want"):
        judging_numbers(folder, 1000)
    with pytest.raises(PdiffError, match="num_models is 0"):
        judging_numbers(folder, 1000, num_models=0)


def test_of_large_networks_fewer_are_judged_unless_somebody_says_how_many(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path), EvaluateConfig()
    assert [config.num_baselines(number) for number in (9_000, 1_342_177, 11_182_410, 10**9)] == [100, 100, 12, 8]
    assert [config.num_generated(200, number) for number in (9_000, 11_182_410, 16_710_310, 10**9)] == [200, 48, 32, 8]
    assert config.num_generated(5, 10**9) == 5 and replace(config, most_numbers=None).num_baselines(10**9) == 100
    numbers = judging_numbers(folder, 16_710_310)
    assert (numbers.num_models, numbers.config.num_baselines(16_710_310)) == (32, 8)
    numbers = judging_numbers(folder, 16_710_310, num_models=150, baselines=60)
    assert (numbers.num_models, numbers.config.num_baselines(16_710_310)) == (150, 60)


def test_the_report_says_that_there_are_fewer() -> None:
    config = EvaluateConfig()
    assert notes_on_fewer(config, 9_000, asked=200, made=200) == []
    of_generated, of_baselines = notes_on_fewer(config, 16_710_310, asked=200, made=32)
    assert of_generated.startswith("32 networks were generated, not 200, since these are large")
    assert of_baselines.startswith("Each baseline made 8 networks, not 100, since")
    assert len(notes_on_fewer(config, 600_000, asked=1000, made=894)) == 1
    assert notes_on_fewer(config, 9_000, asked=200, made=5) == []  # as many as somebody has said
    assert notes_on_fewer(replace(config, most_numbers=None), 10**9, asked=200, made=200) == []


def test_equal_by_name_and_by_folder() -> None:
    networks = [
        PDiffPipeline.from_pretrained(name)(1, 2, torch.Generator().manual_seed(0), output_type="params").params
        for name in ("digits-mlp3", SHIPPED)
    ]
    assert torch.equal(*networks)
