"""One file is not always one exact, whole state dict: names, shards, prefixes, strangers, bases, odd tensors."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pdiff_hub import runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.importing import import_checkpoints, importer
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.recipes import recipe_from_dict
from pdiff_hub.travelling.param_autoencoder import ParamLayout

StateDict = dict[str, Tensor]
SPEC = {"name": "x"}


class Network(nn.Module):
    """Two linear layers and what is seldom tested: integers, a mask of -inf, a scalar, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.pick = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))


LAYOUT = ParamLayout.from_module(Network())
HEAD = ParamLayout.from_module(Network(), "head")


def states(num: int = 3) -> list[StateDict]:
    """State dicts that differ in all float tensors but the mask."""
    torch.manual_seed(0)
    first = Network().state_dict()
    chosen = {entry.name for entry in LAYOUT.entries}
    return [{n: torch.rand(t.shape) if n in chosen else t.clone() for n, t in first.items()} for _ in range(num)]


def write(folder: Path, contents: list[Any], name: str = "{}.pt") -> Path:
    for k, content in enumerate(contents):
        path = folder / name.format(k)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)
    return folder


def read(folder: Path, layout: ParamLayout = LAYOUT, **options: Any) -> CheckpointDataset:
    return import_checkpoints(folder, layout, network=options.pop("network", SPEC), **options)


def assert_holds(dataset: CheckpointDataset, expected: list[StateDict]) -> None:
    for k, state in enumerate(expected):
        found = dataset.state_dict(k)
        Network().load_state_dict(found, strict=True)
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


# Names of files


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("{}.bin", None),
        ("{}.bin", "*.bin"),
        ("epoch={}.ckpt", None),
        ("checkpoint-{}.pth.tar", None),
        ("{}", None),
        ("NN_{}/checkpoints", "*/checkpoints"),
        ("{}.weights", "*.weights"),
    ],
)
def test_a_file_may_have_any_name(tmp_path: Path, name: str, pattern: str | None) -> None:
    folder = write(tmp_path, states(), name)
    (tmp_path / "notes").write_text("not weights")
    (tmp_path / ".hidden").write_bytes(b"\x80")
    assert_holds(read(folder, pattern=pattern), states())


def test_content_decides_how_a_file_is_read(tmp_path: Path) -> None:
    for k, state in enumerate(states()):
        save_file(state, tmp_path / f"{k}.safetensors")
        (tmp_path / f"{k}.safetensors").rename(tmp_path / f"{k}.bin")
    assert_holds(read(tmp_path), states())


def test_what_lies_beside_the_usual_names_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path, states())
    torch.save({"lr": torch.ones(1)}, tmp_path / "training_args.bin")
    assert len(read(tmp_path)) == 3
    other = write(write(tmp_path / "other", states(), "{}.bin"), states(), "{}.ckpt")
    with pytest.raises(ValueError, match=r"has files with \.bin, \.ckpt; choose with pattern, e\.g\. \"\*\.ckpt\""):
        read(other)
    assert len(read(other, pattern="*.ckpt")) == 3


