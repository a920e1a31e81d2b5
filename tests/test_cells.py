"""Each cell of the paper's tables is a valid recipe, and generates as many numbers as a calculation by hand gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.recipes import find_recipe, load_recipe, recipe_from_dict
from pdiff_hub.recipes.cells import CELL_NAMES, TABLE_1, TABLE_3, cell
from pdiff_hub.tasks import load_task
from pdiff_hub.tasks.spec import complete_spec
from pdiff_hub.travelling.param_autoencoder import ParamLayout

# Network -> (widths of the last two norm layers, their modules, P). A norm layer has a weight and a bias of its width,
# so P is twice the sum of the two widths.
NORMS: dict[str, tuple[tuple[int, int], tuple[str, str], int]] = {
    # These norms follow the two 3x3 convolutions of the last basic block. Both have the 512 channels of stage four:
    # 2 (512 + 512).
    "resnet18": (
        (512, 512),
        ("stages.3.layers.1.layer.0.normalization", "stages.3.layers.1.layer.1.normalization"),
        2048,
    ),
    # A bottleneck ends with a 3x3 convolution of 512 channels and a 1x1 convolution of 4 x 512: 2 (512 + 2048).
    "resnet50": (
        (512, 2048),
        ("stages.3.layers.2.layer.1.normalization", "stages.3.layers.2.layer.2.normalization"),
        5120,
    ),
    # The norm before the MLP of the last block, and the norm after all blocks. A ViT has one width d: 2 (d + d).
    "vit_tiny": ((192, 192), ("layers.11.layernorm_after", "vit.layernorm"), 768),
    "vit_base": ((768, 768), ("layers.11.layernorm_after", "vit.layernorm"), 3072),
    # The norm in the last block, and the norm after pooling. Both have the width d of the last stage: 2 (d + d).
    "convnext_tiny": ((768, 768), ("stages.3.layers.2.layernorm", "convnext.layernorm"), 3072),
    "convnext_base": ((1024, 1024), ("stages.3.layers.2.layernorm", "convnext.layernorm"), 4096),
}


COLOURS = {
    "cifar10": 10,
    "cifar100": 100,
    "stl10": 10,
    "flowers102": 102,
    "pets": 37,
    "food101": 101,
    "imagenet-1k": 1000,
}
SHAPES = {name: {"in_channels": 3, "num_classes": classes} for name, classes in COLOURS.items()}
SHAPES["mnist"] = {"in_channels": 1, "num_classes": 10}


def mlp3(pixels: int, first: int, second: int, classes: int) -> int:
    """P of the MLP: a linear layer from n to m has n m weights and m biases."""
    return (pixels + 1) * first + (first + 1) * second + (second + 1) * classes


def convnet3(channels: int, width: int, side: int, classes: int) -> int:
    """P of the CNN: a 3x3 convolution from n to m has 9 n m weights and m biases; 3 poolings divide `side` by 8."""
    return (9 * channels + 1) * width + 2 * (9 * width + 1) * width + (width * (side // 8) ** 2 + 1) * classes


WHOLE = {
    "cifar10-convnet3": convnet3(3, 32, 32, 10),
    "cifar100-convnet3": convnet3(3, 32, 32, 100),
    "cifar10-mlp3": mlp3(3 * 32 * 32, 48, 32, 10),
    "mnist-mlp3": mlp3(28 * 28, 48, 32, 10),
}


def layout_of(name: str) -> ParamLayout:
    """The layout of the cell's network. The network is built without memory for its weights and without the Hub."""
    recipe = cell(name)
    shape = SHAPES[recipe["task"]["dataset"]] | {"image_size": recipe["task"]["image_size"]}
    options: dict[str, Any] = dict(recipe["network"])
    pretrained = options.pop("pretrained", None)
    spec = resolve_network(options, **shape)
    with torch.device("meta"):
        network: Any = build_network(spec)
    if pretrained is not None:
        # resolve_network would read this on the Hub: the config of a model of that size for 224 pixels and 3 channels.
        config = {**network.config.to_dict(), "image_size": 224}
        with_weights = resolve_network({**options, "pretrained": pretrained, "config": config}, **shape)
        assert with_weights | {"pretrained": None, "config": None} == spec
    return ParamLayout.from_module(network, recipe.get("select", "all"))


def test_the_names() -> None:
    data = ["mnist", "cifar10", "cifar100", "stl10", "flowers102", "pets", "food101", "imagenet-1k"]
    assert [f"{each}-{network.replace('_', '-')}-norms" for each in data for network in NORMS] == list(TABLE_1)
    assert sorted(TABLE_3) == sorted(WHOLE)
    assert len(set(CELL_NAMES)) == 48 + 4 == len(CELL_NAMES)


@pytest.mark.parametrize("name", TABLE_1)
def test_cells_of_table_1(name: str) -> None:
    recipe = recipe_from_dict(cell(name))
    assert isinstance(recipe.task, dict) and isinstance(recipe.network, dict)
    dataset, network = recipe.task["dataset"], recipe.network["name"]
    assert name == f"{dataset}-{network.replace('_', '-')}-norms"
    widths, modules, expected = NORMS[network]
    layout = layout_of(name)
    assert layout.num_params == expected == 2 * sum(widths)
    assert [entry.shape for entry in layout.entries] == [(width,) for width in widths for _ in range(2)]
    for entry, module in zip(layout.entries, [each for each in modules for _ in range(2)], strict=True):
        assert entry.name.rpartition(".")[0].endswith(module)
    assert recipe.collect.num_checkpoints == 300 and recipe.generate.num_models == 200
    small = dataset in ("mnist", "cifar10", "cifar100")
    assert ("pretrained" in recipe.network) is not small
    assert (cell(name)["task"]["image_size"] == 224) is not small


