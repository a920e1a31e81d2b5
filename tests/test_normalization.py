"""`normalize`: how pixels become inputs. It is checked, recorded, shown, and comes with pretrained models."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from checkpoint_sets import dataset as some_checkpoints
from loopback_hub import LoopbackHub
from torch import nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub import describe, render_card
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.networks.vision import input_statistics
from pdiff_hub.recipes import recipe_from_dict
from pdiff_hub.records import Facts, Results
from pdiff_hub.runs.collecting import collect
from pdiff_hub.runs.preprocessing import warn_of_preprocessing
from pdiff_hub.tasks import Split, Task, load_task
from pdiff_hub.tasks.normalization import NAMED, recorded_statistics, shown, statistics_of
from pdiff_hub.travelling.param_autoencoder import ParamLayout


def digits(**options: Any) -> Task:
    return load_task({"dataset": "digits", **options})


def test_inputs_by_name_and_by_numbers() -> None:
    task = digits(normalize="zero_one")
    pixels = task.train.images_NCHW.float()
    assert torch.allclose(task.inputs(task.train), pixels / 255, rtol=1e-6, atol=0)
    task = digits(normalize="none")
    assert torch.equal(task.inputs(task.train), pixels)
    task = digits(normalize={"mean": [0.25], "std": 0.5})
    assert torch.allclose(task.inputs(task.train), (pixels / 255 - 0.25) / 0.5, atol=1e-6)
    assert task.spec["normalize"] == {"mean": [0.25], "std": [0.5]}
    assert (task.spec["resolved"]["mean"], task.spec["resolved"]["std"]) == ([0.25], [0.5])
    again = load_task(json.loads(json.dumps(task.spec)))
    assert again.spec == task.spec and torch.equal(again.inputs(again.test), task.inputs(task.test))
    assert statistics_of("imagenet", 3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) == NAMED["imagenet"]


def test_the_default_is_as_it_was() -> None:
    plain = digits()
    assert "normalize" not in plain.spec and plain.mean == pytest.approx((0.287,), abs=0.01)
    assert digits(normalize=None).spec == plain.spec
    other = plain.normalized("zero_one")
    assert other.spec == digits(normalize="zero_one").spec and (other.mean, other.std) == ((0.0,), (1.0,))
    assert plain.spec == digits().spec


def test_pixels_from_outside_an_augmented_image_are_black() -> None:
    task = digits(normalize={"mean": 0.5, "std": 0.25}, augment={"crop_padding": 3})
    white = torch.full((64, 1, 8, 8), 2.0)
    assert set(task.augment(white, torch.Generator().manual_seed(0)).unique().tolist()) == {-2.0, 2.0}


@pytest.mark.parametrize(
    ("normalize", "message"),
    [
        ("imagnet", "nearest known one is 'imagenet'"),
        ("imagenet", "is for 3 channels, and the images have 1"),
        ({"mean": [0.1, 0.2], "std": [0.1, 0.2]}, "is for 2 channels, and the images have 1"),
        ({"mean": [0.1]}, "must be one of imagenet, zero_one, none, or"),
        ({"mean": [0.1], "sdt": [1]}, "nearest known one is 'std'"),
        ({"mean": [123.7], "std": [58.4]}, "divide mean and std by 255"),
        ({"mean": [0.1], "std": [0.0]}, "a std must be at least"),
        ({"mean": [0.1], "std": [-0.1]}, "a std must be at least"),
        ({"mean": [], "std": [1]}, "normalize: mean"),
        ({"mean": [float("nan")], "std": [1]}, "normalize: mean"),
        ({"mean": ["0.5"], "std": [1]}, "normalize: mean"),
        ({"mean": True, "std": [1]}, "normalize: mean"),
        (0.5, "must be one of"),
    ],
)
def test_bad_options(normalize: Any, message: str) -> None:
    with pytest.raises(PdiffError, match=message):
        digits(normalize=normalize)


def test_what_a_file_records_is_checked() -> None:
    assert recorded_statistics(digits().spec) == (digits().mean, digits().std)
    assert recorded_statistics({}) is None
    for resolved in ({"mean": 3}, {"mean": [0.1], "std": "x"}, {"mean": [0.1, 0.2], "std": [1]}):
        with pytest.raises(PdiffError):
            recorded_statistics({"resolved": resolved})


def test_cards_and_info_show_it(tmp_path: Path) -> None:
    assert shown(digits().spec) is None and shown(digits(normalize="zero_one").spec) == "zero_one"
    text = shown({"normalize": {"mean": [0.5, 0.25], "std": [1, 2]}})
    assert text == "mean 0.5, 0.25; std 1, 2"
    known: dict[str, Any] = {"name": "it", "task": "x", "task_dataset": None, "network": "mlp3", "base_model": None}
    known |= {"select": "all", "num_params": 1, "num_inference_steps": 1, "recipe": None, "figures": []}
    plain, told = (Results(Facts(**known, checkpoints=None, normalize=each)) for each in (None, text))
    assert "normalize" not in plain.to_dict() and Results.from_dict(told.to_dict()) == told
    line = "by pdiff-hub.\nIts networks expect images normalised by `mean 0.5, 0.25; std 1, 2` (`task.normalize`)"
    assert line in render_card(told) and render_card(told).replace(line, "") != render_card(told)
    assert "normalised" not in render_card(plain) and "by pdiff-hub.\n\n## Use it" in render_card(plain)
    checkpoints = some_checkpoints()
    checkpoints.task = {"dataset": "digits", "normalize": "zero_one"}
    checkpoints.save_pretrained(tmp_path / "set")
    assert describe(tmp_path / "set")[0].endswith("network x, images normalised by zero_one")


# What a pretrained model was trained with


def processor(**values: Any) -> dict[str, Any]:
    return {"image_processor_type": "ViTImageProcessor", "do_normalize": True, **values}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (processor(image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3]), ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])),
        (processor(image_mean=0.5, image_std=0.25), ([0.5] * 3, [0.25] * 3)),
        (processor(do_normalize=False), ([0.0] * 3, [1.0] * 3)),
        (processor(image_mean=[0] * 3, image_std=[1] * 3, rescale_factor=1 / 127.5), ([0.0] * 3, [0.5] * 3)),
        (processor(do_normalize=False, do_rescale=False), ([0.0] * 3, [1 / 255] * 3)),
        (None, None),
    ],
)
def test_the_processor_of_a_pretrained_model(tmp_path: Path, values: Any, expected: Any) -> None:
    if values is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    spec = {"name": "vit_tiny", "pretrained": str(tmp_path), "revision": None, "in_channels": 3}
    found = input_statistics(spec)
    if expected is None:
        assert found is None and input_statistics({"name": "vit_tiny", "pretrained": None}) is None
        assert input_statistics({"name": "my.module:net", "pretrained": "x"}) is None
    else:
        assert found is not None
        assert (found["mean"], found["std"]) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"image_mean": [0.5], "image_std": [0.5]}', '{"image_mean": "x"}', "{}" + " " * (1 << 20)]
)
def test_a_damaged_processor_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(PdiffError, match=r"image processor of .*; set task\.normalize"):
        input_statistics({"name": "vit_tiny", "pretrained": str(tmp_path), "in_channels": 3})


def test_the_processor_on_the_hub(hub: LoopbackHub) -> None:
    content = json.dumps(processor(image_mean=[0.5], image_std=[0.25])).encode()
    commit = hub.add("user/vit", {"config.json": b"{}", "preprocessor_config.json": content})
    spec = {"name": "vit_tiny", "pretrained": "user/vit", "revision": commit, "in_channels": 1}
    assert input_statistics(spec) == {"mean": [0.5], "std": [0.25]}
    commit = hub.add("user/bare", {"config.json": b"{}"})
    assert input_statistics({**spec, "pretrained": "user/bare", "revision": commit}) is None
    with pytest.raises(PdiffError, match="cannot be had from the Hub; connect once, or set task"):
        input_statistics({**spec, "pretrained": "user/nowhere", "revision": commit})


def test_a_recipe_takes_what_the_pretrained_model_was_trained_with(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    shape = {"in_channels": 1, "image_size": 8, "num_classes": 10}
    network = build_network(resolve_network({"name": "vit_tiny", "patch_size": 4}, **shape))
    cast(Any, network).save_pretrained(tmp_path / "trained")
    values = processor(image_mean=[0.5], image_std=[0.25])
    (tmp_path / "trained" / "preprocessor_config.json").write_text(json.dumps(values))
    spec = {
        "task": {"dataset": "digits", "train_size": 40},
        "network": {"name": "vit_tiny", "pretrained": str(tmp_path / "trained")},
        "select": "head",
        "collect": {"method": "finetune", "num_checkpoints": 2, "save_every": 1, "epochs": 0},
    }
    task = collect(recipe_from_dict(spec), tmp_path / "set").task
    assert (
        task is not None and task["normalize"] == {"mean": [0.5], "std": [0.25]} and task["resolved"]["mean"] == [0.5]
    )
    spec["task"] = {**cast(Any, spec["task"]), "normalize": "zero_one"}
    task = collect(recipe_from_dict(spec), tmp_path / "other").task
    assert task is not None and task["normalize"] == "zero_one" and task["resolved"]["std"] == [1.0]
    with pytest.raises(PdiffError, match="normalize"):
        collect(recipe_from_dict(spec), tmp_path / "set")


# Imported networks


def pale_task() -> Task:
    """Pale images, of which only the brightness differs: what normalises them matters."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for number in (150, 30, 30):
        labels_N = torch.arange(number) % 3
        noise = 4 * torch.randn(number, 1, 6, 6, generator=generator)
        splits.append(Split((150 + 40 * labels_N[:, None, None, None] + noise).clamp(0, 255).to(torch.uint8), labels_N))
    pixels = splits[0].images_NCHW.double() / 255
    mean, std = (pixels.mean().item(),), (pixels.std().item(),)
    return Task({"dataset": "pale"}, 3, 1, 6, mean, std, *splits)