@pytest.mark.parametrize("pattern", ["/etc/*.pt", "", "**.pt", "../*.pt", "a/../../*.pt"])
def test_a_pattern_stays_in_the_folder(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern is .*, expected a glob of files inside the folder"):
        read(tmp_path, pattern=pattern)


# Shards


def write_shards(folder: Path, state: StateDict, suffix: str = ".safetensors") -> Path:
    folder.mkdir(parents=True)
    where: dict[str, str] = {}
    for number, names in enumerate((list(state)[:3], list(state)[3:]), start=1):
        file = f"model-{number:05d}-of-00002{suffix}"
        write(folder, [{name: state[name] for name in names}], file)
        where |= dict.fromkeys(names, file)
    (folder / f"model{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("pattern", ["*/model*{}", "*/*.index.json", "*/model-00001-*"])
def test_shards_are_one_checkpoint(tmp_path: Path, suffix: str, pattern: str) -> None:
    for k, state in enumerate(states()):
        write_shards(tmp_path / f"step-{10 * k}", state, suffix)
    dataset = read(tmp_path, pattern=pattern.format(suffix))
    assert_holds(dataset, states())
    assert [row["step"] for row in dataset.metadata] == [0, 10, 20]
    assert dataset.metadata[0]["file"] == f"step-0/model{suffix}.index.json"


def test_shards_that_do_not_fit_their_index(tmp_path: Path) -> None:
    folders = [write_shards(tmp_path / f"{k}", state) for k, state in enumerate(states())]
    index, shard = folders[1] / "model.safetensors.index.json", folders[1] / "model-00001-of-00002.safetensors"
    whole, known = index.read_text(), json.loads(index.read_text())["weight_map"]
    read_all: dict[str, Any] = {"pattern": "*/*.index.json"}
    for content, message in (
        ("[]", r"index\.json holds list"),
        ("[" * 100_000, r"index\.json is not JSON"),
        ("{}", "has no weight_map"),
        (json.dumps({"weight_map": {**known, "body.0.weight": "../x"}}), r"the shard of 'body\.0\.weight' is '\.\./x'"),
        (json.dumps({"weight_map": {**known, "more": next(iter(known.values()))}}), "lacks 'more'"),
        (
            json.dumps({"weight_map": {name: file for name, file in known.items() if name != "head.bias"}}),
            "holds 'head.bias', which the index does not say",
        ),
    ):
        index.write_text(content)
        with pytest.raises(ValueError, match=message):
            read(tmp_path, **read_all)
    index.write_text(whole)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"1/model\S*json lists the shard model-00001-\S+, which is not there"):
        read(tmp_path, **read_all)


# Prefixes, keys and strangers


def renamed(state: StateDict, prefix: str) -> StateDict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.", "_orig_mod.", "module.model.", "a.b.c."])
@pytest.mark.parametrize("head_only", [False, True])
def test_a_prefix_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture, prefix: str, head_only: bool) -> None:
    whole = states()
    kept = [{n: t for n, t in state.items() if not head_only or n.startswith("head.")} for state in whole]
    write(tmp_path / "files", [renamed(state, prefix) for state in kept])
    torch.save(whole[0], tmp_path / "base.pt")
    options: dict[str, Any] = {"layout": HEAD, "base": tmp_path / "base.pt"} if head_only else {}
    with caplog.at_level(logging.WARNING):
        dataset = read(tmp_path / "files", **options)
    assert_holds(dataset, kept)
    assert dataset.collect["prefix"] == prefix and (prefix in caplog.text) and bool(caplog.text) == bool(prefix)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_wrappers_inside_names(tmp_path: Path, prefix: str) -> None:
    def wrapped(name: str) -> str:
        return prefix + name.replace("body.", "body.module.").replace("head.", "_orig_mod.head.")

    write(tmp_path, [{wrapped(name): tensor for name, tensor in state.items()} for state in states()])
    dataset = read(tmp_path)
    assert_holds(dataset, states())
    assert dataset.collect["wrappers"] == ["_orig_mod", "module"] and dataset.collect["prefix"] == prefix


def test_a_prefix_that_does_not_fit_exactly_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path / "less", [renamed({n: t for n, t in s.items() if n != "head.bias"}, "net.") for s in states()])
    with pytest.raises(ValueError, match=r"names here begin with 'net\.': give it as prefix"):
        read(tmp_path / "less")
    write(tmp_path / "more", [{**renamed(s, "net."), "teacher.weight": torch.ones(1)} for s in states()])
    with pytest.raises(
        ValueError, match=r"names begin with 'net\.' here\. If 'teacher\.weight' is not needed.*ignore: \['teacher"
    ):
        read(tmp_path / "more")
    write(tmp_path / "two", [renamed(s, "student.") | renamed(s, "teacher.") for s in states()])
    with pytest.raises(ValueError, match=r"ignore: \['(student|teacher)"):
        read(tmp_path / "two")
    assert_holds(read(tmp_path / "two", ignore=["teacher.*"]), states())
    inner = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    layout = ParamLayout.from_module(inner, ["0.weight"])
    write(tmp_path / "ambiguous", [{"a.1.0.weight": torch.rand(2, 2)} for _ in range(2)])
    torch.save(inner.state_dict(), tmp_path / "base.pt")
    assert read(tmp_path / "ambiguous", layout, base=tmp_path / "base.pt").collect["prefix"] == "a.1."


