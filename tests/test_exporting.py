"""A generated network stands alone: its files say how it is used, and run where this package is not installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exported_programs
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from test_published_network import TINY, make_pipe
from torch import Tensor, nn
from typer.testing import CliRunner
from without_package import without

from pdiff_hub import PDiffPipeline, export_network
from pdiff_hub.cli import app
from pdiff_hub.exporting import MeanProbabilities, Usage, programs, write_program
from pdiff_hub.networks import build_network, logits, resolve_network, vision
from pdiff_hub.networks.stacked import StackedNetworks
from pdiff_hub.runs import write_networks
from pdiff_hub.safe_files import write_safetensors
from pdiff_hub.tasks import Task, load_task

ROOT = Path(__file__).parents[1]
SHIPPED, SUBSETS = ROOT / "pipelines" / "digits-mlp3", ROOT / "pipelines" / "digits-subsets"
OPTIONS: dict[str, Any] = {"seed": 3, "num_inference_steps": 5}
OURS = ("pdiff_hub", "diffusers", "accelerate", "datasets", "transformers", "huggingface_hub", "safetensors", "sklearn")
MLP = resolve_network({"name": "mlp3", "hidden": [4, 4]}, in_channels=1, image_size=8, num_classes=10)
NAMES = tuple("0123456789")
USAGE = Usage(MLP, (0.3,), (0.4,), NAMES, None)
PIXELS = torch.randint(256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


@pytest.fixture(scope="module")
def pipe() -> PDiffPipeline:
    return PDiffPipeline.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def expected(pipe: PDiffPipeline, task: Task) -> Tensor:
    """Logits [2, N, c] of two networks of the pipeline on the test split, in the package's own way."""
    out = pipe(2, OPTIONS["num_inference_steps"], torch.Generator().manual_seed(OPTIONS["seed"]))
    with torch.no_grad():
        return torch.stack([pipe.build_network(state)(task.inputs(task.test)) for state in out.state_dicts])


def write_both(pipe: PDiffPipeline, task: Task, folder: Path, format: str) -> None:
    """Two networks and, moved beside them, their ensemble; and the raw images of the test split."""
    write_networks(pipe, 2, folder, **OPTIONS, format=format)
    (one,) = write_networks(pipe, 2, folder / "one", **OPTIONS, format=format, ensemble=True)
    one.rename(folder / one.name)
    (folder / "shape.json").write_text(json.dumps(list(task.test.images_NCHW.shape[1:])))
    (folder / "pixels.bin").write_bytes(task.test.images_NCHW.numpy().tobytes())


def check_answers(told: dict[str, Any], suffix: str, expected: Tensor, task: Task) -> None:
    mean = expected.softmax(dim=2).mean(dim=0).log()
    for name, ours in ((f"model-00000{suffix}", expected[0]), (f"model-00001{suffix}", expected[1]),
                       (f"ensemble{suffix}", mean)):  # fmt: skip
        theirs = torch.tensor(told[name])
        assert torch.allclose(theirs, ours, rtol=1e-3, atol=1e-3)
        accuracies = [float((each.argmax(1) == task.test.labels_N).double().mean()) for each in (theirs, ours)]
        assert accuracies[0] == pytest.approx(accuracies[1], abs=1e-3) and accuracies[0] > 0.9