def trained_on(task: Task) -> tuple[CheckpointDataset, nn.Module]:
    shape = {"in_channels": 1, "image_size": 6, "num_classes": 3}
    spec = resolve_network({"name": "mlp", "hidden": [8]}, **shape)
    states = []
    for seed in range(2):
        network = build_network(spec, seed=seed)
        optimizer = torch.optim.Adam(network.parameters(), 2e-2)
        for _ in range(250):
            optimizer.zero_grad()
            F.cross_entropy(network(task.inputs(task.train)), task.train.labels_N).backward()
            optimizer.step()
        states.append(network.state_dict())
    layout = ParamLayout.from_module(network)
    params_KP = torch.stack([layout.flatten(state) for state in states])
    metadata: list[dict[str, Any]] = [{"step": 1, "test_acc": 95.0}, {"step": 2, "test_acc": 0.97}]
    return CheckpointDataset(
        params_KP, layout, network=spec, task=None, frozen={}, metadata=metadata, collect={}
    ), network


def test_a_warning_if_imported_networks_were_trained_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    task = pale_task()
    imported, network = trained_on(task.normalized("zero_one"))
    with caplog.at_level(logging.WARNING):
        warn_of_preprocessing(imported, network, task.normalized("zero_one"))
        assert caplog.messages == []
        warn_of_preprocessing(imported, network, task)
        (first,) = caplog.messages
        assert "with task: {normalize: zero_one}: set it if they were trained so" in first
        warn_of_preprocessing(imported, network, task.normalized("none"))
        *_, second = caplog.messages
        assert "score far below the accuracy in their metadata" in second and "96.0 %); set task.normalize" in second
        caplog.clear()
        own, network = trained_on(task)
        warn_of_preprocessing(own, network, task)
        assert caplog.messages == []
