"""`pdiff fit`: from labelled images to files of networks and a sentence; what does not fit is named first."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_family import digits, spec
from typer.testing import CliRunner

from pdiff_hub import PDiffPipeline
from pdiff_hub.cli import app
from pdiff_hub.collect.family import FamilyConfig, collect_family
from pdiff_hub.networks import build_network
from pdiff_hub.runs.fitting import _answers, _drawn, fit_networks
from pdiff_hub.tasks import Split
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline

TASK = "{dataset: digits}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of networks that say whether a digit is one of a few."""
    place = tmp_path_factory.mktemp("fit")
    config = FamilyConfig(num_tasks=40, seeds_per_task=2, held_out_tasks=0, epochs=8)
    dataset = collect_family(digits(), spec(), "all", config, place / "set", seed=0)
    train_pipeline(dataset, place / "pipe", AutoencoderConfig(num_components=24), DiffusionConfig(steps=10))
    return place / "pipe"


def command(folder: Path, *options: str) -> str:
    given = ["fit", str(folder), *options]
    return CliRunner().invoke(app, given, catch_exceptions=False).output


def accuracy(file: Path, yes: set[int]) -> float:
    network, task = build_network(spec()).eval(), digits()
    network.load_state_dict(load_file(file), strict=True)
    labels = torch.tensor([label in yes for label in task.test.labels_N.tolist()])
    with torch.no_grad():
        return float((network(task.inputs(task.test)).argmax(dim=1) == labels).double().mean())


def test_by_command(folder: Path, tmp_path: Path) -> None:
    options = ("--task", TASK, "--classes", "0, 3,7", "--output-dir", str(tmp_path), "--num-labels", "60")
    said = command(folder, *options, "--num-models", "3")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{index}.safetensors" for index in range(3)]
    percents = [float(each) / 100 for each in re.findall(r"(\d+\.\d+)%", said)]
    found = [accuracy(file, {0, 3, 7}) for file in files]
    assert percents[:2] == pytest.approx([found[0], sum(found) / 3], abs=1e-4) and percents[0] > 0.85
    assert "Fitted to 60 labels and judged on 719 test images" in said and len(percents) == 4
    origin = json.loads((tmp_path / "generated.json").read_text())
    assert (origin["num_labels"], origin["classes"], origin["task"]["dataset"]) == (60, "0, 3,7", "digits")
    assert origin["class_names"] == ["none of 0, 3, 7", "one of 0, 3, 7"] and origin["network"] == spec()
    assert origin["input"]["mean"] == list(digits().mean)
    before = files[1].read_bytes()
    command(folder, *options, "--num-models", "3")
    assert files[1].read_bytes() == before
    with pytest.raises(ValueError, match=r"model-00001.safetensors is there already"):
        command(folder, *options, "--num-models", "1")


def test_a_condition_is_used_too(folder: Path, tmp_path: Path) -> None:
    said = command(
        folder, "--task", "digits", "--classes", "1", "--condition", "classes=1", "--num-models", "1",
        "--num-labels", "8", "--output-dir", str(tmp_path),
    )  # fmt: skip
    assert "together" not in said and "1 network is in" in said
    assert json.loads((tmp_path / "generated.json").read_text())["condition"] == {"classes": "1"}


def save_images(place: Path, size: int, labels: Mapping[str, int], mode: str = "L") -> Path:
    task = digits()
    for name, digit in labels.items():
        (place / name).mkdir(parents=True)
        for index, image in enumerate(task.train.images_NCHW[task.train.labels_N == digit][:15]):
            Image.fromarray(image[0].numpy()).convert(mode).resize((size, size)).save(place / name / f"{index}.png")
    return place