def test_known_strangers_are_left_out_and_others_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    averaged = [{**renamed(state, "module."), "n_averaged": torch.tensor(3)} for state in states()]
    lightning = [{**renamed(state, "model."), "criterion.weight": torch.ones(10)} for state in states()]
    counted = [
        {**state, "total_ops": torch.zeros(1), "body.0.total_params": torch.zeros(1), "body.0.total_ops": torch.ones(1)}
        for state in states()
    ]
    for name, contents, prefix, ignored in (
        ("averaged", averaged, "module.", ["n_averaged"]),
        ("lightning", lightning, "model.", ["criterion.weight"]),
        ("counted", counted, "", ["body.0.total_ops", "body.0.total_params", "total_ops"]),
    ):
        folder = write(tmp_path / name, contents)
        for given in dict.fromkeys(("", prefix)):
            caplog.clear()
            dataset = read(folder, prefix=given, output_dir=tmp_path / f"set-{name}{given}")
            assert_holds(dataset, states())
            assert dataset.collect["ignored"] == ignored and f"left out {ignored[0]}" in caplog.text
    write(tmp_path / "others", [{**state, "best": 3, "m.x": torch.ones(1), "m.y": torch.ones(1)} for state in states()])
    with pytest.raises(ValueError, match=r"'best' is a int, expected a tensor; .*leave it out: ignore: \['best'\]"):
        read(tmp_path / "others")
    with pytest.raises(ValueError, match=r"unexpected tensor 'm\.x'.*leave it out: ignore: \['m\.x'\]"):
        read(tmp_path / "others", ignore=["best"])
    dataset = read(tmp_path / "others", ignore=["best", "m.*"])
    assert_holds(dataset, states())
    assert dataset.collect["ignored"] == ["m.x", "m.y"] and dataset.collect["ignore"] == ["best", "m.*"]


def test_what_the_network_has_is_no_stranger(tmp_path: Path) -> None:
    network = nn.Module()
    network.criterion, network.total_ops = nn.Linear(2, 2), nn.Parameter(torch.zeros(1))
    layout = ParamLayout.from_module(network)
    contents = [{name: torch.rand(tensor.shape) for name, tensor in network.state_dict().items()} for _ in range(2)]
    dataset = read(write(tmp_path, contents), layout)
    assert torch.equal(dataset.params_KP, layout.flatten(contents)) and "ignored" not in dataset.collect


def test_a_stopped_import_remembers_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [{**state, f"criterion.{k}": torch.ones(1)} for k, state in enumerate(states(3))]
    folder = write(tmp_path / "files", contents)
    monkeypatch.setattr(importer, "_PART_BYTES", 4 * LAYOUT.num_params)
    original = importer.read_state_dict

    def stops(path: Path, *args: Any) -> StateDict:
        if path.name == "2.pt":
            raise KeyboardInterrupt
        return original(path, *args)

    monkeypatch.setattr(importer, "read_state_dict", stops)
    with pytest.raises(KeyboardInterrupt):
        read(folder, output_dir=tmp_path / "set")
    monkeypatch.setattr(importer, "read_state_dict", original)
    dataset = read(folder, output_dir=tmp_path / "set")
    assert dataset.collect["ignored"] == [f"criterion.{k}" for k in range(3)]
    assert_holds(dataset, states(3))


def test_keys_of_any_depth(tmp_path: Path) -> None:
    def content(state: StateDict) -> dict[str, Any]:
        return {"epoch": 3, "checkpoint": {"model": state, "step": 1, "a.b": {"c": state}}, "optimizer": {"state": {}}}

    write(tmp_path, [content(state) for state in states()])
    for key in ("checkpoint.model", "checkpoint.a.b.c"):
        assert_holds(read(tmp_path, key=key), states())
    with pytest.raises(ValueError, match=r"give its key: one of \['checkpoint\.model', 'checkpoint\.a\.b\.c'\]"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"0\.pt has no 'net'; it has \['model', 'step', 'a\.b'\]"):
        read(tmp_path, key="checkpoint.net")