@pytest.mark.parametrize("name", TABLE_3)
def test_cells_of_table_3(name: str) -> None:
    layout = layout_of(name)
    assert layout.num_params == WHOLE[name]
    assert layout.frozen == ()


def test_known_sizes_of_whole_networks() -> None:
    assert WHOLE == {
        "cifar10-convnet3": 24_522,
        "cifar100-convnet3": 70_692,
        "cifar10-mlp3": 149_402,
        "mnist-mlp3": 39_578,
    }


@pytest.mark.parametrize("name", CELL_NAMES)
def test_every_cell_is_a_recipe_of_that_name(name: str) -> None:
    assert find_recipe(name).parent.name == name
    recipe = recipe_from_dict(cell(name))
    options, recorded = complete_spec(recipe.task, recipe.seed)
    assert recorded is None
    assert options["image_size"] == cell(name)["task"]["image_size"]
    assert name.startswith(options["dataset"] + "-")
    if not find_recipe(name).is_file():
        assert load_recipe(name) == load_recipe(f"pipelines/{name}") == recipe


def test_a_folder_goes_before_the_cell() -> None:
    assert find_recipe("cifar100-resnet18-norms").is_file()
    assert load_recipe("cifar100-resnet18-norms").collect.num_checkpoints == 200
    assert cell("cifar100-resnet18-norms")["collect"]["num_checkpoints"] == 300


def test_a_folder_at_hand_goes_before_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist-mlp3").mkdir()
    assert load_recipe("mnist-mlp3").task == {"dataset": "mnist", "image_size": 28}
    (tmp_path / "mnist-mlp3" / "recipe.yaml").write_text("{task: digits, network: mlp3}")
    assert load_recipe("mnist-mlp3").task == "digits"


def test_overrides_do_not_reach_the_next_reader() -> None:
    changed = load_recipe("cifar10-vit-tiny-norms", ["task.augment.flip=false", "collect.epochs=1"])
    assert isinstance(changed.task, dict) and changed.task["augment"] == {"flip": False, "crop_padding": 4}
    task = load_recipe("cifar10-vit-base-norms").task
    assert isinstance(task, dict) and task["augment"] == {"flip": True, "crop_padding": 4}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("food101-vit_tiny-norms", "food101-vit-tiny-norms"),
        ("mnist-mlp", "mnist-mlp3"),
        ("digit-mlp3", "digits-mlp3"),
        ("runs/mnist-mlp3", "mnist-mlp3"),
    ],
)
def test_unknown_names_get_the_nearest_of_folders_and_cells(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'; the nearest known one is '{nearest}'"):
        find_recipe(name)
    with pytest.raises(ValueError, match="unknown cell: 'digits-mlp3'"):
        cell("digits-mlp3")


@pytest.mark.parametrize(
    ("dataset", "splits", "label"),
    [
        ("stl10", ("train", "train", "test"), "label"),
        ("flowers102", ("train", "validation", "test"), "label"),
        ("pets", ("train", "train", "test"), "label"),
        ("food101", ("train", "train", "validation"), "label"),
        ("imagenet-1k", ("train", "train", "validation"), "label"),
    ],
)
def test_short_names_read_the_splits_and_columns_that_their_sets_have(
    dataset: str, splits: tuple[str, str, str], label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made-up sets with the real splits and columns, and noise as images. ImageNet's test images have no labels."""
    import datasets
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    if dataset == "pets":
        features |= {"image_id": datasets.Value("string"), "label_cat_dog": datasets.ClassLabel(names=["cat", "dog"])}
    sizes = {"train": 12, "test": 4}
    sizes |= {"validation": 6} if "validation" in splits else {}
    sizes = {"train": 12, "validation": 6} if dataset == "food101" else sizes
    tables = {}
    for split, size in sizes.items():
        rows: dict[str, Any] = {
            "image": [Image.fromarray(noise.integers(0, 256, (9, 12, 3), np.uint8)) for _ in range(size)],
            "label": [-1 if (dataset, split) == ("imagenet-1k", "test") else i % 2 for i in range(size)],
        }
        if dataset == "pets":
            rows |= {"image_id": [str(i) for i in range(size)], "label_cat_dog": [i % 2 for i in range(size)]}
        tables[split] = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda location, **_: asked.append(location) or tables)
    task = load_task({"dataset": dataset, "image_size": 8})
    assert len(asked) == 1 and asked[0].count("/") == 1
    found = task.spec["resolved"]
    used = tuple(found.get(f"{role}_split", "train") for role in ("train", "validation", "test"))
    assert (used, found["label_column"]) == (splits, label)
    if dataset == "food101":
        with pytest.raises(ValueError, match="unknown test_split"):
            load_task({"dataset": dataset, "image_size": 8, "test_split": "test"})
