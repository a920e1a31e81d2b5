"""A published network opens again unchanged, and can be made again from what its repository says."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor, nn
from typer.testing import CliRunner

from pdiff_hub import PDiffPipeline
from pdiff_hub.cli import app
from pdiff_hub.hub import GeneratedNetwork, push_network
from pdiff_hub.hub.networks.card import Images
from pdiff_hub.networks import build_network, logits, resolve_network, vision
from pdiff_hub.records import Facts, Frontier, Measurements, Results
from pdiff_hub.runs import write_networks
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.training.diffusion import build_scheduler, build_unet
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout

ROOT = Path(__file__).parents[1]
VERDICT = "At the same novelty, {{ 7 * 7 }} p-diff is within the interval of original."
FACTS = Facts("pipe", "digits", None, "mlp3", None, "all", 8970, 7, None, [], None)
RESULTS = Results(FACTS, Measurements(3, 20, frontier=Frontier({}, {}, VERDICT))).to_dict()
IMAGES_BCHW = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
MADE = {"seed": 3, "index": 2, "num_models": 4, "num_inference_steps": 5}
MLP: dict[str, Any] = {"name": "mlp3", "hidden": [8, 6]}
# One architecture of each of the two families of transformers, small enough for a test.
TINY = {
    "vit_tiny": {
        "model_type": "vit",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    },
    "resnet18": {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 4,
        "hidden_sizes": [4, 8],
        "depths": [1, 1],
    },
}


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, architecture in TINY.items():
        monkeypatch.setitem(vision._ARCHITECTURES, name, architecture)


def own_network(num_classes: int, width: int = 4) -> nn.Module:
    """A factory that a pipeline may name as `test_published_network:own_network`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))


def make_pipe(task: Task, network: str | dict[str, Any], select: str = "all") -> PDiffPipeline:
    torch.manual_seed(0)
    spec = resolve_network(network, in_channels=1, image_size=8, num_classes=10)
    built = build_network(spec)
    layout = ParamLayout.from_module(built, select)
    autoencoder = ParamAutoencoder(layout.to_dict(), num_components=14, latent_length=4, network=spec, task=task.spec)
    nn.init.normal_(autoencoder.components[0], std=0.05)
    autoencoder.set_frozen_state(layout.frozen_state(built.state_dict()))
    pipe = PDiffPipeline(autoencoder.eval(), build_unet(4, 4, (16,), 1).eval(), build_scheduler(), 7)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def folder_of(pipe: PDiffPipeline, folder: Path) -> Path:
    """The folder of the pipeline as a run leaves it, with results and a card."""
    pipe.save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# pipeline\n")
    return folder


def on_hub(hub: LoopbackHub, folder: Path, repo_id: str = "maker/pipe") -> PDiffPipeline:
    hub.add(
        repo_id,
        {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()},
    )
    return PDiffPipeline.from_pretrained(repo_id)


def expected_network(pipe: PDiffPipeline) -> tuple[dict[str, Tensor], Tensor]:
    """The state dict and the logits of the network that `MADE` names."""
    out = pipe(MADE["num_models"], MADE["num_inference_steps"], torch.Generator().manual_seed(MADE["seed"]))
    state = out.state_dicts[MADE["index"]]
    with torch.no_grad():
        return state, logits(pipe.build_network(state, trust_remote_code=True)(IMAGES_BCHW))


def answers(network: nn.Module) -> Tensor:
    assert not network.training
    with torch.no_grad():
        return logits(network(IMAGES_BCHW))


def code_blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", card, re.DOTALL)