# Files that hold the trained layers only


def heads(folder: Path, *more: str) -> Path:
    wanted = ("head.", *more)
    return write(folder, [{n: t for n, t in state.items() if n.startswith(wanted)} for state in states()])


@pytest.mark.parametrize("form", ["bare", "inside", "wrapped", "beside", "folder", "shards", "home"])
def test_the_rest_is_taken_from_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    folder, base = heads(tmp_path / "files"), states(4)[3]
    given: str | Path = tmp_path / "base.pt"
    if form == "bare":
        torch.save(base, given)
    elif form == "inside":
        torch.save({"epoch": 3, "state_dict": base, "optimizer": {"state": {}}}, given)
    elif form == "wrapped":
        torch.save({**renamed(base, "module."), "n_averaged": torch.tensor(1), "other": torch.ones(1)}, given)
    elif form == "beside":  # it is not taken for a checkpoint
        torch.save(base, folder / "base.pt")
        given = "base.pt"
    elif form == "folder":
        given = tmp_path / "base"
        write(given, [base], "model.safetensors")
    elif form == "shards":
        given = write_shards(tmp_path / "base", base)
    else:
        monkeypatch.setenv("HOME", str(tmp_path))
        torch.save(base, given)
        given = "~/base.pt"
    dataset = read(folder, HEAD, base=given, output_dir=tmp_path / "set")
    assert len(dataset) == 3
    for k, state in enumerate(states()):
        found = dataset.state_dict(k)
        Network().load_state_dict(found, strict=True)
        expected = {**base, **{n: t for n, t in state.items() if n.startswith("head.")}}
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    known = dataset.collect["base"]
    assert Path(known["file"]).name == known["file"] and len(known["sha256"]) == 64
    assert str(tmp_path) not in str(dataset.collect)


def test_without_a_base_the_sentence_asks_for_one(tmp_path: Path) -> None:
    folder = heads(tmp_path / "files")
    with pytest.raises(ValueError, match=r"0\.pt: missing tensor 'temperature', .* give as base the file or Hub id"):
        read(folder, HEAD)
    with pytest.raises(
        ValueError, match=r"missing tensor 'temperature': the layout expects it"
    ):  # the base gives nothing that is selected
        read(folder, LAYOUT, base=write(tmp_path, states(1)) / "0.pt")
    with pytest.raises(FileNotFoundError, match=r"base nothing\.pt is no file; expected one"):
        read(folder, HEAD, base="nothing.pt")
    torch.save({"other": torch.ones(1)}, tmp_path / "base.pt")
    with pytest.raises(ValueError, match=r"missing tensor 'temperature', which the base \S+base\.pt lacks too"):
        read(folder, HEAD, base=tmp_path / "base.pt")
    torch.save({**states(1)[0], "body.0.weight": torch.ones(2, 2)}, tmp_path / "base.pt")
    with pytest.raises(ValueError, match=r"^base \S+base\.pt: tensor 'body\.0\.weight' has shape \[2, 2\]"):
        read(folder, HEAD, base=tmp_path / "base.pt")


def test_files_need_not_lack_the_same(tmp_path: Path) -> None:
    base = states(4)[3]
    folder = heads(tmp_path / "files")
    more = torch.load(folder / "1.pt")
    torch.save({**more, "body.0.bias": base["body.0.bias"]}, folder / "1.pt")
    torch.save(base, tmp_path / "base.pt")
    assert len(read(folder, HEAD, base=tmp_path / "base.pt")) == 3
    torch.save({**more, "body.0.bias": torch.ones(4)}, folder / "1.pt")
    with pytest.raises(ValueError, match=r"1\.pt: tensor 'body\.0\.bias' is not selected, but differs from that in 0"):
        read(folder, HEAD, base=tmp_path / "base.pt")


