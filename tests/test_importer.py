"""Checkpoints from elsewhere are read in order and checked tensor by tensor; nothing is guessed, and no code is run."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from pdiff_hub import runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.importing import HubFile, ImportConfig, import_checkpoints, importer
from pdiff_hub.collect.importing.condition_table import read_condition_table
from pdiff_hub.collect.importing.sources import natural_key
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.recipes import recipe_from_dict
from pdiff_hub.travelling.conditioner import ConditionSpec
from pdiff_hub.travelling.param_autoencoder import ParamLayout

StateDict = dict[str, Tensor]
SPEC = {"name": "x"}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def states(num: int = 3, *, same: str = "") -> list[StateDict]:
    """`num` random state dicts. Tensors whose names begin with `same` are equal in all of them."""
    generator = torch.Generator().manual_seed(0)
    found: list[StateDict] = []
    for k in range(num):
        state = network().state_dict()
        for name, tensor in state.items():
            if tensor.is_floating_point():
                state[name] = torch.rand(tensor.shape, generator=generator)
            else:
                state[name] = torch.tensor(10 * k)
            if same and name.startswith(same) and found:
                state[name] = found[0][name].clone()
        found.append(dict(state))
    return found


def write(folder: Path, checkpoints: list[StateDict], suffix: str = ".safetensors", name: str = "step-{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, state in enumerate(checkpoints):
        path = folder / (name.format(k) + suffix)
        path.parent.mkdir(exist_ok=True)
        if suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)
    return folder


def read(folder: Path, select: str | list[str] = "all", **options: Any) -> CheckpointDataset:
    return import_checkpoints(folder, ParamLayout.from_module(network(), select), network=SPEC, **options)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("to_disk", [False, True])
def test_a_folder_in_natural_order(tmp_path: Path, suffix: str, to_disk: bool) -> None:
    checkpoints = states(12)
    write(tmp_path / "runs", checkpoints, suffix)
    (tmp_path / "runs" / "notes.txt").write_text("not a checkpoint")
    dataset = read(tmp_path / "runs", output_dir=tmp_path / "set" if to_disk else None)
    assert torch.equal(dataset.params_KP, dataset.layout.flatten(checkpoints))
    assert [row["step"] for row in dataset.metadata] == list(range(12))
    assert dataset.metadata[2] == {
        **dict.fromkeys(("seed", "train_loss", "validation_loss", "validation_accuracy")),
        "run": "runs",
        "step": 2,
        "file": f"step-2{suffix}",
    }
    assert dataset.collect["method"] == "import" and str(tmp_path) not in str(dataset.collect)
    for k in (0, 11):
        network().load_state_dict(dataset.state_dict(k), strict=True)
    assert dataset.frozen == {"1.num_batches_tracked": torch.tensor(0)}  # it differs between files; the first counts
    if to_disk:
        assert_equal(read(tmp_path / "runs", output_dir=tmp_path / "set"), dataset)  # only opens the finished set
        with pytest.raises(ValueError, match=r"prefix was '' and is 'module\.'"):
            read(tmp_path / "runs", output_dir=tmp_path / "set", prefix="module.")


def assert_equal(left: CheckpointDataset, right: CheckpointDataset) -> None:
    assert torch.equal(left.params_KP, right.params_KP)
    assert left.metadata == right.metadata and left.collect == right.collect and left.layout == right.layout


def test_an_import_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = states(7)
    write(tmp_path / "runs", checkpoints)
    monkeypatch.setattr(importer, "_PART_BYTES", 2 * 4 * ParamLayout.from_module(network()).num_params)
    opened: list[str] = []
    original = importer.read_state_dict

    def stops(path: Path, *args: Any) -> StateDict:
        opened.append(path.name)
        if path.name == "step-5.safetensors" and len(opened) < 8:
            raise KeyboardInterrupt
        return original(path, *args)

    monkeypatch.setattr(importer, "read_state_dict", stops)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "runs", output_dir=tmp_path / "set")
    opened.extend(["-"] * 8)
    dataset = read(tmp_path / "runs", output_dir=tmp_path / "set")
    # Read again: the first file, for the frozen tensors, and the files that were not committed. A part holds two files.
    assert opened[opened.index("-") + 8 :] == [f"step-{k}.safetensors" for k in (0, 4, 5, 6)]
    assert torch.equal(dataset.params_KP, dataset.layout.flatten(checkpoints))


def test_containers_are_unwrapped_only_on_request(tmp_path: Path) -> None:
    checkpoints = states(2)
    folder = tmp_path / "runs"
    folder.mkdir()
    for k, state in enumerate(checkpoints):
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, "model": wrapped, "optimizer": {"state": {}}}, folder / f"{k}.pt")
    with pytest.raises(ValueError, match=r"0\.pt: 'epoch' is a int, expected a tensor; .*key: one of \['model'\]"):
        read(folder)
    with pytest.raises(ValueError, match=r"0\.pt has no 'state_dict'; it has \['epoch', 'model', 'optimizer'\]"):
        read(folder, key="state_dict")
    with pytest.raises(ValueError, match=r"0\.pt: tensor 'module.0.weight' does not begin with the prefix 'net\.'"):
        read(folder, key="model", prefix="net.")
    dataset = read(folder, key="model", prefix="module.")
    assert torch.equal(dataset.params_KP, dataset.layout.flatten(checkpoints))
    assert [row["step"] for row in dataset.metadata] == [0, 1]


def test_files_in_folders_below(tmp_path: Path) -> None:
    write(tmp_path, states(11), name="checkpoint-{}/model")
    with pytest.raises(FileNotFoundError, match=re.escape('a pattern, e.g. "*/model.safetensors"')):
        read(tmp_path)
    dataset = read(tmp_path, pattern="*/model.safetensors")
    assert [row["file"] for row in dataset.metadata][-1] == "checkpoint-10/model.safetensors"
    assert [row["step"] for row in dataset.metadata] == list(range(11))


def test_a_selection_keeps_the_rest_once(tmp_path: Path) -> None:
    checkpoints = states(3, same="0")
    for state in checkpoints:
        state["1.running_mean"], state["1.running_var"] = torch.zeros(4), torch.ones(4)
    write(tmp_path, checkpoints)
    names = ["1.weight", "1.bias", "2.weight", "2.bias"]
    dataset = read(tmp_path, names)
    assert dataset.params_KP.shape == (3, 4 + 4 + 8 + 2)
    for k, state in enumerate(checkpoints):
        module = network()
        module.load_state_dict(dataset.state_dict(k), strict=True)
        assert all(
            torch.equal(tensor, state[name])
            for name, tensor in module.state_dict().items()
            if tensor.is_floating_point()
        )
    (tmp_path / "step-0.safetensors").write_bytes(b"")  # the data set no longer needs the files it came from
    assert torch.equal(dataset.frozen["0.weight"], checkpoints[0]["0.weight"])


def test_whole_networks_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, states(8, same=""), name="{}")
    alive: list[weakref.ref[Tensor]] = []
    original = importer.read_state_dict

    def watched(*args: Any) -> StateDict:
        assert sum(reference() is not None for reference in alive) <= 2  # the first network and the previous one
        state = original(*args)
        alive.append(weakref.ref(state["0.weight"]))
        return state

    monkeypatch.setattr(importer, "read_state_dict", watched)
    assert len(read(tmp_path)) == 8 and len(alive) == 8


def test_a_rest_that_differs_is_refused(tmp_path: Path) -> None:
    write(tmp_path, states(3, same="0"))
    with pytest.raises(ValueError, match=r"step-1\.safetensors: tensor '1\.running_mean' .* differs .*step-0.*buffers"):
        read(tmp_path, ["1.weight", "1.bias", "2.weight", "2.bias"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("dropped", ["a.weight", "b.weight", None])
def test_tied_tensors_under_one_of_their_names(tmp_path: Path, dropped: str | None) -> None:
    for k in range(2):
        state = {name: tensor.clone() for name, tensor in Tied().state_dict().items() if name != dropped}
        save_file(state, tmp_path / f"{k}.safetensors")
    dataset = import_checkpoints(tmp_path, ParamLayout.from_module(Tied()), network=SPEC)
    Tied().load_state_dict(dataset.state_dict(1), strict=True)
    assert torch.equal(dataset.state_dict(1)["b.weight"], state["a.weight" if dropped == "b.weight" else "b.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoints = [
        {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        for state in states(2, same="0")
    ]
    write(tmp_path, checkpoints)
    assert torch.equal(read(tmp_path).params_KP[1, :12], checkpoints[1]["0.weight"].flatten().float())
    for state in checkpoints:
        state["0.weight"] = torch.full((4, 3), 0.1, dtype=dtype)
        state["1.running_mean"], state["1.running_var"] = torch.zeros(4), torch.ones(4)
    write(tmp_path, checkpoints)
    if dtype == torch.float64:
        with pytest.raises(ValueError, match=r"'0\.weight' is torch.float64, and does not fit into torch.float32"):
            read(tmp_path, ["0.bias", "1.weight", "1.bias", "2.weight", "2.bias"])
    else:
        dataset = read(tmp_path, ["0.bias", "1.weight", "1.bias", "2.weight", "2.bias"])
        assert dataset.frozen["0.weight"].dtype == torch.float32


def drop(name: str) -> Callable[[StateDict], None]:
    return lambda state: state.__delitem__(name)


def put(name: str, tensor: Tensor) -> Callable[[StateDict], None]:
    return lambda state: state.__setitem__(name, tensor)


@pytest.mark.parametrize("select", ["all", "head"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (drop("2.bias"), "2.bias", "missing tensor"),
        (drop("0.weight"), "0.weight", "missing tensor"),
        (put("9.weight", torch.zeros(1)), "9.weight", "unexpected tensor"),
        (put("2.bias", torch.zeros(3)), "2.bias", r"shape \[3\], expected \[2\]"),
        (put("0.weight", torch.zeros(4, 4)), "0.weight", r"shape \[4, 4\], expected \[4, 3\]"),
        (put("2.bias", torch.tensor([0.0, torch.nan])), "2.bias", "NaN or Inf"),
        (put("2.bias", torch.tensor([torch.inf, 0.0])), "2.bias", "NaN or Inf"),
        (put("0.bias", torch.tensor([0.0, 0.0, torch.nan, 0.0])), "0.bias", "holds NaN"),
        (put("2.bias", torch.tensor([1e300, 0.0], dtype=torch.float64)), "2.bias", "NaN or Inf"),
        (put("2.bias", torch.tensor([1, 2])), "2.bias", "expected a float dtype"),
    ],
)
def test_a_bad_tensor_is_named_with_its_file(
    tmp_path: Path, select: str, suffix: str, which: int, change: Callable[[StateDict], None], name: str, message: str
) -> None:
    checkpoints = states(3, same="" if select == "all" else "0")
    for state in checkpoints:
        state |= {
            f"1.{rest}": checkpoints[0][f"1.{rest}"].clone()
            for rest in ("weight", "bias", "running_mean", "running_var")
        }
    change(checkpoints[which])
    write(tmp_path, checkpoints, suffix)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, select)
    assert f"step-{which}{suffix}" in str(caught.value) and f"'{name}'" in str(caught.value)


def test_two_networks_in_one_folder(tmp_path: Path) -> None:
    write(tmp_path, [*states(2), dict(nn.Linear(3, 4).state_dict())])
    with pytest.raises(ValueError, match=r"step-2\.safetensors: .*tensor '"):
        read(tmp_path)


def test_what_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        read(tmp_path)
    write(tmp_path, states(1))
    with pytest.raises(ValueError, match=r"one checkpoint only, step-0\.safetensors"):
        read(tmp_path)
    write(tmp_path, states(2), ".pt")
    with pytest.raises(ValueError, match=r"both \.safetensors and \.pt/\.pth"):
        read(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt is matched by pattern '\*', but is none of"):
        read(tmp_path, pattern="*")
    assert len(read(tmp_path, pattern="*.pt")) == 2


@given(st.lists(st.integers(0, 10**6), unique=True), st.text(alphabet="ab-_./", max_size=5))
def test_numbers_sort_by_value(numbers: list[int], stem: str) -> None:
    names = [f"{stem}{number}.pt" for number in numbers]
    assert sorted(names, key=natural_key) == [f"{stem}{number}.pt" for number in sorted(numbers)]


@given(st.lists(st.text(max_size=6), unique=True), st.randoms())
def test_the_order_does_not_depend_on_the_file_system(names: list[str], random: Any) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == sorted(names, key=natural_key)


def test_options_in_a_recipe() -> None:
    assert ImportConfig(source="runs").hub is None
    assert ImportConfig("user/net", revisions=("a", "b")).hub == HubFile(("a", "b"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "source is ''"),
        ({"source": "x", "revisions": "main"}, "revisions is 'main'"),
        ({"source": "x", "revisions": (1, 2)}, "revisions is"),
        ({"source": "x", "revisions": ("a", "b"), "pattern": "*"}, "give filename"),
        ({"source": "x", "pattern": "/etc/*.pt"}, "pattern is '/etc/\\*.pt', expected a glob of files inside"),
        ({"source": "x", "pattern": ""}, "pattern is ''"),
        ({"source": "x", "pattern": "a/../../*.pt"}, "pattern is"),
        ({"source": "x", "pattern": "**.pt"}, "pattern is"),
        ({"source": "x", "key": 3}, "key is 3, expected the name of an entry"),
        ({"source": "x", "key": ""}, "key is ''"),
        ({"source": "x", "prefix": None}, "prefix is None, expected the text before"),
        ({"source": "x", "base": 3}, 'base is 3, expected a file, a Hub repository id, or "network"'),
        ({"source": "x", "ignore": ("a.*", 3)}, "ignore is .*, expected names of tensors to leave out"),
        ({"source": "x", "ignore": 3}, "ignore is 3, expected names of tensors"),
        ({"source": "x", "filename": ""}, "filename is ''"),
        (
            {"source": "x", "conditions": ("a.csv",)},
            r"conditions is \('a.csv',\), expected the name of a .csv or .json",
        ),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            ImportConfig(**options)


FILES = [f"step-{k}.safetensors" for k in range(4)]
CSV = """file, rate ,optimizer,epochs,validation_accuracy,run
step-3.safetensors,0.1,adam,3,0.9,07
step-0.safetensors,1e-3,"sgd, plain",10,,8