@pytest.mark.parametrize(
    ("network", "select"),
    [
        (MLP, "all"),
        ({"name": "convnet3", "norm": "batch", "widths": [4, 4, 4]}, "last_norms:1"),
        ({"name": "resnet18", "small_images": True}, "head"),  # transformers cannot build this ResNet
    ],
)
def test_opens_with_the_mixin_and_as_the_plain_network(
    task: Task, hub: LoopbackHub, tmp_path: Path, network: dict[str, Any], select: str
) -> None:
    pipe = make_pipe(task, network, select)
    state, expected = expected_network(pipe)
    url = push_network(pipe, "me/net", **MADE)
    assert url.startswith(hub.endpoint) and "me/net" in url
    opened = GeneratedNetwork.from_pretrained("me/net")
    assert torch.equal(answers(opened), expected)
    files = hub.files("me/net")
    assert {*files} - {".gitattributes"} == {"config.json", "model.safetensors", "generated.json", "README.md"}
    plain = build_network(json.loads(files["config.json"])["network"], seed=9)
    plain.load_state_dict(load(files["model.safetensors"]), strict=True)
    assert torch.equal(answers(plain.eval()), expected)
    assert state.keys() == plain.state_dict().keys()
    # `pdiff generate` writes exactly this file.
    written = write_networks(
        pipe, MADE["num_models"], tmp_path, seed=MADE["seed"], num_inference_steps=MADE["num_inference_steps"]
    )
    assert files["model.safetensors"] == written[MADE["index"]].read_bytes()
    opened.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert (tmp_path / "again" / "config.json").read_bytes() == files["config.json"]
    assert torch.equal(answers(GeneratedNetwork.from_pretrained(tmp_path / "again")), expected)


@pytest.mark.parametrize(
    ("network", "select"), [("vit_tiny", "all"), ({"name": "resnet18", "small_images": False}, "last_norms:2")]
)
def test_opens_with_plain_transformers(
    task: Task, hub: LoopbackHub, network: str | dict[str, Any], select: str
) -> None:
    transformers = pytest.importorskip("transformers")
    pipe = make_pipe(task, network, select)
    _, expected = expected_network(pipe)
    push_network(pipe, "me/net", **MADE)
    opened = transformers.AutoModelForImageClassification.from_pretrained("me/net")
    assert torch.equal(answers(opened), expected)
    assert opened.config.num_labels == 10 and opened.config.id2label[7] == "7"
    assert opened.config.label2id["7"] == 7
    processor = transformers.AutoImageProcessor.from_pretrained("me/net")
    pictures = [Image.fromarray(image_CHW[0].numpy()) for image_CHW in task.test.images_NCHW[:3]]
    inputs = processor(pictures, return_tensors="pt")["pixel_values"]
    assert torch.allclose(inputs, task.inputs(task.test)[:3], atol=1e-5)
    assert processor(pictures[0].resize((20, 30)), return_tensors="pt")["pixel_values"].shape == (1, 1, 8, 8)
    card = ModelCard(hub.files("me/net")["README.md"].decode())
    assert card.data.library_name == "transformers" and "model_hub_mixin" not in card.data.tags
    exec(code_blocks(str(card), "python")[0], names := {"picture": pictures[0]})
    assert names["logits"].shape == (1, 10)
    with pytest.raises(ValueError, match="is a network of transformers: open it with"):
        GeneratedNetwork.from_pretrained("me/net")


def test_made_again_from_its_card(task: Task, hub: LoopbackHub, tmp_path: Path) -> None:
    pipe = on_hub(hub, folder_of(make_pipe(task, MLP), tmp_path / "pipeline"))
    push_network(pipe, "me/net", **MADE, accuracy=0.9375)
    hub.add("maker/pipe", {"later.txt": b"the pipeline has moved on"})
    assert hub.head("maker/pipe") != pipe.hub_revision
    files = hub.files("me/net")
    text = files["README.md"].decode()
    published = load(files["model.safetensors"])

    plain, use, again = code_blocks(text, "python")
    pixels = task.test.images_NCHW[:5]
    exec(plain, names := {"pixels": pixels})  # without the package
    with torch.no_grad():
        expected = GeneratedNetwork.from_pretrained("me/net")(task.inputs(task.test)[:5])
    assert torch.allclose(names["logits"], expected, rtol=1e-4, atol=1e-5)
    assert len(again.splitlines()) == 5
    exec(again, names := dict[str, Any]())
    assert all(torch.equal(published[name], tensor) for name, tensor in names["network"].state_dict().items())
    exec(use, names := {"images": IMAGES_BCHW})
    assert torch.equal(names["logits"], answers(names["network"]))
    (command,) = code_blocks(text, "bash")
    arguments = command.replace("--output-dir networks", f"--output-dir {tmp_path / 'networks'}").split()
    assert arguments.pop(0) == "pdiff"
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "networks" / "model-00002.safetensors").read_bytes() == files["model.safetensors"]

    origin = json.loads(files["generated.json"])
    assert origin["pipeline"] == "maker/pipe" and origin["revision"] == pipe.hub_revision and not origin["weights"]
    assert {key: origin[key] for key in MADE} == MADE
    for said in (
        "`maker/pipe`",
        f"`{pipe.hub_revision}`",
        "seed 3",
        "number 2 (counted from 0)",
        "of the 4",
        f"torch {torch.__version__}",
        "93.75 % of the test split of `digits` (719 images)",
        f"**{VERDICT}**",
        "20 of its networks",
        '["0", "1", "2"',
        "15 times the value",
    ):
        assert said in text, said