def test_the_network_itself_is_a_base_where_it_is_not_drawn(tmp_path: Path) -> None:
    pretrained = states(4)[3]

    def build(seed: int) -> nn.Module:
        network = Network()
        network.load_state_dict(pretrained)
        return network

    def draw(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Network()

    folder = heads(tmp_path)
    for options in ({"base": "network"}, {"network": {"name": "x", "pretrained": "user/net"}}):
        dataset = read(folder, HEAD, build=build, **options)
        assert torch.equal(dataset.frozen["body.0.weight"], pretrained["body.0.weight"])
        assert dataset.collect["base"] == {"file": "network"}
        with pytest.raises(ValueError, match=r"'body\.0\.weight', which the network draws at random when it is built"):
            read(folder, HEAD, build=draw, **options)
    with pytest.raises(ValueError, match="nothing builds it here"):
        read(folder, HEAD, base="network")
    # A whole file needs no base, and says of none.
    whole = read(write(tmp_path / "whole", states()), network={"name": "x", "pretrained": "a/b"}, build=build)
    assert "base" not in whole.collect


def test_a_recipe_reaches_the_base_and_ignore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"name": "mlp", "hidden": [4]}
    resolved = resolve_network(spec, in_channels=1, image_size=8, num_classes=10)
    built = [build_network(resolved, seed=seed).state_dict() for seed in range(4)]
    last = sorted({name.rpartition(".")[0] for name in built[0]})[-1]
    write(tmp_path / "runs", [{n: t for n, t in state.items() if n.startswith(last)} | {"x": 3} for state in built])
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base").mkdir()
    torch.save(built[0], tmp_path / "base.pt")
    collect = {"method": "import", "source": "~/runs", "base": "~/base.pt", "ignore": "x"}
    recipe = recipe_from_dict({"task": "digits", "network": spec, "select": "head", "collect": collect})
    assert recipe_from_dict(recipe.to_dict()) == recipe
    dataset = runs.collect(recipe, tmp_path / "set")
    assert torch.equal(dataset.params_KP, dataset.layout.flatten(built))
    drawn = recipe_from_dict({**recipe.to_dict(), "collect": {**collect, "base": "network"}})
    with pytest.raises(ValueError, match="which the network draws at random when it is built"):
        runs.collect(drawn, tmp_path / "drawn")
    plain = recipe_from_dict({"task": "digits", "network": spec, "collect": {"method": "import", "source": "x"}})
    assert not {"base", "ignore"} & plain.to_dict()["collect"].keys()  # a run begun before there were these goes on


# Tensors that are not generated


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("pick", torch.tensor([2, 1, 0])),
        ("flags", torch.tensor([True, True])),
        ("mask", torch.full((2, 2), -torch.inf)),
        ("mask", torch.full((2, 2), torch.inf).triu(1)),
    ],
)
def test_what_is_not_generated_must_be_equal(tmp_path: Path, name: str, other: Tensor) -> None:
    contents = states()
    contents[1][name] = other
    folder = write(tmp_path, contents)
    with pytest.raises(ValueError, match=rf"1\.pt: tensor '{name}' is not selected, but differs from that in 0\.pt"):
        read(folder)
    torch.save(contents[0], tmp_path / "base.bin")  # for whoever knows that it does not matter
    dataset = read(folder, base=tmp_path / "base.bin", ignore=[name])
    assert torch.equal(dataset.frozen[name], contents[0][name])


def test_counters_may_differ_or_be_missing(tmp_path: Path) -> None:
    contents, counter = states(), "body.1.num_batches_tracked"
    for k, state in enumerate(contents):
        state[counter] = torch.tensor(k + 7)
    assert read(write(tmp_path, contents)).frozen[counter] == 7
    del contents[0][counter]
    dataset = read(write(tmp_path, contents))  # of torch from before 0.4.1
    assert dataset.frozen[counter] == 0 and dataset.frozen[counter].dtype == torch.int64


