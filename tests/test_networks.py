"""Network specs are complete and stable and rebuild the same architecture; errors of bad specs name what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_hub import LoopbackHub
from torch import nn

from pdiff_hub.networks import NETWORK_NAMES, base_model, build_network, logits, resolve_network, small

TRANSFORMERS_NAMES = [name for name in NETWORK_NAMES if name not in small.NAMES]
FACTORIES = """
from torch import nn

def by_name(num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, num_classes))

def by_keywords(**options):
    network = nn.Linear(3, options.get("num_classes", 7))
    network.options = options
    return network.eval()

def no_network():
    return 3

not_callable = 3
"""


def resolve(spec: Any, in_channels: int = 1, image_size: int = 8, num_classes: int = 10) -> dict[str, Any]:
    return resolve_network(spec, in_channels=in_channels, image_size=image_size, num_classes=num_classes)


def num_params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_networks.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_networks"


@pytest.mark.parametrize(
    ("spec", "image_size", "expected"),
    [
        ("mlp", 8, 64 * 32 + 32 + 320 + 10),
        ({"name": "mlp", "hidden": [16, 8, 4]}, 8, 64 * 16 + 16 + 16 * 8 + 8 + 8 * 4 + 4 + 40 + 10),
        ("mlp3", 8, 64 * 64 + 64 + 64 * 64 + 64 + 640 + 10),
        ({"name": "mlp3", "hidden": [48, 32]}, 28, 784 * 48 + 48 + 48 * 32 + 32 + 320 + 10),
        ("convnet3", 8, 80 + 1168 + 2320 + 64 * 10 + 10),
        ({"name": "convnet3", "global_pool": True}, 8, 80 + 1168 + 2320 + 16 * 10 + 10),
        ({"name": "convnet3", "norm": "batch"}, 8, 80 + 1168 + 2320 + 650 + 40),
        ({"name": "convnet3", "norm": "group"}, 8, 80 + 1168 + 2320 + 650 + 80),
    ],
)
def test_number_of_parameters(spec: Any, image_size: int, expected: int) -> None:
    assert num_params(build_network(resolve(spec, image_size=image_size))) == expected


@settings(max_examples=25, deadline=None)
@given(
    spec=st.one_of(
        st.fixed_dictionaries(
            {"name": st.just("mlp")}, optional={"hidden": st.lists(st.integers(1, 20), min_size=1, max_size=5)}
        ),
        st.fixed_dictionaries(
            {"name": st.just("mlp3")}, optional={"hidden": st.lists(st.integers(1, 20), min_size=2, max_size=2)}
        ),
        st.fixed_dictionaries(
            {"name": st.just("convnet3")},
            optional={
                "widths": st.lists(st.integers(1, 8), min_size=3, max_size=3),
                "norm": st.sampled_from(["none", "batch", "group"]),
                "downsample": st.sampled_from(["max_pool", "stride"]),
                "global_pool": st.booleans(),
            },
        ),
    ),
    in_channels=st.sampled_from([1, 3]),
    image_size=st.integers(8, 33),
    num_classes=st.integers(1, 12),
)
def test_small_networks_of_every_option(
    spec: dict[str, Any], in_channels: int, image_size: int, num_classes: int
) -> None:
    complete = resolve(spec, in_channels, image_size, num_classes)
    assert json.loads(json.dumps(complete)) == complete == resolve(complete, in_channels, image_size, num_classes)
    network = build_network(complete, seed=1)
    assert network.training and all(parameter.dtype == torch.float32 for parameter in network.parameters())
    calls: list[str] = []
    for name, module in network.named_children():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    images = torch.randn(2, in_channels, image_size, image_size)
    assert logits(network(images)).shape == (2, num_classes)
    assert calls == [name for name, _ in network.named_children()], "modules run in the order of registration"
    again = build_network(complete, seed=2)
    again.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(again(images), network(images))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=2), st.integers(0, 9))
def test_mlp_of_two_widths_is_mlp3(hidden: list[int], seed: int) -> None:
    """Their state dicts have the same keys, shapes and numbers, so that networks of one load into the other."""
    own, other = (build_network(resolve({"name": name, "hidden": hidden}), seed=seed) for name in ("mlp", "mlp3"))
    assert [name for name, _ in own.named_children()] == [name for name, _ in other.named_children()]
    assert list(own.state_dict()) == list(other.state_dict())
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in own.state_dict().items())


def test_layers_of_mlp() -> None:
    names = [name for name, _ in build_network(resolve({"name": "mlp", "hidden": [5, 4, 3]})).named_children()]
    assert names == ["flatten", "fc1", "relu1", "fc2", "relu2", "fc3", "relu3", "fc4"]


def test_seed_decides_the_weights_and_nothing_leaks() -> None:
    spec = resolve("convnet3")
    before = torch.get_rng_state()
    first, same, other = (build_network(spec, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    torch.rand(5)
    assert torch.equal(build_network(spec, seed=3).state_dict()["fc.weight"], first["fc.weight"])


@pytest.mark.parametrize("name", TRANSFORMERS_NAMES)
@pytest.mark.parametrize("image_size", [28, 224])
def test_transformers_networks(name: str, image_size: int) -> None:
    complete = resolve(name, 1, image_size, 7)
    assert json.loads(json.dumps(complete)) == complete == resolve(complete, 1, image_size, 7)
    with torch.device("meta"):
        network = build_network(complete)
        output = network(torch.zeros(2, 1, image_size, image_size))
    assert logits(output).shape == (2, 7)
    assert network.training
    assert next(network.parameters()).shape[1] in (1, 192, 768)  # ViT's first parameter is its class token


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet18", 11.69), ("resnet50", 25.56), ("vit_tiny", 5.72), ("vit_base", 86.57), ("convnext_base", 88.59)],
)
def test_sizes_of_the_published_architectures(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = build_network(resolve(name, 3, 224, 1000))
    assert num_params(network) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("small_images", [True, False])
def test_resnet18_has_2048_numbers_in_its_last_two_norms(small_images: bool) -> None:
    with torch.device("meta"):
        network = build_network(resolve({"name": "resnet18", "small_images": small_images}, 3, 32))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(num_params(norm) for norm in norms[-2:]) == 2048


@pytest.mark.parametrize(
    ("options", "stem_size"),
    [
        ({}, 28),
        ({"small_images": True, "stem_stride": 2}, 14),
        ({"small_images": False}, 7),
    ],
)
def test_stem_of_small_images(options: dict[str, Any], stem_size: int) -> None:
    with torch.device("meta"):
        network: Any = build_network(resolve({"name": "resnet18", **options}, 1, 28))
        stem = network.resnet.embedder(torch.zeros(1, 1, 28, 28))
    assert stem.shape == (1, 64, stem_size, stem_size)


def test_pretrained_models_from_the_hub_are_pinned(hub: LoopbackHub, tmp_path: Path) -> None:
    build_network(resolve("vit_tiny", 3, 32, 10)).save_pretrained(tmp_path)
    commit = hub.add("user/vit", {file.name: file.read_bytes() for file in tmp_path.iterdir()})
    spec = resolve({"name": "vit_tiny", "pretrained": "user/vit"}, 3, 32, 10)
    assert spec["revision"] == commit and base_model(spec) == "user/vit"
    hub.add("user/vit", {"config.json": b"{}"})
    assert resolve(spec, 3, 32, 10) == spec and build_network(spec)
    folder = resolve({"name": "vit_tiny", "pretrained": str(tmp_path)}, 3, 32, 10)
    assert folder["revision"] is None and base_model(folder) is None


def test_pretrained_weights_from_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    original: Any = build_network(resolve("vit_tiny", 3, 32, 10), seed=5)
    original.save_pretrained(folder)
    spec = {"name": "vit_tiny", "pretrained": str(folder)}
    complete = resolve(spec, 3, 32, 10)
    assert json.loads(json.dumps(complete)) == complete == resolve(complete, 3, 32, 10)
    before = torch.get_rng_state()
    loaded = build_network(complete).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in original.state_dict().items())

    other_head = build_network(resolve(spec, 3, 32, 4)).state_dict()
    assert other_head["classifier.weight"].shape == (4, 192)
    assert torch.equal(other_head["vit.layernorm.weight"], loaded["vit.layernorm.weight"])

    for bad, shape, word in [
        (spec, (1, 32, 10), "num_channels"),
        (spec, (3, 64, 10), "image_size"),
        ({**spec, "name": "vit_base"}, (3, 32, 10), "hidden_size"),
        ({**spec, "patch_size": 8}, (3, 32, 10), "patch_size"),
    ]:
        with pytest.raises(ValueError, match=word):
            resolve(bad, *shape)
    shutil.rmtree(folder)
    with torch.device("meta"):
        rebuilt = build_network(complete, pretrained=False)
    assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == {
        name: tensor.shape for name, tensor in loaded.items()
    }


def test_factory_gets_what_its_signature_names(factories: str) -> None:
    complete = resolve({"name": f"{factories}:by_name", "width": 6}, num_classes=3)
    assert complete == resolve(complete, num_classes=3)
    network: Any = build_network(complete)
    assert (network[1].out_features, network[2].out_features) == (6, 3)
    assert resolve(f"{factories}.by_name")["passed_from_task"] == ["num_classes"]


def test_factory_of_keywords_gets_what_the_spec_writes(factories: str) -> None:
    network: Any = build_network(resolve({"name": f"{factories}:by_keywords", "num_classes": 10, "extra": 1}))
    assert network.options == {"num_classes": 10, "extra": 1} and network.training
    network = build_network(resolve(f"{factories}:by_keywords"))
    assert network.options == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (":by_nam", "by_name"),
        (":not_callable", "function or class"),
        ("_missing:f", "no module"),
        (":by name", "path to a factory"),
    ],
)
def test_bad_factories(factories: str, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(factories + spec)


def test_bad_use_of_factories(factories: str) -> None:
    with pytest.raises(ValueError, match="widht"):
        resolve({"name": f"{factories}:by_name", "widht": 3})
    with pytest.raises(ValueError, match="JSON"):
        resolve({"name": f"{factories}:by_keywords", "extra": {1, 2}})
    with pytest.raises(ValueError, match="found int"):
        build_network(resolve(f"{factories}:no_network"))
    with pytest.raises(ValueError, match="not allowed"):
        build_network({"name": "os.system", "command": "false"}, allow_factory=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mlp4", "nearest known one is 'mlp'"),
        ("resnet-18", "nearest known one is 'resnet18'"),
        ({"hidden": [1, 2]}, "needs a 'name'"),
        ({"name": "mlp3", "hiden": [1, 2]}, "nearest known one is 'hidden'"),
        ({"name": "mlp", "hidden": []}, r"hidden of network 'mlp' must be a list of positive integers, found \[\]"),
        ({"name": "mlp", "hidden": [3, 0]}, r"list of positive integers, found \[3, 0\]"),
        ({"name": "mlp", "hidden": 3}, "list of positive integers, found 3"),
        ({"name": "mlp", "hidden": [1] * 1001}, "at most 1,000 numbers, one for each layer, found 1,001"),
        ({"name": "mlp", "hidden": ["x" * 10**6]}, r"list of positive integers, found .{1,100}$"),
        ("x" * 10**6, r"unknown network: 'x{200}\.\.\.'; the nearest .{1,300}$"),
        ({"name": "mlp3", "hidden": [1, 2, 3]}, "list of 2 positive integers"),
        ({"name": "mlp3", "hidden": [True, 2]}, "list of 2 positive integers"),
        ({"name": "convnet3", "widths": [1, 2, 0]}, "list of 3 positive integers"),
        ({"name": "convnet3", "norm": "bach"}, "nearest known one is 'batch'"),
        ({"name": "convnet3", "global_pool": 1}, "true or false"),
        ({"name": "mlp3", "num_classes": 11}, "num_classes=11, but the task has num_classes=10"),
        ({"name": "resnet18", "stem_stride": 3}, "stem_stride"),
        ({"name": "resnet18", "small_images": False, "stem_stride": 1}, "stem_stride"),
        ({"name": "resnet18", "small_images": "yes"}, "true or false"),
        ({"name": "resnet18", "revision": "main"}, "name it"),
        ({"name": "resnet18", "pretrained": 3}, "string or null"),
        ({"name": "vit_tiny", "patch_size": 3}, "must divide the image size 8"),
        ({"name": "vit_tiny", "small_images": True}, "option of network 'vit_tiny'"),
        ({"name": "convnext_tiny", "patch_size": 2}, "at least 8 patches"),
    ],
)
def test_bad_specs(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(spec)


def test_bad_shapes_seeds_and_incomplete_specs() -> None:
    with pytest.raises(ValueError, match="in_channels must be a positive integer"):
        resolve("mlp3", in_channels=0)
    with pytest.raises(ValueError, match="lacks in_channels, image_size, num_classes"):
        build_network({"name": "mlp3"})
    with pytest.raises(ValueError, match="lacks hidden"):
        build_network({"name": "mlp3", "in_channels": 1, "image_size": 8, "num_classes": 10})
    with pytest.raises(ValueError, match="seed"):
        build_network(resolve("mlp3"), seed=-1)


def test_missing_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[transformers\]'"):
        resolve("resnet18")


def test_logits() -> None:
    values = torch.zeros(2, 3)
    assert logits(values) is values
    assert logits(SimpleNamespace(logits=values)) is values
    with pytest.raises(ValueError, match="found tuple"):
        logits((values,))


def test_a_name_alone_does_not_build_a_network() -> None:
    with pytest.raises(ValueError, match="build_network needs the mapping that resolve_network gives, found 'mlp3'"):
        build_network("mlp3")
