"""Imported networks that were trained independently are put into one order; what they answer stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from pdiff_hub import runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.card import render_dataset_card
from pdiff_hub.checkpoints.index import read_index
from pdiff_hub.collect.importing import Alignment, import_checkpoints, importer
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.recipes import load_recipe, recipe_from_dict
from pdiff_hub.travelling.param_autoencoder import ParamLayout

INPUTS = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
NUMBER = 6


def network() -> nn.Module:
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def permuted(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The same function: channels and units change places."""
    generator = torch.Generator().manual_seed(seed)
    channels, units = torch.randperm(6, generator=generator), torch.randperm(8, generator=generator)
    moved = dict(state)
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        moved[name] = state[name][channels]
    flat = state["4.weight"].unflatten(1, (6, 16))[units][:, channels].flatten(1)
    return {**moved, "4.weight": flat, "4.bias": state["4.bias"][units], "6.weight": state["6.weight"][:, units]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files of one network whose units are shuffled, each with a little noise, and a table of what is known."""
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(each.shape, generator=generator) for name, each in network().state_dict().items()}
    state["1.running_var"] = state["1.running_var"].abs() + 0.5
    state["1.num_batches_tracked"] = torch.tensor(3)
    files = tmp_path / "files"
    files.mkdir()
    for seed in range(NUMBER):
        moved = {name: each.contiguous() for name, each in permuted(state, seed).items()}
        save_file(moved, files / f"{seed}.safetensors")
    rows = {f"{seed}.safetensors": {"rate": seed / 10} for seed in range(NUMBER)}
    (files / "table.json").write_text(json.dumps(rows))
    return files


def read(folder: Path, align: Alignment | None, **options: Any) -> CheckpointDataset:
    return import_checkpoints(
        folder,
        ParamLayout.from_module(network()),
        network={"name": "x"},
        conditions="table.json",
        align=align,
        **options,
    )


def answers(dataset: CheckpointDataset) -> Tensor:
    module = network().eval()
    with torch.no_grad():
        states = (dataset.state_dict(row) for row in range(len(dataset)))
        return torch.stack([functional_call(module, state, (INPUTS,)) for state in states])


def spread(dataset: CheckpointDataset) -> float:
    return float((dataset.params_KP - dataset.params_KP.mean(dim=0)).norm(dim=1).mean())


@pytest.mark.parametrize("to_disk", [False, True])
def test_a_shuffled_set_comes_back_together(
    folder: Path, tmp_path: Path, to_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "_PART_BYTES", 2 * 4 * ParamLayout.from_module(network()).num_params)
    plain = read(folder, None)
    aligned = read(folder, Alignment(network(), INPUTS), output_dir=tmp_path / "set" if to_disk else None)
    assert spread(plain) > 1 and spread(aligned) < 1e-4 * spread(plain)
    assert torch.allclose(answers(aligned), answers(plain), rtol=1e-4, atol=1e-4)
    assert aligned.metadata == plain.metadata and aligned.metadata[3]["rate"] == 0.3
    assert torch.equal(aligned.with_conditions("rate").conditions_KD, plain.with_conditions("rate").conditions_KD)
    assert aligned.frozen == plain.frozen
    done = aligned.collect["alignment"]
    assert done["layers"] == ["0", "4"] and done["output_change"] < 1e-5
    assert done["distance_after"] < 1e-4 < done["distance_before"]
    assert aligned.collect["align"] == {"rounds": 4, "seed": 0}
    assert not {"align", "alignment"} & plain.collect.keys()
    if to_disk:
        card = render_dataset_card(read_index(tmp_path / "set"), "user/name")
        assert "`alignment.distance_after`" in card and "`align.rounds`" in card
        again = read(folder, Alignment(network(), INPUTS), output_dir=tmp_path / "set")  # only opens the finished set
        assert torch.equal(again.params_KP, aligned.params_KP)
        with pytest.raises(PdiffError, match=r"align was .* and is not set|align\.rounds was 4"):
            read(folder, None, output_dir=tmp_path / "set")


def test_one_that_was_stopped_while_it_aligned_ends_in_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(folder, Alignment(network(), INPUTS), output_dir=tmp_path / "whole")
    original = Alignment.apply

    def stops(self: Alignment, params_KP: Tensor, *args: Any) -> dict[str, Any]:
        original(self, params_KP, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Alignment, "apply", stops)
    with pytest.raises(KeyboardInterrupt):
        read(folder, Alignment(network(), INPUTS), output_dir=tmp_path / "set")
    monkeypatch.undo()
    again = read(folder, Alignment(network(), INPUTS), output_dir=tmp_path / "set")
    assert torch.equal(again.params_KP, whole.params_KP) and again.collect == whole.collect


class Masked(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)
        self.register_buffer("mask", torch.full((3,), value))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1)) + self.mask.clamp_min(-1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1))
        return self.last(hidden + self.second(hidden.relu()))


@pytest.mark.parametrize(
    ("module", "select", "message"),
    [
        (Masked(-torch.inf), "all", r"'mask' holds infinities, as masks do, .*; set align to false\.$"),
        (network(), "head", r"tensor '0\.weight' is not selected, and a hidden unit .*select all \(buffers too\), or"),
        (Residual(), "all", r"cannot align this network: module 'first' feeds more than the next layer"),
    ],
)
def test_what_cannot_be_aligned_is_refused_before_anything_is_read(
    module: nn.Module, select: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(PdiffError, match=message) as caught:
        import_checkpoints(
            tmp_path / "nothing",
            ParamLayout.from_module(module, select),
            network={"name": "x"},
            align=Alignment(module, INPUTS),
            output_dir=tmp_path / "set",
        )
    assert str(caught.value).count("\n") == 0 and not (tmp_path / "set").exists()


def test_in_a_recipe(tmp_path: Path) -> None:
    collect = {"method": "import", "source": "files"}
    plain = recipe_from_dict({"task": "digits", "network": "mlp3", "collect": collect})
    assert not {"align", "align_rounds"} & plain.to_dict()["collect"].keys()  # so that a run begun before goes on
    for options, message in (({"align": 1}, "align is 1"), ({"align_rounds": 0}, "align_rounds is 0")):
        with pytest.raises(PdiffError, match=message):
            recipe_from_dict({"task": "digits", "network": "mlp3", "collect": {**collect, **options}})
    spec = resolve_network({"name": "mlp", "hidden": [6]}, in_channels=1, image_size=8, num_classes=10)
    first = build_network(spec).state_dict()
    (tmp_path / "files").mkdir()
    names = list(first)
    for seed in range(3):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        moved = {**first, names[0]: first[names[0]][order], names[1]: first[names[1]][order]}
        save_file(
            {**moved, names[2]: first[names[2]][:, order].contiguous()}, tmp_path / "files" / f"{seed}.safetensors"
        )
    (tmp_path / "recipe.yaml").write_text(
        "task: digits\nnetwork: {name: mlp, hidden: [6]}\n"
        f"collect: {{method: import, source: {tmp_path / 'files'}, align: true, align_rounds: 2}}\nseed: 5\n"
    )
    recipe = load_recipe(tmp_path)
    assert recipe_from_dict(recipe.to_dict()).collect == recipe.collect
    dataset = runs.collect(recipe, tmp_path / "set")
    assert spread(dataset) < 1e-5 and dataset.collect["align"] == {"rounds": 2, "seed": 5}