def test_a_mask_of_minus_infinity_stays_as_it_is(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "files", states()), output_dir=tmp_path / "set")
    assert torch.equal(dataset.frozen["mask"], Network().mask)
    bad = states()
    bad[0]["mask"] = torch.full((2, 2), torch.nan)
    with pytest.raises(ValueError, match=r"0\.pt: tensor 'mask' holds NaN"):
        read(write(tmp_path / "bad", bad))


def test_tied_tensors_that_are_not_selected_may_lie_under_one_name(tmp_path: Path) -> None:
    network = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False), "c": nn.Linear(2, 1)})
    network["b"].weight = network["a"].weight
    layout, tied = ParamLayout.from_module(network, "head"), torch.rand(2, 2)
    assert ParamLayout.from_dict(layout.to_dict()) == layout and "tied" not in str(layout.to_dict())
    write(tmp_path, [{"b.weight": tied, "c.weight": torch.rand(1, 2), "c.bias": torch.rand(1)} for _ in range(2)])
    dataset = read(tmp_path, layout)
    assert torch.equal(dataset.frozen["a.weight"], tied) and torch.equal(dataset.frozen["b.weight"], tied)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(2, 3, dtype=torch.complex64))
        self.register_buffer("table", torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize("name", ["{}.pt", "{}.safetensors"])
def test_complex_parameters_are_pairs(tmp_path: Path, name: str) -> None:
    layout, contents = ParamLayout.from_module(Complex(), buffers=False), [Complex().state_dict() for _ in range(3)]
    dataset = read(write(tmp_path, contents, name), layout)
    dataset.save_pretrained(tmp_path / "set")
    dataset = CheckpointDataset.from_pretrained(tmp_path / "set")
    assert dataset.params_KP.shape == (3, 12)
    for k, state in enumerate(contents):
        assert all(torch.equal(dataset.state_dict(k)[each], tensor) for each, tensor in state.items())
    contents[1]["table"] = torch.ones(2, dtype=torch.complex64) * 1j
    with pytest.raises(ValueError, match="tensor 'table' is not selected, but differs"):
        read(write(tmp_path, contents, name), layout)
    contents[1]["filter"] = contents[1]["filter"].abs()
    with pytest.raises(ValueError, match=r"'filter' has dtype torch\.float32, expected a complex dtype"):
        read(write(tmp_path, contents, name), layout)


# Tensors that torch.save can hold and a network cannot


@pytest.mark.parametrize("which", ["head.weight", "body.0.weight"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: torch.ones(2, 4).to_sparse(), r"is sparse \(sparse_coo\); save it dense"),
        (lambda: torch.ones(2, 4).to_sparse_csr(), r"is sparse \(sparse_csr\)"),
        (lambda: torch.ones(2, 4, device="meta"), "has no values"),
        (lambda: torch.quantize_per_tensor(torch.ones(2, 4), 1.0, 0, torch.qint8), "is quantized; save it with"),
        (lambda: torch.ones(1).expand(10**12), r"has shape \[1000000000000\]"),
        (lambda: torch.ones(1).to(torch.float8_e4m3fn).expand(10**12), r"has shape \[1000000000000\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_odd_tensors_are_named(tmp_path: Path, which: str, value: Callable[[], Tensor], message: str) -> None:
    contents = states()
    contents[1][which] = value()
    with pytest.raises(ValueError, match=rf"1\.pt: .*tensor '{which}' {message}"):
        read(write(tmp_path, contents), HEAD if which != "head.weight" else LAYOUT)


def test_eight_bit_floats_are_read_exactly(tmp_path: Path) -> None:
    contents = [
        {**state, **{each: state[each].to(torch.float8_e4m3fn) for each in ("head.weight", "temperature")}}
        for state in states()
    ]
    dataset = read(write(tmp_path, contents))
    assert torch.equal(dataset.state_dict(1)["head.weight"], contents[1]["head.weight"].float())


def test_a_packed_zip_is_refused(tmp_path: Path) -> None:
    write(tmp_path, states())
    with zipfile.ZipFile(tmp_path / "1.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"0" * (64 << 20))
    with pytest.raises(ValueError, match=r"1\.pt has \d+ bytes and says that it unpacks to 67108864: refused"):
        read(tmp_path)
