"""A spec from a file is compared with the weights beside it before anything is built."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_digits import SPACE  # makes the files of the Space importable
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pdiff_hub import ParamLayout, PDiffPipeline
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub.networks import GeneratedNetwork
from pdiff_hub.hub.networks.generated import write_generated_network
from pdiff_hub.networks import NETWORK_NAMES, build_network, resolve_network
from pdiff_hub.networks.beside import build_beside, require_bounded
from pdiff_hub.runs.auditing import audit

SHIPPED = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"
MLP = resolve_network({"name": "mlp3", "hidden": [8, 6]}, in_channels=1, image_size=8, num_classes=10)
# What a stranger may write for the network of weights of 8,970 numbers.
HUGE: list[dict[str, Any]] = [
    {"hidden": [10**9, 10**9]},
    {"hidden": [60_000, 60_000]},
    {"image_size": 3000},
    {"image_size": 10**12},
    {"num_classes": 10**9},
    {"in_channels": 10**8},
    {"name": "mlp", "hidden": [1] * 10**6},
    {"name": "mlp", "hidden": [64] * 8},
    {"name": "convnet3", "widths": [10**9] * 3, "norm": "none", "downsample": "max_pool", "global_pool": True},
    {"hidden": [64, 65]},
    {"hidden": [64, 10**300]},
    {"num_classes": [10]},
    {"hidden": {"a": 64}},
    {"name": "x" * 10**6},
    {"x" * 10**6: 1},
]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
OPTIONS = st.sampled_from(
    ["hidden", "widths", "norm", "in_channels", "image_size", "num_classes", "patch_size", "pretrained", "config", "x"]
)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["mlp3", "mlp", "convnet3", "resnet18", "vit_tiny", "a.b"]), st.dictionaries(OPTIONS, JSON))
def test_whatever_a_spec_says_is_built_as_the_weights_are_or_refused(name: str, more: dict[str, Any]) -> None:
    base = MLP if name == "mlp3" else {field: MLP[field] for field in ("in_channels", "image_size", "num_classes")}
    layout = ParamLayout.from_module(build_network(MLP))
    said, shapes = "", [list(entry.shape) for entry in layout.entries]
    try:
        network = build_beside({**base, "name": name, **more}, layout, "the network spec of x")
        shapes = [list(tensor.shape) for tensor in network.state_dict().values()]
    except PdiffError as error:
        said = str(error)
    assert len(said) < 700 and shapes == [list(entry.shape) for entry in layout.entries]


def vit(**more: Any) -> dict[str, Any]:
    return {**resolve_network("vit_tiny", in_channels=1, image_size=8, num_classes=10), **more}


@pytest.mark.parametrize("more", HUGE, ids=lambda more: f"{str(more)[:40]}")
def test_a_spec_that_does_not_fit_the_weights_costs_nothing(more: dict[str, Any]) -> None:
    layout = ParamLayout.from_module(build_network(MLP))
    began = time.monotonic()
    with pytest.raises(PdiffError) as caught:
        build_beside({**MLP, **more}, layout, "the network spec of x/y")
    assert time.monotonic() - began < 2 and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "more",
    [
        {"num_classes": 10**9},
        {"image_size": 10**5, "patch_size": 1},
        {"patch_size": 10**9, "image_size": 10**9},
        {"pretrained": "x/y", "config": {"model_type": "vit", "hidden_size": 10**9}},
        {"pretrained": "x/y"},
    ],
)
def test_a_spec_of_transformers_that_does_not_fit_costs_nothing(more: dict[str, Any]) -> None:
    with torch.device("meta"):
        layout = ParamLayout.from_module(build_network(vit()))
    began = time.monotonic()
    with pytest.raises(PdiffError):
        build_beside(vit(**more), layout, "the network spec of x/y")
    assert time.monotonic() - began < 2


def test_the_sentence_names_both() -> None:
    layout = ParamLayout.from_module(build_network(MLP))
    with pytest.raises(
        PdiffError,
        match=r"the spec of x has hidden \[1000000000, 6\], which does not fit the weights beside it: 6 tensors of 644",
    ):
        build_beside({**MLP, "hidden": [10**9, 6]}, layout, "the spec of x")
    with pytest.raises(PdiffError, match=r"tensor 'fc1.weight' is \[8, 64\] there, and \[8, 81\] in the network"):
        build_beside({**MLP, "image_size": 9}, layout, "the spec of x")


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_what_fits_is_built(name: str) -> None:
    spec = resolve_network(name, in_channels=3, image_size=32, num_classes=7)
    with torch.device("meta"):
        network = build_network(spec)
        layout = ParamLayout.from_module(network, "head")
        same = build_beside(spec, layout, "x")
    assert list(same.state_dict()) == list(network.state_dict())
    require_bounded(spec, {key: tensor.shape for key, tensor in network.state_dict().items()}, "x")


def test_a_trusted_factory_is_compared_too() -> None:
    spec = resolve_network("odd_networks:mlp", in_channels=1, image_size=8, num_classes=10)
    layout = ParamLayout.from_module(build_network(spec))
    assert isinstance(build_beside(spec, layout, "x", allow_factory=True), nn.Sequential)
    with pytest.raises(PdiffError, match=r"'3.weight' is \[10, 8\] there, and \[9, 8\] in the network"):
        build_beside({**spec, "num_classes": 9}, layout, "x", allow_factory=True)
    with pytest.raises(PdiffError, match="not allowed here"):
        build_beside(spec, layout, "x")


@pytest.fixture
def stranger(tmp_path: Path) -> Callable[..., Path]:
    def made(**more: Any) -> Path:
        folder = tmp_path / "stranger"
        shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("checkpoints", "*.png", "training"))
        file = folder / "autoencoder" / "config.json"
        config = json.loads(file.read_text())
        config["network"] |= more
        file.write_text(json.dumps(config))
        return folder

    return made


@pytest.mark.parametrize("more", [{"hidden": [60_000, 60_000]}, {"image_size": 3000}])
def test_every_place_that_builds_a_network_of_a_pipeline(
    more: dict[str, Any], stranger: Callable[..., Path], tmp_path: Path
) -> None:
    from opening import open_pipeline  # of examples/space

    assert SPACE.is_dir()
    folder = stranger(**more)
    pipe = PDiffPipeline.from_pretrained(folder)
    images = torch.randn(4, 1, more.get("image_size", 8), more.get("image_size", 8))
    places: list[Callable[[], object]] = [
        pipe.build_network,
        lambda: pipe.fit(images, torch.tensor([0, 1, 2, 3]), num_models=1),
        lambda: audit(folder, tmp_path / "audit", metrics=["accuracy"]),
        lambda: open_pipeline(folder, "x"),
    ]
    for place in places:
        began = time.monotonic()
        with pytest.raises(ValueError, match="does not fit the weights beside it"):
            place()
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("more", [{"hidden": [10**9, 10**9]}, {"num_classes": 10**9}, {"hidden": [1] * 10**6}])
def test_a_published_network(more: dict[str, Any], tmp_path: Path) -> None:
    write_generated_network(tmp_path, {**MLP, **more}, build_network(MLP).state_dict(), {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit|list of 2 positive"):
        GeneratedNetwork.from_pretrained(tmp_path)
