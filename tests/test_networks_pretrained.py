"""Pretrained models bring a configuration and weights, and nothing that chooses or runs code."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdiff_hub.networks import build_network, resolve_network

PACKAGE = Path(__file__).parents[1] / "pdiff_hub"
CODE = "open({marker!r}, 'w').close()\n"


def resolve(folder: Path) -> dict[str, Any]:
    return resolve_network({"name": "vit_tiny", "pretrained": str(folder)}, in_channels=3, image_size=32, num_classes=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    network: Any = build_network(resolve_network("vit_tiny", in_channels=3, image_size=32, num_classes=5), seed=5)
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def changed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks whether to run code"))
    marker = tmp_path / "ran"

    def with_values(**values: Any) -> tuple[Path, Path]:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "model.safetensors").symlink_to(trained / "model.safetensors")
        (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
        (folder / "config.json").write_text(json.dumps(json.loads((trained / "config.json").read_text()) | values))
        return folder, marker

    return with_values


AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}


def test_an_auto_map_beside_a_known_model_is_ignored(changed: Any, trained: Path) -> None:
    folder, marker = changed(auto_map=AUTO_MAP)
    found, expected = build_network(resolve(folder)).state_dict(), build_network(resolve(trained)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()) and not marker.exists()


def test_a_model_of_its_own_code_is_refused_without_a_question(changed: Any) -> None:
    folder, marker = changed(auto_map=AUTO_MAP, model_type="evil")
    with pytest.raises(ValueError, match="has no config that transformers can read"):
        resolve(folder)
    assert not marker.exists()


def test_only_the_architecture_is_taken_from_a_configuration(changed: Any, trained: Path) -> None:
    folder, _ = changed(
        attn_implementation="somebody/kernels", quantization_config={"quant_method": "evil"}, return_dict=False
    )
    network: Any = build_network(resolve(folder))
    plain: Any = build_network(resolve(trained))
    assert network.config._attn_implementation == plain.config._attn_implementation
    assert not hasattr(network.config, "quantization_config") and network.config.return_dict
    assert torch.equal(network.state_dict()["classifier.weight"], plain.state_dict()["classifier.weight"])


@pytest.mark.parametrize("values", [{"hidden_size": "x"}, {"model_type": [1]}, {"model_type": None}, {"vit": 1}])
def test_a_configuration_that_fails_is_one_sentence(values: dict[str, Any], changed: Any) -> None:
    folder, _ = changed(**values)
    if "vit" in values:
        (folder / "config.json").write_text("{")
    with pytest.raises((ValueError, OSError)) as caught:
        resolve(folder)
    assert len(str(caught.value)) < 500 or isinstance(caught.value, OSError)
    assert str(folder) in str(caught.value)


def test_weights_that_are_damaged_or_not_finite_are_named(changed: Any) -> None:
    folder, _ = changed()
    weights = folder / "model.safetensors"
    state = load_file(weights)
    weights.unlink()
    save_file({**state, "vit.layernorm.bias": torch.full((192,), torch.nan)}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"tensor 'vit.layernorm.bias' of .* holds NaN or Inf"):
        build_network(resolve(folder))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"the weights of .* are damaged"):
        build_network(resolve(folder))


def test_a_spec_without_its_configuration_reads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve_network("vit_tiny", in_channels=3, image_size=32, num_classes=5)
    monkeypatch.setattr("pdiff_hub.networks.vision._read_config", lambda *_: pytest.fail("reads what the spec names"))
    with pytest.raises(ValueError, match="lacks config: complete it with resolve_network first"):
        build_network({**spec, "pretrained": "/etc"}, pretrained=False)


def test_every_call_that_could_run_downloaded_code_forbids_it() -> None:
    """Whatever reads a model or its configuration by the automatic classes of transformers says so explicitly."""
    calls = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr == "from_pretrained" and (owner.startswith("Auto") or owner == "model_class"):
                calls.append((file.name, {word.arg: ast.unparse(word.value) for word in node.keywords}))
    assert len(calls) >= 2
    assert [file for file, words in calls if words.get("trust_remote_code") != "False"] == []
