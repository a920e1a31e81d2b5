"""Checkpoints from elsewhere are read in order and checked tensor by tensor; nothing is guessed, and no code is run."""

from __future__ import annotations

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

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.importing import importer
from pdiff_hub.collect.importing.importer import HubFile, ImportConfig, import_checkpoints, natural_key
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


def test_containers_and_prefixes_are_unwrapped_only_on_request(tmp_path: Path) -> None:
    checkpoints = states(2)
    folder = tmp_path / "runs"
    folder.mkdir()
    for k, state in enumerate(checkpoints):
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, "model": wrapped, "optimizer": {"state": {}}}, folder / f"{k}.pt")
    with pytest.raises(ValueError, match=r"0\.pt: 'epoch' is a int, expected a tensor; .*\['model', 'optimizer'\]"):
        read(folder)
    with pytest.raises(ValueError, match=r"0\.pt has no 'state_dict'; it has \['epoch', 'model', 'optimizer'\]"):
        read(folder, key="state_dict")
    with pytest.raises(ValueError, match=r"0\.pt: .*begin with 'module\.': give it as prefix"):
        read(folder, key="model")
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
        (put("0.bias", torch.tensor([0.0, 0.0, -torch.inf, 0.0])), "0.bias", "NaN or Inf"),
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


def test_revisions_of_a_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's download call is replaced here; test_transfer.py tests transfers against the loopback Hub."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    checkpoints = states(3)
    write(tmp_path, checkpoints, name="{}")
    files = {"step30": 0, "step4": 1, "main": 2}

    def download(repo_id: str, filename: str, *, revision: str, **options: Any) -> str:
        assert (repo_id, filename) == ("user/net", "model.safetensors") and options["token"] == "t"
        if revision not in files:
            raise LocalEntryNotFoundError("offline")
        return str(tmp_path / f"{files[revision]}.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    layout = ParamLayout.from_module(network())

    def load(*revisions: str) -> CheckpointDataset:
        return import_checkpoints("user/net", layout, network=SPEC, hub=HubFile(revisions, token="t"))

    dataset = load(*files)
    assert torch.equal(dataset.params_KP, layout.flatten(checkpoints))  # in the order given
    assert [row["step"] for row in dataset.metadata] == [30, 4, None]
    assert dataset.metadata[0]["file"] == "user/net@step30/model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors of user/net at revision 'gone'"):
        load("main", "gone")
    with pytest.raises(ValueError, match="expected different ones"):
        load("main", "main")
    with pytest.raises(ValueError, match="expected different ones"):
        load()
    with pytest.raises(ValueError, match=r"'model\.bin' is none of"):
        import_checkpoints("user/net", layout, network=SPEC, hub=HubFile(["a", "b"], filename="model.bin"))


def test_options_in_a_recipe() -> None:
    assert ImportConfig(source="runs").hub is None
    assert ImportConfig("user/net", revisions=("a", "b")).hub == HubFile(("a", "b"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "source is ''"),
        ({"source": "x", "revisions": "main"}, "revisions is 'main'"),
        ({"source": "x", "revisions": (1, 2)}, "revisions is"),
        ({"source": "x", "revisions": ("a", "b"), "pattern": "*"}, "give filename"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            ImportConfig(**options)
