"""Every shipped recipe.yaml is valid. A recipe's values replace defaults, and errors for typos name the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.recipes import find_recipe, load_recipe, recipe_from_dict
from pdiff_hub.travelling.param_autoencoder import ParamLayout

SHIPPED = sorted((Path(__file__).parent.parent / "pipelines").glob("*/recipe.yaml"))
TASK = {"task": "digits", "network": "mlp3"}
# Data set -> (channels, image size, classes), for recipes whose data need a network connection.
SHAPES = {"digits": (1, 8, 10), "fashion-mnist": (1, 28, 10), "cifar10": (3, 32, 10), "cifar100": (3, 32, 100)}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.parent.name)
def test_shipped_recipes_are_short_and_resolve(file: Path) -> None:
    recipe = load_recipe(file.parent.name)
    assert recipe == load_recipe(file.parent) == load_recipe(file)
    dataset = recipe.task if isinstance(recipe.task, str) else recipe.task["dataset"]
    channels, size, classes = SHAPES[dataset]
    if isinstance(recipe.task, dict):
        size = recipe.task.get("image_size", size)
    if recipe.method == "family" and recipe.to_dict()["collect"]["family"] == "class-subsets":
        classes = 2
    spec = resolve_network(recipe.network, in_channels=channels, image_size=size, num_classes=classes)
    with torch.device("meta"):
        layout = ParamLayout.from_module(build_network(spec, pretrained=False), recipe.select)
    listed = yaml.safe_load((file.parents[1] / "list.yaml").read_text())
    assert listed[file.parent.name]["numbers"] == layout.num_params and len(listed) == len(SHIPPED)
    if "resnet18-norms" in file.parent.name:
        assert layout.num_params == 2048
    if file.parent.name != "digits-mlp3":
        assert len(file.read_text().splitlines()) <= 15


def test_round_trip_and_overrides() -> None:
    recipe = load_recipe(
        "digits-mlp3", ["collect.num_checkpoints=7", "network.hidden=[8, 8]", "seed=3", "diffusion.widths=[16, 32]"]
    )
    assert recipe.collect.num_checkpoints == 7 and recipe.seed == 3 and recipe.diffusion.widths == (16, 32)
    assert recipe.network == {"name": "mlp3", "hidden": [8, 8]}
    assert recipe_from_dict(recipe.to_dict()) == recipe


PAPER = {"form": "conv", "normalization": "none", "steps": 30_000, "input_noise": 1e-3, "latent_noise": 0.1}


@pytest.mark.parametrize("option", [*PAPER, "kernel_size"])
def test_a_preset_gives_way_to_what_the_recipe_says(option: str) -> None:
    """A recipe's value wins over the preset, even a value that equals the default, which the preset once overrode."""
    said = {"input_noise": 0.0, "latent_noise": 0.0, "normalization": "per_tensor", "form": "conv", "steps": 7}
    value = {**said, "kernel_size": 3}[option]
    recipe = recipe_from_dict({**TASK, "autoencoder": {"preset": "paper", option: value}})
    assert {key: getattr(recipe.autoencoder, key) for key in {**PAPER, option: value}} == {**PAPER, option: value}
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert load_recipe("digits-mlp3", ["autoencoder.preset=paper", f"autoencoder.{option}={value}"]).autoencoder == (
        recipe.autoencoder
    )


def test_no_preset_and_an_unknown_one() -> None:
    assert recipe_from_dict({**TASK, "autoencoder": {"preset": None}}) == recipe_from_dict(TASK)
    with pytest.raises(ValueError, match=r"unknown autoencoder\.preset: 'papr'; the nearest known one is 'paper'"):
        recipe_from_dict({**TASK, "autoencoder": {"preset": "papr"}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"network": "mlp3"}, "no 'task'"),
        ({"task": "digits", "network": "mlp3", "sed": 1}, r"'sed'.*'seed'"),
        ({"task": "digits", "network": "mlp3", "diffusion": {"step": 1}}, r"'step'.*'steps'"),
        ({"task": "digits", "network": "mlp3", "collect": {"method": "populations"}}, r"'populations'.*'population'"),
        ({"task": "digits", "network": "mlp3", "collect": {"num_checkpoints": 1}}, "num_checkpoints"),
        ({"task": "digits", "network": "mlp3", "generate": {"num_models": 0}}, r"generate\.num_models is 0"),
        ({"task": "digits", "network": "mlp3", "generate": {"num_inference_steps": 0}}, r"num_inference_steps is 0"),
        ({"task": "digits", "network": "mlp3", "generate": 5}, "expected a mapping"),
        ({"task": "digits", "network": "mlp3", "seed": -1}, "seed is -1"),
        (
            {"task": "digits", "network": "mlp3", "diffusion": {"steps": "many"}},
            r"diffusion\.steps is 'many', expected a whole",
        ),
    ],
)
def test_bad_recipes(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_from_dict(data)


def test_bad_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'digits-mlp'.*'digits-mlp3'"):
        find_recipe("digits-mlp")
    with pytest.raises(FileNotFoundError, match=r"holds no recipe\.yaml"):
        find_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text("task: [")
    with pytest.raises(ValueError, match="no valid YAML"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text("- task")
    with pytest.raises(ValueError, match="expected a mapping"):
        load_recipe(tmp_path)
    with pytest.raises(ValueError, match=r"not of the form a\.b=c"):
        load_recipe("digits-mlp3", ["seed"])