def run_alone(python: str | Path, folder: Path, blocked: tuple[str, ...] = ()) -> dict[str, Any]:
    program = f"{without(*blocked)}\nimport runpy\nrunpy.run_path({exported_programs.__file__!r}, run_name='__main__')"
    done = subprocess.run([str(python), "-c", program, str(folder)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def test_with_torch_alone(pipe: PDiffPipeline, task: Task, expected: Tensor, tmp_path: Path) -> None:
    write_both(pipe, task, tmp_path, "torch-export")
    check_answers(run_alone(sys.executable, tmp_path, OURS), ".pt2", expected, task)
    held = {"pdiff_hub.json": ""}
    program = torch.export.load(tmp_path / "model-00001.pt2", extra_files=held)
    facts = json.loads(held["pdiff_hub.json"])
    assert (facts["seed"], facts["index"], facts["class_names"]) == (3, 1, list(NAMES))
    assert facts["input"]["dtype"] == "uint8" and facts["output"]["meaning"] == "logits"
    network: Any = program.module()
    assert not network(PIXELS).requires_grad
    assert [network(PIXELS[:number]).shape for number in (0, 1, 5)] == [(0, 10), (1, 10), (5, 10)]
    for wrong in (PIXELS.float() / 255, PIXELS.float(), PIXELS[:, :, :7]):  # no silent answers to other scalings
        with pytest.raises((RuntimeError, AssertionError)):
            network(wrong)


def test_with_onnxruntime_alone(pipe: PDiffPipeline, task: Task, expected: Tensor, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    write_both(pipe, task, tmp_path, "onnx")
    check_answers(run_alone(sys.executable, tmp_path, ("torch", *OURS)), ".onnx", expected, task)
    content = (tmp_path / "ensemble.onnx").read_bytes()
    model = onnx.load_from_string(content)
    facts = json.loads({each.key: each.value for each in model.metadata_props}["pdiff_hub"])
    assert facts["output"]["meaning"] == "logarithms of the mean probabilities of 2 networks"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert not [each for each in (str(ROOT), str(Path.home()), str(tmp_path)) if each.encode() in content]
    session = onnxruntime.InferenceSession(content)
    with pytest.raises(Exception, match=r"expected: \(tensor\(uint8\)\)"):
        session.run(None, {"images": (PIXELS / 255).numpy()})


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch-export", "onnx"])
def test_in_an_environment_of_its_own(
    pipe: PDiffPipeline, task: Task, expected: Tensor, tmp_path: Path, format: str
) -> None:
    """As above, where nothing is blocked: nothing else is installed."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    cpu = ("--extra-index-url", "https://download.pytorch.org/whl/cpu", f"torch=={torch.__version__}")
    wanted = cpu if format == "torch-export" else ("onnxruntime",)
    installed = subprocess.run([str(python), "-m", "pip", "install", "-q", "--retries", "0", *wanted])
    if installed.returncode != 0:
        pytest.skip(f"{wanted[-1]} cannot be installed here: no package index is reached")
    write_both(pipe, task, tmp_path / "networks", format)
    suffix = ".pt2" if format == "torch-export" else ".onnx"
    check_answers(run_alone(python, tmp_path / "networks"), suffix, expected, task)


def test_files_of_weights_say_how_they_are_used(pipe: PDiffPipeline, task: Task, tmp_path: Path) -> None:
    files = write_networks(pipe, 2, tmp_path / "a", **OPTIONS)
    facts = json.loads((tmp_path / "a" / "generated.json").read_text())
    assert {key: facts[key] for key in ("seed", "num_models", "num_inference_steps")} == {**OPTIONS, "num_models": 2}
    assert (facts["pipeline"], facts["revision"], facts["class_names"]) == ("digits-mlp3", None, list(NAMES))
    assert facts["input"]["shape"] == ["N", 1, 8, 8] and "15 times the value" in facts["input"]["pixels"]
    assert facts["network"] == pipe.autoencoder.config.network
    assert facts["task"]["resolved"]["sizes"]["test"] == 719 and "condition" not in facts
    for index, file in enumerate(files):
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["format"] == "pt"  # what transformers looks for
            assert json.loads(opened.metadata()["pdiff_hub"]) == {**facts, "index": index}
    assert not [each for each in (str(ROOT), str(Path.home())) if each.encode() in files[0].read_bytes()]
    again = write_networks(pipe, 2, tmp_path / "b", **OPTIONS)
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    network = eval(facts["torch"], {"nn": nn, "OrderedDict": OrderedDict})
    network.load_state_dict(load_file(files[1]), strict=True)
    mean, std = (torch.tensor(facts["input"][name])[:, None, None] for name in ("mean", "std"))
    inputs = (task.test.images_NCHW[:9] / 255 - mean) / std
    with torch.no_grad():
        expected = pipe.build_network(load_file(files[1]))(task.inputs(task.test)[:9])
        assert torch.allclose(network.eval()(inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "mlp3", "convnet3"])
@pytest.mark.parametrize(
    "options", [{}, {"norm": "batch", "global_pool": True}, {"norm": "group", "downsample": "stride"}]
)
def test_the_line_of_torch_makes_the_network(name: str, options: dict[str, Any]) -> None:
    spec = resolve_network(
        {"name": name, **(options if name == "convnet3" else {})}, in_channels=1, image_size=8, num_classes=3
    )
    line = Usage(spec, None, None, None, None).torch_code()
    assert line is not None
    made, ours = eval(line, {"nn": nn, "OrderedDict": OrderedDict}), build_network(spec)
    made.load_state_dict(ours.state_dict(), strict=True)
    inputs = torch.rand(4, 1, 8, 8)
    assert torch.equal(made.eval()(inputs), ours.eval()(inputs))


def test_metadata_of_several_entries_are_in_order(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3, dtype=torch.bfloat16), "a": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    header = {"format": "pt", "note": 'text with "quotes", \\ and ä', "z": "", "a": "1"}
    written = set()
    for number in range(4):
        write_safetensors(tmp_path / f"{number}", tensors, header)
        written.add((tmp_path / f"{number}").read_bytes())
    assert len(written) == 1
    with safe_open(tmp_path / "0", "pt") as opened:
        assert opened.metadata() == header
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(tmp_path / "0").items())


class Own(nn.Module):
    """A network to which subclasses do what no file can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build_network(MLP)

    def forward(self, images: Tensor) -> Tensor:
        return logits(self.net(images))


class Branching(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) if images.sum() > 0 else -self.net(images)


class ByNumber(Own):
    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.net(image[None])[0] for image in images])


class Drawing(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) + torch.randn(10)


class Elsewhere(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.net(torch.from_numpy(images.numpy() * 2))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Branching, r"an `if` or a loop in it depends on the values of the images \(test_exporting.py, line \d+\)"),
        (ByNumber, "computes in another way for another number of images"),
        (Drawing, "answers depend on more than the images"),
        (Elsewhere, r"RuntimeError: .numpy\(\) is not supported .*\(test_exporting.py, line \d+\)"),
    ],
)
def test_what_no_file_can_hold_is_refused_in_a_sentence(
    network: Callable[[], nn.Module], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.pt2").write_bytes(b"an earlier one")
    with pytest.raises(ValueError, match=rf"net.pt2 was not written: .*{reason}") as caught:
        write_program(network().eval(), USAGE, tmp_path / "net.pt2", {})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    assert (tmp_path / "net.pt2").read_bytes() == b"an earlier one"
    assert capfd.readouterr() == ("", "")


def branching(num_classes: int) -> nn.Module:
    """A factory that a pipeline may name as `test_exporting:branching`."""
    return Branching()


def own(num_classes: int) -> nn.Module:
    return Own().bfloat16()


def test_a_refused_network_leaves_the_folder_as_it_was(task: Task, tmp_path: Path) -> None:
    pipe = make_pipe(task, {"name": f"{__name__}:branching"})
    (tmp_path / "model-00000.pt2").write_bytes(b"an earlier one")
    (tmp_path / "generated.json").write_text("{}")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    options: dict[str, Any] = {**OPTIONS, "format": "torch-export"}
    with pytest.raises(ValueError, match="not allowed here"):
        write_networks(pipe, 2, tmp_path, **options)
    with pytest.raises(ValueError, match=r"model-00000.pt2 was not written: the network's computation cannot be"):
        write_networks(pipe, 2, tmp_path, **options, trust_remote_code=True)
    with pytest.raises(ValueError, match=r"ensemble.pt2 was not written"):
        write_networks(pipe, 2, tmp_path / "new", **options, ensemble=True, trust_remote_code=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
    assert not list((tmp_path / "new").iterdir())


def test_ones_own_network_in_another_dtype(task: Task, tmp_path: Path) -> None:
    pipe = make_pipe(task, {"name": f"{__name__}:own"})
    state = pipe(1).state_dicts[0]
    file = export_network(pipe, state, tmp_path / "own.pt2", origin={"seed": 5}, trust_remote_code=True)
    held = {"pdiff_hub.json": ""}
    network: Any = torch.export.load(file, extra_files=held).module()
    expected = logits(pipe.build_network(state, trust_remote_code=True)(task.inputs(task.test)[:6]))
    assert torch.allclose(network(task.test.images_NCHW[:6]), expected.float(), atol=1e-2)
    facts = json.loads(held["pdiff_hub.json"])
    assert facts["seed"] == 5 and facts["torch"] is None and facts["network"]["name"] == f"{__name__}:own"


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap over attention, which is not exported
@pytest.mark.parametrize("name", ["vit_tiny", "resnet18"])
def test_networks_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setitem(vision._ARCHITECTURES, name, TINY[name])
    spec = resolve_network(name, in_channels=1, image_size=8, num_classes=10)
    network = build_network(spec).eval()
    states = [build_network(spec, seed=seed).state_dict() for seed in (1, 2)]
    both = MeanProbabilities(StackedNetworks(network, states, (1, 8, 8))).eval()
    write_program(both, Usage(spec, (0.3,), (0.4,), NAMES, None), tmp_path / "net.pt2", {})
    with torch.no_grad():
        found = torch.export.load(tmp_path / "net.pt2").module()(PIXELS)
        assert torch.allclose(found, both((PIXELS / 255 - 0.3) / 0.4), atol=1e-5)
    assert torch.allclose(found.exp().sum(dim=1), torch.ones(len(PIXELS)), atol=1e-5)


def test_bad_arguments_write_nothing(pipe: PDiffPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*options: str) -> str:
        given = ["generate", str(SHIPPED), "--output-dir", str(tmp_path / "out"), *options]
        done = CliRunner().invoke(app, given)
        assert done.exit_code != 0 and isinstance(done.exception, ValueError), done.output
        return str(done.exception)

    assert "unknown format: 'onxx'; the nearest known one is 'onnx'" in told("--format", "onxx")
    assert "one file in the formats torch-export and onnx only" in told("--ensemble")
    assert "leave one of them out" in told("--ensemble", "--format", "torch-export", "--push-to-hub", "me/net")
    monkeypatch.setattr(programs, "find_spec", lambda package: None)
    assert "needs onnx and onnxscript: pip install onnx onnxscript (pdiff-hub's extra `export`)" in told(
        "--format", "onnx"
    )
    assert not list(tmp_path.iterdir())
    state = pipe(1, 2).state_dicts[0]
    with pytest.raises(ValueError, match=r"says no format by its suffix, expected .pt2"):
        export_network(pipe, state, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="no networks to export"):
        export_network(pipe, [], tmp_path / "net.pt2")
    unknown = PDiffPipeline(**pipe.components)
    unknown.autoencoder.register_to_config(task=None)
    try:
        with pytest.raises(ValueError, match=r"net.pt2 was not written: the pipeline does not say .* normalised"):
            export_network(unknown, state, tmp_path / "net.pt2")
    finally:
        unknown.autoencoder.register_to_config(task=PDiffPipeline.from_pretrained(SHIPPED).autoencoder.config.task)
    assert not list(tmp_path.iterdir())


def test_networks_of_two_calls_are_not_mixed(pipe: PDiffPipeline, tmp_path: Path) -> None:
    write_networks(pipe, 2, tmp_path, **OPTIONS)
    for options in ({"format": "torch-export"}, {"format": "torch-export", "ensemble": True}):
        with pytest.raises(ValueError, match=r"model-00000.safetensors is there already and not one of"):
            write_networks(pipe, 2, tmp_path, **OPTIONS, **options)


def test_answers_to_a_question_have_names(tmp_path: Path) -> None:
    pipe = PDiffPipeline.from_pretrained(SUBSETS)
    asked = {"classes": ["0", "3", "7"]}
    write_networks(pipe, 1, tmp_path / "asked", **OPTIONS, condition=asked, guidance_scale=2.0)
    facts = json.loads((tmp_path / "asked" / "generated.json").read_text())
    assert facts["class_names"] == ["none of 0, 3, 7", "one of 0, 3, 7"]
    assert (facts["condition"], facts["guidance_scale"]) == (asked, 2.0)
    write_networks(pipe, 1, tmp_path / "free", **OPTIONS)
    assert json.loads((tmp_path / "free" / "generated.json").read_text())["class_names"] is None


def test_paths_of_this_machine_are_not_written(task: Task, tmp_path: Path) -> None:
    pipe = make_pipe(task, "mlp3")
    source = {**task.spec["resolved"], "source": str(tmp_path / "photos")}
    pipe.autoencoder.register_to_config(task={**task.spec, "dataset": str(tmp_path / "photos"), "resolved": source})
    write_networks(pipe, 1, tmp_path / "a", **OPTIONS)
    export_network(pipe, pipe(1).state_dicts[0], tmp_path / "a" / "net.pt2")
    for file in (tmp_path / "a").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert json.loads((tmp_path / "a" / "generated.json").read_text())["task"]["dataset"] == "photos"


@pytest.mark.slow
def test_the_page_does_what_it_says(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    page = (ROOT / "docs" / "take-home.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    monkeypatch.setitem(vision._ARCHITECTURES, "vit_tiny", TINY["vit_tiny"])
    make_pipe(task, "vit_tiny", "head").save_pretrained("runs/fashion-mnist-vit-tiny")
    Image.fromarray(task.test.images_NCHW[0, 0].numpy()).save("digit.png")
    names: dict[str, Any] = {}
    for language, block in re.findall(r"```(\w+)\n(.*?)\n```", page, re.DOTALL):
        if language == "python":
            exec(block, names)
            continue
        for line in block.splitlines():
            if line.startswith("pip install"):
                continue
            program, *options = line.split()
            if "--push-to-hub" in options:
                options[options.index("--push-to-hub") :] = ["--output-dir", "not-pushed"]
            done = CliRunner().invoke(app, options)
            assert program == "pdiff" and done.exit_code == 0, (line, done.output)
    assert names["facts"]["class_names"][int(names["logits"].argmax())] == str(int(task.test.labels_N[0]))
    assert {file.name for file in tmp_path.glob("*.pt2")} == {"network.pt2", "ensemble.pt2"}