def test_an_answer_to_a_question_is_published_with_it(task: Task, hub: LoopbackHub, tmp_path: Path) -> None:
    pipe = on_hub(hub, ROOT / "pipelines" / "digits-subsets", "maker/subsets")
    made = {**MADE, "num_inference_steps": 50}
    asked = {"classes": ["0", "3", "7"]}
    push_network(pipe, "me/net", **made, condition=asked, guidance_scale=2.0, format="torch-export")
    files = hub.files("me/net")
    text = files["README.md"].decode()
    program, plain, _, again = code_blocks(text, "python")
    exec(again, names := dict[str, Any]())
    published = load(files["model.safetensors"])
    assert all(torch.equal(published[name], tensor) for name, tensor in names["network"].state_dict().items())
    pixels = task.test.images_NCHW
    with torch.no_grad():
        expected = names["network"](task.inputs(task.test))
    for code in (program, plain):  # without the package
        exec(code, names := {"pixels": pixels})
        assert torch.allclose(names["logits"], expected, rtol=1e-3, atol=1e-4)
    yes = torch.isin(task.test.labels_N, torch.tensor([0, 3, 7]))
    assert float((expected.argmax(1) == yes).double().mean()) > 0.9
    (command,) = code_blocks(text, "bash")
    done = CliRunner().invoke(app, shlex.split(command.replace("networks", str(tmp_path)))[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    written = load((tmp_path / "model-00002.safetensors").read_bytes())
    assert all(torch.equal(published[name], tensor) for name, tensor in written.items())
    origin = json.loads(files["generated.json"])
    assert (origin["condition"], origin["guidance_scale"]) == (asked, 2.0)
    for said in ('["none of 0, 3, 7", "one of 0, 3, 7"]', "asked to be `classes=0,3,7`", "can run code of whoever"):
        assert said in text
    push_network(pipe, "me/net", **MADE)  # without a program: the earlier one goes
    assert "model.pt2" in files and "model.pt2" not in hub.files("me/net")
    pipe.conditioner.std_CL.mul_(2)
    with pytest.raises(ValueError, match="the conditioner of this pipeline is not that of"):
        push_network(pipe, "me/net", **MADE)


def test_cards_are_valid_and_say_only_what_is_known(task: Task, hub: LoopbackHub, tmp_path: Path) -> None:
    pipe = make_pipe(task, MLP)
    push_network(pipe, "me/net", **MADE)
    card = ModelCard(hub.files("me/net")["README.md"].decode())
    card.validate(repo_type="model")
    assert card.data.library_name == "pdiff-hub" and card.data.pipeline_tag == "image-classification"
    assert "pytorch_model_hub_mixin" in card.data.tags and card.data.license is None
    assert not card.data.eval_results and card.data.base_model is None and card.data.datasets is None
    assert "was not measured for this network" in card.text and "no results came with it" in card.text
    assert "local, not on the Hub" in card.text

    folder = folder_of(pipe, tmp_path / "pipeline")
    push_network(PDiffPipeline.from_pretrained(folder), "me/other", **MADE, accuracy=0.5)
    files = hub.files("me/other")
    card = ModelCard(files["README.md"].decode())
    card.validate(repo_type="model")
    assert card.data.license == "mit" and VERDICT in card.text
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_name, result.dataset_split) == (0.5, "digits", "test")
    weights = json.loads(files["generated.json"])["weights"]
    assert set(weights) == {f"{part}/diffusion_pytorch_model.safetensors" for part in ("autoencoder", "unet")}
    for path, digest in weights.items():
        assert digest == hashlib.sha256((folder / path).read_bytes()).hexdigest()
        assert digest in card.text
    again = code_blocks(card.text, "python")[-1].replace("path/to/pipeline", str(folder))
    exec(again, names := dict[str, Any]())
    published = load(files["model.safetensors"])
    assert all(torch.equal(published[name], tensor) for name, tensor in names["network"].state_dict().items())

    changed = PDiffPipeline.from_pretrained(folder)
    changed.autoencoder.mean_P.add_(0.1)
    with pytest.warns(UserWarning, match="not the one in"):  # the verdict does not belong to these weights
        push_network(changed, "me/changed", **MADE)
    assert VERDICT not in hub.files("me/changed")["README.md"].decode()


def test_a_pipeline_changed_since_it_was_loaded_is_refused(task: Task, hub: LoopbackHub, tmp_path: Path) -> None:
    folder = folder_of(make_pipe(task, MLP), tmp_path / "pipeline")
    pipe = on_hub(hub, folder)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_end=0.5)
    with pytest.raises(ValueError, match="the scheduler of this pipeline is not that of maker/pipe at commit"):
        push_network(pipe, "me/net", **MADE)
    pipe = PDiffPipeline.from_pretrained("maker/pipe")
    next(pipe.unet.parameters()).data.add_(1)
    with pytest.raises(ValueError, match="the unet of this pipeline"):
        push_network(pipe, "me/net", **MADE)
    assert ("model", "me/net") not in hub.repos