def test_a_folder_of_images(folder: Path, tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", 8, {"other": 4, "zero": 0})
    with pytest.raises(ValueError, match=r"has no split 'test'.*--task '\{dataset: /.*test_size: 0.2\}'"):
        command(folder, "--task", str(images), "--output-dir", str(tmp_path / "nets"))
    (tmp_path / "task.yaml").write_text(f"dataset: {images}\ntest_size: 10\n")
    (tmp_path / "task.json").write_text(json.dumps({"dataset": str(images), "test_size": 10}))
    for file in ("task.yaml", "task.json"):
        given = ("--task", str(tmp_path / file), "--num-labels", "12", "--output-dir", str(tmp_path / "nets"))
        assert "judged on 10 test images, the first network has 100.00%" in command(folder, *given)
    with pytest.raises(ValueError, match=r"--num-labels is 50, and the training split of .* has 18 images"):
        command(folder, "--task", str(tmp_path / "task.yaml"), "--output-dir", str(tmp_path / "nets"))


@pytest.mark.parametrize(
    ("size", "labels", "mode", "options", "message"),
    [
        (9, {"a": 0, "b": 1}, "L", {}, r"are 9 pixels wide, .* take 8; give --task '\{dataset: .*, image_size: 8\}'"),
        (8, {"a": 0, "b": 1}, "RGB", {}, "in colour, and the networks of this pipeline take images that are grey"),
        (8, {"a": 0, "b": 1, "c": 2}, "L", {}, "has 3 classes, and .* give 2 answers; give labelled images of 2"),
        (8, {"a": 0, "b": 1, "c": 2}, "L", {"classes": "a,d"}, "no class 'd', only a, b, c"),
        (8, {"a": 0, "b": 1}, "L", {"classes": "a,1"}, "names 2 of the 2 classes"),
        (8, {"a": 0, "b": 1}, "L", {"classes": ""}, "names 0 of the 2 classes"),
        (8, {"a": 0, "b": 1}, "L", {"num_labels": 1}, "--num-labels is 1"),
        (8, {"a": 0, "b": 1}, "L", {"num_models": 0}, "--num-models is 0"),
    ],
)
def test_what_does_not_fit_is_named(
    folder: Path, tmp_path: Path, size: int, labels: dict[str, int], mode: str, options: dict[str, Any], message: str
) -> None:
    images = save_images(tmp_path / "images", size, labels, mode)
    pipe = PDiffPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        fit_networks(pipe, {"dataset": str(images), "test_size": 0.2}, tmp_path / "nets", **options)
    assert not (tmp_path / "nets").exists()


def test_other_networks_have_no_yes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--classes is for networks of two answers, and those of this pipeline give 3"):
        _answers(digits(), {**spec(), "num_classes": 3}, "1,2")
    one = replace(
        digits(), train=Split(digits().train.images_NCHW, torch.zeros(len(digits().train), dtype=torch.int64))
    )
    with pytest.raises(ValueError, match="all training images of digits are of one class"):
        _drawn(one, 9, 0)
    with pytest.raises(ValueError, match="is no valid YAML"):
        command(folder, "--task", "{dataset: digits", "--output-dir", str(tmp_path / "nets"))


def test_a_condition_without_a_value_is_named(folder: Path, tmp_path: Path) -> None:
    for condition in ("classes", "classes=", "=3"):
        with pytest.raises(ValueError, match=r"--condition is|the condition is"):
            command(folder, "--task", TASK, "--classes", "1", "--condition", condition, "--output-dir", str(tmp_path))


EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_example_that_asks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "ask_for_a_network.py"))["main"](str(folder), "1,2")
    said = capsys.readouterr().out
    assert re.search(r"one by one \[(\d+\.\d, ){4}\d+\.\d\], together \d+\.\d % on test", said)
    assert "always answers the same has 80." in said


@pytest.mark.slow
def test_the_example_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "fit_to_few_labels.py"))["main"](str(tmp_path), 40)
    assert float(re.findall(r"(\d+\.\d) %", capsys.readouterr().out)[-1]) > 80


@pytest.mark.parametrize("num_labels", [2, 7, 50, 862])
def test_labels_are_balanced_as_far_as_there_are_images(num_labels: int) -> None:
    task = _answers(digits(), spec(), "3")
    index = _drawn(task, num_labels, 0)
    yes = int(task.train.labels_N[index].sum())
    assert len(index.unique()) == num_labels
    assert abs(2 * yes - num_labels) <= 1 or yes == int(task.train.labels_N.sum())
    assert torch.equal(index, _drawn(task, num_labels, 0))
    assert num_labels == 862 or not torch.equal(index, _drawn(task, num_labels, 1))
    if num_labels < 400:  # more labels hold the fewer ones, so that what more are worth can be measured
        assert torch.equal(_drawn(task, 2 * num_labels, 0)[:num_labels], index)
