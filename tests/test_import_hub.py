"""Checkpoints and bases from the Hub: revisions under any usual name, sharded ones, and what is not there."""

from __future__ import annotations

import io
import json

import pytest
import torch
from loopback_hub import LoopbackHub
from no_waiting import without_pauses
from safetensors.torch import save
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.importing import HubFile, import_checkpoints
from pdiff_hub.travelling.param_autoencoder import ParamLayout

ID, INDEX = "user/net", "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def quick(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


LAYOUT = ParamLayout.from_module(network())
STATES = [{name: torch.full(t.shape, float(k)) for name, t in network().state_dict().items()} for k in range(3)]


def pickled(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def sharded(state: dict[str, Tensor], folder: str = "") -> dict[str, bytes]:
    shards = {"model-00001-of-00002.safetensors": ["0.weight", "0.bias"], "model-00002-of-00002.safetensors": []}
    shards["model-00002-of-00002.safetensors"] = [name for name in state if name.startswith("1.")]
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    files = {shard: save({name: state[name] for name in names}) for shard, names in shards.items()}
    return {f"{folder}{name}": content for name, content in {**files, INDEX: json.dumps(index).encode()}.items()}


def load(*revisions: str, **options: str) -> CheckpointDataset:
    return import_checkpoints(ID, LAYOUT, network={"name": "x"}, hub=HubFile(revisions, **options))


def test_revisions_in_the_order_given(hub: LoopbackHub) -> None:
    revisions = {"step30": 0, "step4": 1, "main": 2}
    for revision, k in revisions.items():
        hub.add(ID, {"model.safetensors": save(STATES[k])}, revision=revision)
    dataset = load(*revisions)
    assert torch.equal(dataset.params_KP, LAYOUT.flatten(STATES))
    assert [row["step"] for row in dataset.metadata] == [30, 4, None]
    assert dataset.metadata[0]["file"] == f"{ID}@step30/model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors of user/net at revision 'gone'"):
        load("main", "gone")
    with pytest.raises(FileNotFoundError, match=r"net\.bin of user/net at revision 'main' is not there .*filename"):
        load("main", "step4", filename="net.bin")
    for names in (("main", "main"), ()):
        with pytest.raises(ValueError, match="expected different ones"):
            load(*names)


@pytest.mark.parametrize("filename", ["pytorch_model.bin", "last.ckpt", "best.pth.tar", "checkpoints", f"deep/{INDEX}"])
def test_files_of_any_usual_name(hub: LoopbackHub, filename: str) -> None:
    for revision, state in zip(("a", "b"), STATES, strict=False):
        files = {filename: pickled(state)} if not filename.endswith(INDEX) else sharded(state, "deep/")
        hub.add(ID, files, revision=revision)
    assert torch.equal(load("a", "b", filename=filename).params_KP, LAYOUT.flatten(STATES[:2]))


def test_an_index_that_leads_elsewhere_is_refused(hub: LoopbackHub) -> None:
    for shard in ("../secret.safetensors", "/etc/passwd", "a/b.safetensors", ".hidden", 3, INDEX):
        index = json.dumps({"weight_map": {"0.weight": shard}}).encode()
        for revision in ("a", "b"):
            hub.add(ID, {INDEX: index}, revision=revision)
        with pytest.raises(ValueError, match=r"the shard of '0\.weight' is .*expected a file beside the index"):
            load("a", "b", filename=INDEX)


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", INDEX, "old/net.pt"])
def test_a_base_on_the_hub(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory, form: str) -> None:
    base = {name: torch.randn(tensor.shape) for name, tensor in STATES[0].items()}
    contents = save(base) if form == "model.safetensors" else pickled({f"module.{k}": v for k, v in base.items()})
    commit = hub.add("user/base", sharded(base) if form == INDEX else {form: contents}, revision="main")
    folder = tmp_path_factory.mktemp("heads")
    for k, state in enumerate(STATES):
        torch.save({name: tensor for name, tensor in state.items() if name.startswith("1.")}, folder / f"{k}.pth")
    given = "user/base@main/old/net.pt" if form == "old/net.pt" else "user/base"
    layout = ParamLayout.from_module(network(), "head")
    dataset = import_checkpoints(folder, layout, network={"name": "x"}, base=given)
    assert torch.equal(dataset.params_KP, layout.flatten(STATES))
    assert torch.equal(dataset.frozen["0.weight"], base["0.weight"])
    assert dataset.collect["base"]["file"] == f"user/base@{commit}/{form}"
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors of user/gone at revision 'main'"):
        import_checkpoints(folder, layout, network={"name": "x"}, base="user/gone")