def test_nothing_of_this_machine_is_published(task: Task, hub: LoopbackHub, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    trained: Any = build_network(resolve_network("vit_tiny", in_channels=1, image_size=8, num_classes=10))
    trained.save_pretrained(tmp_path / "trained")
    pipe = make_pipe(task, {"name": "vit_tiny", "pretrained": str(tmp_path / "trained")}, "head")
    secret = {"dataset": str(tmp_path / "photos"), "resolved": {**task.spec["resolved"], "source": str(tmp_path)}}
    pipe.autoencoder.register_to_config(task=secret)
    push_network(PDiffPipeline.from_pretrained(folder_of(pipe, tmp_path / "pipeline")), "me/vit", **MADE)
    pipe = make_pipe(task, MLP)
    pipe.autoencoder.register_to_config(task=secret)
    push_network(pipe, "me/mlp", **MADE)
    for repo_id in ("me/vit", "me/mlp"):
        files = hub.files(repo_id)
        for path, content in files.items():
            for private in (str(tmp_path), str(Path.home()), tmp_path.parent.name, hub.token):
                assert private.encode() not in content, (path, private)
        assert b"photos" in files["README.md"]


def test_a_pretrained_model_on_the_hub_is_the_base_model(task: Task, hub: LoopbackHub, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    trained: Any = build_network(resolve_network("vit_tiny", in_channels=1, image_size=8, num_classes=10))
    trained.save_pretrained(tmp_path)
    commit = hub.add("some/vit", {file.name: file.read_bytes() for file in tmp_path.iterdir()})
    network = {"name": "vit_tiny", "pretrained": "some/vit", "revision": commit}
    push_network(make_pipe(task, network, "head"), "me/net", **MADE)
    data = ModelCard(hub.files("me/net")["README.md"].decode()).data
    assert data.base_model == "some/vit" and data.base_model_relation == "finetune"


def test_a_second_push_replaces_the_first_and_an_equal_one_does_nothing(task: Task, hub: LoopbackHub) -> None:
    push_network(make_pipe(task, "vit_tiny", "head"), "me/net", **MADE)
    assert "preprocessor_config.json" in hub.files("me/net")
    pipe = make_pipe(task, MLP)
    push_network(pipe, "me/net", **MADE)
    head = hub.head("me/net")
    assert "preprocessor_config.json" not in hub.files("me/net")
    assert torch.equal(answers(GeneratedNetwork.from_pretrained("me/net")), expected_network(pipe)[1])
    push_network(pipe, "me/net", **MADE)
    assert hub.head("me/net") == head
    push_network(pipe, "me/net", **{**MADE, "index": 1}, revision="other")
    assert hub.head("me/net") == head
    other = GeneratedNetwork.from_pretrained("me/net", revision="other")
    assert not torch.equal(answers(other), answers(GeneratedNetwork.from_pretrained("me/net", revision=head)))


def test_a_pipelines_repository_is_not_written_over(task: Task, hub: LoopbackHub, tmp_path: Path) -> None:
    pipe = on_hub(hub, folder_of(make_pipe(task, MLP), tmp_path), "me/pipe")
    head = hub.head("me/pipe")
    with pytest.raises(ValueError, match="me/pipe holds a pipeline"):
        push_network(pipe, "me/pipe", **MADE)
    assert hub.head("me/pipe") == head


def test_a_network_of_ones_own_needs_trust(task: Task, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipe(task, {"name": f"{__name__}:own_network", "width": 5})
    _, expected = expected_network(pipe)
    push_network(pipe, "me/net", **MADE)
    with monkeypatch.context() as patch:
        patch.setattr(f"{__name__}.own_network", lambda *_, **__: pytest.fail("called without trust"))
        with pytest.raises(ValueError, match="not allowed here"):
            GeneratedNetwork.from_pretrained("me/net")
    assert torch.equal(answers(GeneratedNetwork.from_pretrained("me/net", trust_remote_code=True)), expected)
    assert "trust_remote_code=True" in hub.files("me/net")["README.md"].decode()


def test_the_example_publishes_a_network_of_the_shipped_pipeline(hub: LoopbackHub, task: Task) -> None:
    shipped = ROOT / "pipelines" / "digits-mlp3"
    runpy.run_path(str(ROOT / "examples" / "publish_network.py"))["main"]("me/net", str(shipped))
    card = ModelCard(hub.files("me/net")["README.md"].decode())
    network = GeneratedNetwork.from_pretrained("me/net")
    with torch.no_grad():
        right = network(task.inputs(task.test)).argmax(1) == task.test.labels_N
    assert card.data.eval_results[0].metric_value == round(float(right.float().mean()), 4) > 0.95
    assert json.loads((shipped / "results.json").read_text())["frontier"]["verdict"] in card.text
    assert card.data.license == "apache-2.0"


GOOD = {"format_version": 1, "network": resolve_network(MLP, in_channels=1, image_size=8, num_classes=10)}
STATE = build_network(GOOD["network"]).state_dict()


def spoiled(**network: Any) -> bytes:
    return json.dumps({**GOOD, "network": {**GOOD["network"], **network}}).encode()


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"config.json": None}, (ValueError, FileNotFoundError), "config.json"),
        ({"config.json": b"{"}, ValueError, "is not JSON"),
        ({"config.json": b"[1]"}, ValueError, "no generated network"),
        ({"config.json": b'{"a":' * 3000 + b"1" + b"}" * 3000}, ValueError, "is not JSON"),
        ({"config.json": b'{"format_version": 1, "network": "mlp3"}'}, ValueError, "network with a name"),
        ({"config.json": b'{"format_version": 2, "network": {"name": "mlp3"}}'}, ValueError, "reads up to 1; upgrade"),
        ({"config.json": spoiled(name="os.system", command="touch hacked")}, ValueError, "not allowed here"),
        ({"config.json": spoiled(name="mlp4")}, ValueError, "nearest known one is 'mlp'"),
        ({"config.json": spoiled(hidden=[10**7, 10**7])}, ValueError, r"has hidden .*, which does not fit the weights"),
        ({"config.json": spoiled(hidden=[8, 7])}, ValueError, r"'fc2.bias' is float32 \[6\], expected float32 \[7\]"),
        ({"config.json": spoiled(trust_remote_code=True)}, ValueError, "trust_remote_code"),
        (
            {"config.json": json.dumps({**GOOD, "trust_remote_code": True, "network": {"name": "os.system"}}).encode()},
            ValueError,
            "not allowed here",
        ),
        ({"config.json": spoiled(num_classes=None)}, ValueError, "num_classes must be a positive integer"),
        (
            {"model.safetensors": None, "pytorch_model.bin": b"\x80\x04."},
            ValueError,
            "has no model.safetensors.*pickle",
        ),
        ({"model.safetensors": b"\x80\x04."}, ValueError, "damaged or no safetensors"),
        (
            {
                "model.safetensors": (1000).to_bytes(8, "little")
                + json.dumps({"fc1.weight": {"dtype": "F32", "shape": [5 * 10**9], "data_offsets": [0, 2 * 10**10]}})
                .encode()
                .ljust(1000)
            },
            ValueError,
            "damaged or no safetensors",
        ),
        (
            {"model.safetensors": save({**STATE, "more": torch.zeros(2)})},
            ValueError,
            r"'more' is float32 \[2\], expected none",
        ),
        (
            {"model.safetensors": save({k: v for k, v in STATE.items() if k != "fc3.bias"})},
            ValueError,
            "'fc3.bias' is none, expected",
        ),
        ({"model.safetensors": save({**STATE, "fc3.bias": STATE["fc3.bias"].double()})}, ValueError, "is float64"),
    ],
)
def test_hostile_repositories_get_one_clear_error(
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes | None],
    error: type[Exception] | tuple[type[Exception], ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    whole: dict[str, bytes | None] = {"config.json": json.dumps(GOOD).encode(), "model.safetensors": save(STATE)}
    content = {path: data for path, data in {**whole, **files}.items() if data is not None}
    hub.add("evil/net", content)
    with pytest.raises(error, match=message):
        GeneratedNetwork.from_pretrained("evil/net")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, data in content.items():
        (folder / path).write_bytes(data)
    with pytest.raises(error, match=message):
        GeneratedNetwork.from_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": 4}, "index is 4, expected an integer from 0 to 3"),
        ({"index": -1}, "index is -1"),
        ({"index": True}, "index is True"),
        ({"num_models": 0}, "num_models is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"accuracy": 96.8}, "accuracy is 96.8, expected a frac"),
        ({"repo_id": "net"}, "cannot publish a network as 'net'; expected owner/name"),
        ({"repo_id": "me/../net"}, "cannot publish a network as"),
    ],
)
def test_bad_arguments_publish_nothing(task: Task, hub: LoopbackHub, options: dict[str, Any], message: str) -> None:
    pipe = make_pipe(task, MLP)
    with pytest.raises(ValueError, match=message):
        push_network(pipe, **{"repo_id": "me/net", **MADE, **options})
    pipe.autoencoder.register_to_config(network=None)
    with pytest.raises(ValueError, match="does not say which network"):
        push_network(pipe, "me/net", **MADE)
    assert not hub.repos


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.pop("resolved"),
        lambda spec: spec.update(dataset=None),
        lambda spec: spec["resolved"].update(classes=["a"] * 10),
        lambda spec: spec["resolved"].update(mean="high"),
        lambda spec: spec["resolved"].update(sizes=3),
        lambda spec: spec["resolved"].update(classes=["a"]),
    ],
)
def test_a_task_that_does_not_say_all_is_not_described(task: Task, spoil: Callable[[dict[str, Any]], Any]) -> None:
    spec = json.loads(json.dumps(task.spec))
    assert Images.of_task(spec, 10) is not None
    spoil(spec)
    assert Images.of_task(spec, 10) is None


@pytest.mark.parametrize(
    ("dataset", "source", "said", "hub_id"),
    [
        ("digits", "scikit-learn", "digits", None),
        ("fashion-mnist", "/usr/share/datasets/fashion-mnist", "fashion-mnist", "zalando-datasets/fashion_mnist"),
        ("owner/photos", "owner/photos", "owner/photos", "owner/photos"),
        ("owner/photos", "/home/someone/owner/photos", "photos", None),
        ("~/photos", "/home/someone/photos", "photos", None),
        ("C:\\people\\me\\photos", "C:\\people\\me\\photos", "photos", None),
    ],
)
def test_data_sets_are_named_without_folders(
    task: Task, dataset: str, source: str, said: str, hub_id: str | None
) -> None:
    images = Images.of_task({"dataset": dataset, "resolved": {**task.spec["resolved"], "source": source}}, 10)
    assert images is not None and (images.dataset, images.hub_id) == (said, hub_id)
