"""`pdiff run` and its parts, end to end on small settings: they write all results, resume, and give clear errors."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from browser import Browser
from safetensors.torch import load_file
from typer.testing import CliRunner

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.cli import app, main
from pdiff_hub.errors import PdiffError
from pdiff_hub.recipes import load_recipe, recipe_from_dict
from pdiff_hub.records import FIGURES, REQUEST_FIGURES
from pdiff_hub.runs import stages

SMALL = [
    "network.hidden=[8, 8]",
    "collect.num_checkpoints=12",
    "collect.epochs=2",
    "collect.save_every=2",
    "diffusion.steps=30",
    "diffusion.widths=[16]",
    "diffusion.batch_size=16",
    "generate.num_models=4",
    "generate.num_inference_steps=5",
    "evaluate.baselines=6",
    "evaluate.fine_tune_steps=2",
]
DRAWN = [stem for stem in FIGURES if stem not in REQUEST_FIGURES]
OVERRIDES = [part for option in SMALL for part in ("--override", option)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "pipeline"
    result = CliRunner().invoke(app, ["run", "digits-mlp3", "--output-dir", str(folder), *OVERRIDES])
    assert result.exit_code == 0, result.output
    assert "Accuracy on test" in result.output and "copy and average" in result.output
    return folder


def test_run_leaves_what_the_contract_says(run_dir: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    assert results["task"] == "digits" and results["network"] == "mlp3" and results["select"] == "all"
    assert (results["num_checkpoints"], results["num_generated"]) == (12, 4)
    for method in ("original", "generated", "ensemble"):
        assert set(results["accuracy"][method]) == {"best", "mean", "median", "std"}
        assert all(0 <= value <= 1 for value in results["accuracy"][method].values())
    assert set(results["similarity"]) == {
        "original_original",
        "generated_generated",
        "original_generated",
        "original_generated_max",
    }
    assert {"nearest_l2_generated", "nearest_l2_original", "deviation_r2", "spread_ratio"} <= set(results["audit"])
    assert set(results["seconds"]) == {"collect", "train_autoencoder", "train_diffusion", "generate", "evaluate"}
    assert all(value is not None for value in results["seconds"].values())
    assert results["name"] == "digits-mlp3" and results["figures"] == list(DRAWN)
    assert results["recipe"]["collect"]["num_checkpoints"] == 12
    assert results["task_dataset"] is results["base_model"] is results["checkpoints"] is None
    assert set(results["frontier"]["versus"]) == {row["method"] for row in results["methods"].values()} - {"generated"}
    assert set(results["methods"]) == set(results["accuracy"]) and "noise_raw_0.12" in results["methods"]
    for name in (
        *(f"{stem}.{suffix}" for stem in DRAWN for suffix in ("png", "svg")),
        "README.md",
        "recipe.yaml",
        "report.html",
        "networks.json",
    ):
        assert (run_dir / name).stat().st_size > 0
    assert len(CheckpointDataset.from_pretrained(run_dir / "checkpoints")) == 12
    pipe = PDiffPipeline.from_pretrained(run_dir)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.build_network(pipe(1).state_dicts[0])(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_generate_and_evaluate_and_info(run_dir: Path, tmp_path: Path) -> None:
    networks, report = tmp_path / "networks", tmp_path / "report"
    command = ["generate", str(run_dir), "--num-models", "3", "--seed", "7", "--output-dir", str(networks)]
    assert CliRunner().invoke(app, command).exit_code == 0
    files = sorted(networks.glob("*.safetensors"))
    assert json.loads((networks / "generated.json").read_text())["seed"] == 7
    assert [file.name for file in files] == [f"model-{i:05d}.safetensors" for i in range(3)]
    pipe = PDiffPipeline.from_pretrained(run_dir)
    pipe.build_network().load_state_dict(load_file(files[2]), strict=True)
    failed = CliRunner().invoke(app, ["generate", str(run_dir), "--num-models", "2", "--output-dir", str(networks)])
    assert "model-00002.safetensors is there already" in str(failed.exception)
    assert json.loads((networks / "generated.json").read_text())["num_models"] == 3
    again = tmp_path / "again"
    assert CliRunner().invoke(app, [*command[:-1], str(again)]).exit_code == 0
    assert files[1].read_bytes() == (again / files[1].name).read_bytes()
    result = CliRunner().invoke(
        app,
        [
            "evaluate",
            str(run_dir),
            "--dataset",
            str(run_dir / "checkpoints"),
            "--output-dir",
            str(report),
            "--num-models",
            "2",
            "--baselines",
            "0",
        ],
    )
    assert result.exit_code == 0, result.output
    assert json.loads((report / "results.json").read_text())["num_generated"] == 2
    for folder in (run_dir, run_dir / "checkpoints"):
        assert "num_params=" in CliRunner().invoke(app, ["info", str(folder)]).output


def test_audit_with_checkpoints_and_without(run_dir: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    result = CliRunner().invoke(app, ["audit", str(run_dir), "--output-dir", str(report), "--num-models", "5"])
    assert result.exit_code == 0 and "At the same novelty" in " ".join(result.output.split()), result.output
    results = json.loads((report / "results.json").read_text())
    assert results["num_generated"] == 5 and results["audit"]["deviation_r2"] is not None
    assert (report / "report.html").stat().st_size > 10_000

    gone = tmp_path / "gone"
    shutil.copytree(run_dir, gone)
    shutil.rmtree(gone / "checkpoints")
    failed = CliRunner().invoke(app, ["audit", str(gone), "--output-dir", str(tmp_path / "none")])
    assert isinstance(failed.exception, ValueError) and "is gone" in str(failed.exception)
    assert "--metric accuracy" in str(failed.exception) and not (tmp_path / "none").exists()
    for folder in (run_dir, gone):
        failed = CliRunner().invoke(app, ["audit", str(folder), "--metric", "frontiers"])
        assert "nearest known one is 'frontier'" in str(failed.exception)
    failed = CliRunner().invoke(app, ["audit", str(gone), "--metric", "accuracy", "--metric", "frontier"])
    assert "frontier cannot be measured without it" in str(failed.exception)
    alone = [
        "audit",
        str(gone),
        "--metric",
        "accuracy",
        "--metric",
        "ensembles",
        "--metric",
        "generated_similarity",
        "--num-models",
        "5",
    ]
    result = CliRunner().invoke(app, [*alone, "--output-dir", str(tmp_path / "alone")])
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "alone" / "results.json").read_text())
    assert results["recipe"]["network"]["hidden"] == [8, 8] and results["figures"] == []
    assert set(results["accuracy"]) == {"generated"} and results["ensembles"]["generated"]["sizes"] == [1, 2, 5]
    assert (tmp_path / "alone" / "report.html").exists()
    assert f"among the generated networks: {results['similarity']['generated_generated']:.3f}" in " ".join(
        result.output.split()
    )

    other = tmp_path / "other"
    assert (
        CliRunner()
        .invoke(
            app,
            [
                "collect",
                "digits-mlp3",
                "--output-dir",
                str(other),
                "--override",
                "network.hidden=[4, 4]",
                "--override",
                "collect.num_checkpoints=3",
                "--override",
                "collect.epochs=1",
            ],
        )
        .exit_code
        == 0
    )
    failed = CliRunner().invoke(app, ["audit", str(run_dir), "--dataset", str(other)])
    assert isinstance(failed.exception, ValueError) and "different layouts" in str(failed.exception)


def test_the_report_opens_in_a_browser(run_dir: Path, browser: Browser) -> None:
    report = run_dir / "report.html"
    browser.open(report.as_uri())
    assert browser.requests() == [report.as_uri()] and browser.messages() == [] and browser.overflow() == 0
    loaded = browser.evaluate("Array.from(document.images, each => each.complete && each.naturalWidth > 0)")
    assert loaded == [True] * len(DRAWN)
    assert browser.evaluate("document.querySelectorAll('table').length") == 7
    text = browser.evaluate("document.body.innerText")
    assert "At the same novelty of errors, p-diff" in text and "At the same distance, p-diff" in text
    browser.open(report.as_uri(), width=400)
    assert browser.overflow() == 0


def test_killed_runs_go_on(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = ["from pdiff_hub.cli import main; main()", "run", "digits-mlp3", "--output-dir", str(folder), *OVERRIDES]
    for mark in ("checkpoints/dataset.json", "training/latents.safetensors"):
        process = processes.start(*command)
        while process.is_alive() and not (folder / mark).exists():
            time.sleep(0.002)
        process.kill()
        process.join()
    again = CliRunner().invoke(app, command[1:])
    assert again.exit_code == 0 and "Going on with the run in" in again.output, again.output
    assert json.loads((folder / "results.json").read_text())["seconds"]["collect"] is None
    for file in ("unet/diffusion_pytorch_model.safetensors", "generated/params.safetensors"):
        first, second = load_file(run_dir / file), load_file(folder / file)
        assert all(torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-4) for name in first)


def test_the_seconds_of_a_stage_that_was_stopped_are_not_known(tmp_path: Path) -> None:
    file = tmp_path / "seconds.json"
    clock = stages._Clock(file)
    assert (clock.time("collect", lambda: 3, begun=True), clock.time("generate", lambda: 4)) == (3, 4)
    assert clock.seconds["collect"] is None and clock.seconds["generate"] is not None
    again = stages._Clock(file)
    assert again.time("generate", lambda: 5, begun=True) == 5  # the seconds of an earlier run are kept
    assert again.seconds == clock.seconds == json.loads(file.read_text())
    file.write_text('{"collect": []}')
    with pytest.raises(PdiffError, match=r"seconds\.json: 'collect' is wrong .*remove it; only times are lost"):
        stages._Clock(file)


def test_another_recipe_in_the_same_folder_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(
        sys, "argv", ["pdiff", "run", "digits-mlp3", "--output-dir", str(run_dir), *OVERRIDES, "--override", "seed=5"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 1 and "seed was 0 and is 5" in error and "Traceback" not in error


def test_a_recipe_that_failed_before_anything_was_made_may_be_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", "digits-mlp3", "--output-dir", str(tmp_path / "run"), *OVERRIDES, "--override"]
    failed = CliRunner().invoke(app, [*command, "network.name=mlpp3"])
    assert "unknown network: 'mlpp3'" in str(failed.exception)
    monkeypatch.setattr(stages, "collect", lambda *_, **__: pytest.fail("collecting began"))
    with pytest.raises(pytest.fail.Exception, match="collecting began"):
        stages.run(load_recipe("digits-mlp3", SMALL), tmp_path / "run")


@pytest.mark.parametrize("device", ["cudaa", "cuda:99"])
def test_a_device_that_is_not_there_is_named_before_anything_is_written(device: str, tmp_path: Path) -> None:
    failed = CliRunner().invoke(app, ["run", "digits-mlp3", "--output-dir", str(tmp_path / "run"), "--device", device])
    assert isinstance(failed.exception, PdiffError) and f"--device {device} cannot be used here" in str(
        failed.exception
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": -1}, r"task is -1, expected a text .* or a mapping"),
        ({"network": True}, r"network is True, expected a text .* or a mapping"),
        ({"select": [1]}, r"select\.0 is 1, expected a text"),
        ({"select": True}, "select is True, expected a text"),
        ({"collect": {"method": ["finetune"]}}, "method"),
    ],
)
def test_values_of_another_type_are_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        stages.run(recipe_from_dict({"task": "digits", "network": "mlp3", **changes}), tmp_path)


def test_nothing_that_others_wrote_is_written_over(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "recipe.yaml"
    mine.parent.mkdir()
    mine.write_text("task: digits  # my own\nnetwork: mlp3\n")
    with pytest.raises(PdiffError, match="what you wrote would be lost; give another output folder"):
        stages.run(load_recipe(mine), mine.parent)
    assert mine.read_text() == "task: digits  # my own\nnetwork: mlp3\n"
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(PdiffError, match="a run would write its card over it"):
        stages.run(load_recipe(mine), tmp_path)


def test_help_has_an_example_each() -> None:
    for name in ("run", "collect", "train", "generate", "evaluate", "audit", "reproduce", "push", "pull", "info"):
        assert f"Example: pdiff {name}" in CliRunner().invoke(app, [name, "--help"]).output