step-2.safetensors,,adam,5,0.5,
"""
KNOWN: dict[str, dict[str, Any]] = {
    "step-3.safetensors": {"rate": 0.1, "optimizer": "adam", "epochs": 3, "validation_accuracy": 0.9, "run": "07"},
    "step-0.safetensors": {"rate": 1e-3, "optimizer": "sgd, plain", "epochs": 10, "run": "8"},
    "step-2.safetensors": {"optimizer": "adam", "epochs": 5, "validation_accuracy": 0.5},
}
TABLES = {
    "conditions.csv": CSV,
    "bom.csv": "\ufeff" + CSV.replace("\n", "\r\n"),
    "list.json": json.dumps([{"file": name, **row} for name, row in KNOWN.items()]),
    "object.json": json.dumps({**KNOWN, "step-2.safetensors": {**KNOWN["step-2.safetensors"], "rate": None}}),
}


def test_a_recipe_names_the_table_and_the_column(tmp_path: Path) -> None:
    spec = {"name": "mlp", "hidden": [4]}
    resolved = resolve_network(spec, in_channels=1, image_size=8, num_classes=10)
    write(tmp_path / "runs", [build_network(resolved, seed=seed).state_dict() for seed in range(4)])
    (tmp_path / "runs" / "conditions.csv").write_text(CSV)
    collect = {"method": "import", "source": str(tmp_path / "runs"), "conditions": "conditions.csv"}
    recipe = recipe_from_dict({"task": "digits", "network": spec, "collect": collect, "condition": "rate"})
    dataset = runs.collect(recipe, tmp_path / "set")
    assert dataset.with_conditions("rate").conditions == ConditionSpec("rate", "scalar", 1, low=(0.001,), high=(0.1,))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("to_disk", [False, True])
def test_a_table_beside_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, to_disk: bool) -> None:
    monkeypatch.setattr(importer, "_PART_BYTES", 2 * 4 * ParamLayout.from_module(network()).num_params)
    write(tmp_path / "runs", states(4))
    (tmp_path / "runs" / name).write_bytes(TABLES[name].encode())
    out = tmp_path / "set" if to_disk else None
    dataset = read(tmp_path / "runs", conditions=name, output_dir=out)
    for row, file in zip(dataset.metadata, FILES, strict=True):
        expected = {"run": "runs", "file": file, "step": FILES.index(file), **KNOWN.get(file, {})}
        assert row == {**dict.fromkeys(row), **expected}
        assert {"rate", "optimizer", "epochs"} <= row.keys() and (row["epochs"] is None or type(row["epochs"]) is int)
    assert dataset.collect["conditions"]["file"] == name and str(tmp_path) not in str(dataset.collect)
    # A number gives a scalar with the range that was seen, names a class; what has no row has no condition.
    dataset.save_pretrained(tmp_path / "saved")
    dataset = CheckpointDataset.from_pretrained(tmp_path / "saved")
    asked = dataset.with_conditions("rate")
    assert asked.conditions == ConditionSpec("rate", "scalar", 1, low=(0.001,), high=(0.1,))
    assert asked.conditions_KD is not None
    assert asked.conditions_KD[:, 0].nan_to_num(-1).tolist() == pytest.approx([0.001, -1, -1, 0.1])
    asked.save_pretrained(tmp_path / "asked")
    assert CheckpointDataset.from_pretrained(tmp_path / "asked").conditions == asked.conditions
    named = dataset.with_conditions("optimizer")
    assert named.conditions is not None and named.conditions.names == ("adam", "sgd, plain")
    whole = dataset.with_conditions("epochs").conditions
    assert whole is not None and (whole.low, whole.high) == ((3.0,), (10.0,))
    if to_disk:
        assert_equal(read(tmp_path / "runs", conditions=name, output_dir=out), dataset)
        (tmp_path / "runs" / name).write_bytes(TABLES[name].replace("adam", "adan").encode())
        with pytest.raises(ValueError, match=r"conditions\.sha256 was"):  # rows of two tables are not mixed
            read(tmp_path / "runs", conditions=name, output_dir=out)


def test_tables_name_files_in_folders_and_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "runs", states(2), name="checkpoint-{}/model")
    table = tmp_path / "elsewhere.csv"
    table.write_text("file,rate\ncheckpoint-1/model.safetensors,2\ncheckpoint-0/model.safetensors,1.5\n")
    dataset = read(tmp_path / "runs", pattern="*/model.safetensors", conditions=table)
    assert [row["rate"] for row in dataset.metadata] == [1.5, 2.0]

    def downloaded(repo_id: str, hub: HubFile, revision: str) -> Path:
        return tmp_path / "runs" / f"checkpoint-{hub.revisions.index(revision)}" / "model.safetensors"

    monkeypatch.setattr(importer, "download", downloaded)
    table.write_text("file,rate\nstep30,2\nmain,1\n")
    layout, hub = ParamLayout.from_module(network()), HubFile(["step30", "main"])
    dataset = import_checkpoints("user/net", layout, network=SPEC, hub=hub, conditions=table)
    assert [(row["rate"], row["file"]) for row in dataset.metadata] == [
        (2, "user/net@step30/model.safetensors"),
        (1, "user/net@main/model.safetensors"),
    ]


def of_json(value: Any) -> str:
    return json.dumps([{"file": "step-0.safetensors", **value}, {"file": "step-1.safetensors", "x": 1}])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "t.csv",
            "file,x\nstep-9.safetensors,1",
            r"unknown file in .*t\.csv: 'step-9\.safetensors'; the nearest known",
        ),
        ("t.csv", "file,x\nstep-1.safetensors,1\nstep-1.safetensors,2", "more than one row for file 'step-1.safeten"),
        ("t.csv", "file,x,x\n", "more than one column 'x'; keep one"),
        ("t.csv", ",file,x\n0,step-1.safetensors,1", r"column without a name; .*index=False"),
        ("t.csv", "name,x\na,1", r"has the columns \['name', 'x'\], expected one named 'file'"),
        ("t.csv", "file;x\na;1", "expected one named 'file' and commas between them"),
        ("t.csv", "", r"has the columns \[\]"),
        ("t.csv", "file\nstep-1.safetensors", "no column but 'file'"),
        ("t.csv", "file,x\n", "no column but 'file'"),
        ("t.csv", "file,x\nstep-1.safetensors,1,2", "line 2: 3 cells, expected 2, one for each of file, x; put quotes"),
        ("t.csv", "file,x\n ,1", "line 2: 'file' is empty"),
        ("t.csv", 'file,x\nstep-1.safetensors,"1', "line 2, is not CSV"),
        (
            "t.csv",
            "file,x\nstep-0.safetensors,1\nstep-1.safetensors,fast",
            "'x' of step-1.safetensors is 'fast', and of",
        ),
        (
            "t.csv",
            "file,x\nstep-0.safetensors,1\nstep-1.safetensors,1_0",
            "is '1_0', and of step-0.safetensors the number",
        ),
        ("t.csv", "file,x\nstep-0.safetensors,NaN", "'x' of step-0.safetensors is 'NaN'; expected a finite number"),
        ("t.csv", "file,x\nstep-0.safetensors,-inf", "is '-inf'; expected a finite number"),
        ("t.csv", "file,x\nstep-0.safetensors,1e999", "is '1e999'; expected a finite number"),
        (
            "t.csv",
            "file,index\nstep-0.safetensors,1",
            r"t\.csv: metadata column 'index' is kept for the data set itself",
        ),
        ("t.csv", "file,condition\nstep-0.safetensors,1", "'condition' is kept for the data set itself"),
        ("t.csv", "file,seed\nstep-0.safetensors,a", "t.csv: metadata column 'seed': expected int64"),
        ("t.csv", b"file,x\n\xff\xfe,1", "is not UTF-8 text"),
        ("t.json", "[", "is not JSON"),
        ("t.json", "[" * 100_000, "is not JSON"),
        ("t.json", "3", "holds a int, expected a list of objects"),
        ("t.json", "[3]", "has the row 3; expected an object with the name of a file"),
        ("t.json", '[{"x": 1}]', "expected an object with the name of a file"),
        ("t.json", '{"step-1.safetensors": 3}', "has the row 3; expected an object"),
        ("t.json", '{"step-1.safetensors": {"file": "a"}}', "the row of step-1.safetensors says 'file' is 'a'; keep"),
        (
            "t.json",
            '{"step-1.safetensors": {"x": 1}, "step-1.safetensors": {}}',
            "has 'step-1.safetensors' more than once",
        ),
        (
            "t.json",
            of_json({"x": "fast"}),
            "'x' of step-0.safetensors is 'fast', and of step-1.safetensors the number 1",
        ),
        ("t.json", of_json({"x": "1"}), "'x' of step-0.safetensors is '1', and of step-1.safetensors the number 1"),
        ("t.json", of_json({"x": float("nan")}), "is nan; expected a finite number or a name; leave it empty"),
        ("t.json", of_json({"x": 10**400}), "expected a finite number"),
        ("t.json", of_json({"y": 10**30}), "metadata column 'y'"),
        ("t.json", of_json({"x": True}), "is true; expected a number or a name"),
        ("t.json", of_json({"x": [1]}), r"is \[1\]; expected a number or a name"),
        ("t.yaml", "", r"t\.yaml', expected a \.csv or \.json file"),
    ],
)
def test_a_table_that_is_wrong_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | bytes, message: str
) -> None:
    write(tmp_path, states(4))
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setattr(importer, "read_state_dict", None)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, conditions=name, output_dir=tmp_path / "set")
    assert name in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "set").exists()


def test_a_table_that_is_missing(tmp_path: Path) -> None:
    write(tmp_path, states(2))
    (tmp_path / "folder.csv").mkdir()
    for name in ("conditions.csv", "folder.csv"):
        with pytest.raises((FileNotFoundError, PdiffError), match=rf"{name} is no (regular )?file"):
            read(tmp_path, conditions=name)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53), min_size=2, unique=True)
)
def test_numbers_come_back_from_both_kinds_of_table(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    folder, names = tmp_path_factory.mktemp("tables"), [f"{k}.pt" for k in range(len(values))]
    (folder / "t.csv").write_text("file,x\n" + "".join(f"{k}.pt,{value!r}\n" for k, value in enumerate(values)))
    (folder / "t.json").write_text(json.dumps({name: {"x": value} for name, value in zip(names, values, strict=True)}))
    for name in ("t.csv", "t.json"):
        rows = read_condition_table(folder / name, names).rows
        assert [rows[each]["x"] for each in names] == values
        assert len({type(rows[each]["x"]) for each in names}) == 1


def test_a_header_of_a_safetensors_file_adds_no_columns(tmp_path: Path) -> None:
    """What a file says of itself was written for somebody else, and may hold paths: a table says what is wanted."""
    for k, state in enumerate(states(2)):
        save_file(state, tmp_path / f"{k}.safetensors", metadata={"rate": f"{k}"})
    assert "rate" not in read(tmp_path).metadata[0]
