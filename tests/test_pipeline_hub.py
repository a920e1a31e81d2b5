"""Pipelines on the Hub: pushed whole in one commit, unchanged by a round trip, opened with and without the package.

The tests use the loopback Hub and the unmodified client.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from huggingface_hub import ModelCard
from loopback_hub import Fault, LoopbackHub
from no_waiting import without_pauses
from safetensors.torch import load, save
from typer.testing import CliRunner
from without_package import WITHOUT_PACKAGE

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.cli import app
from pdiff_hub.evaluation import evaluate as evaluation
from pdiff_hub.hub import describe, kind_of, pull, push_folder, push_pipeline_folder

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "pipelines" / "digits-mlp3"
ID, SET = "user/digits", "user/digits-checkpoints"
CODE = {"pipeline_pdiff.py": "pipeline_pdiff.py", "autoencoder/param_autoencoder.py": "param_autoencoder.py"}


@pytest.fixture(autouse=True)
def quick(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def sample(pipe: PDiffPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(2, 5, torch.Generator().manual_seed(5), output_type="params").params


def copy_of_shipped(folder: Path) -> Path:
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("checkpoints"))
    return folder


def ours(hub: LoopbackHub, repo_id: str = ID) -> dict[str, bytes]:
    return {path: content for path, content in hub.files(repo_id).items() if path != ".gitattributes"}


def test_a_folder_is_pushed_whole_and_opens_with_the_package(hub: LoopbackHub, tmp_path: Path) -> None:
    before = contents(SHIPPED)
    done = CliRunner().invoke(app, ["push", str(SHIPPED), ID, "--message", "Mine"])
    assert done.exit_code == 0 and done.output.strip().endswith(f"/{ID}/commit/{hub.head(ID)}"), done.output
    assert contents(SHIPPED) == before
    repo = hub.repos["model", ID]
    assert len(repo.commits) == 2 and repo.commits[hub.head(ID)].message == "Mine"
    files = ours(hub)
    shipped = {path for path in before if not path.startswith("checkpoints/")}
    assert set(files) == shipped | set(CODE)
    for path in shipped - {"README.md"}:
        assert files[path] == before[path], path
    for path, source in CODE.items():
        assert files[path] == (ROOT / "pdiff_hub" / "travelling" / source).read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.model_name == "digits" and f'from_pretrained("{ID}")' in card.text
    for content in files.values():
        assert b"_name_or_path" not in content or b"config.pop" in content
        assert str(tmp_path.parent).encode() not in content and str(ROOT).encode() not in content

    since = len(hub.requests)
    pipe = PDiffPipeline.from_pretrained(ID)
    assert (pipe.hub_id, pipe.hub_revision) == (ID, hub.head(ID))
    assert not [request.path for request in hub.requests[since:] if request.path.endswith(".py")]
    assert torch.equal(sample(pipe), sample(PDiffPipeline.from_pretrained(SHIPPED)))
    assert PDiffPipeline.from_pretrained(SHIPPED).hub_id is None
    # A second push finds everything there and makes no commit.
    push_pipeline_folder(SHIPPED, ID)
    assert len(repo.commits) == 2 and set(hub.uploads.values()) == {1}


def test_loading_saving_and_pushing_again_changes_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    first = push_pipeline_folder(SHIPPED, ID)
    pipe = PDiffPipeline.from_pretrained(ID)
    pipe.save_pretrained(tmp_path / "a")
    assert contents(tmp_path / "a") == ours(hub)
    PDiffPipeline.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    for push in (pipe, PDiffPipeline.from_pretrained(SHIPPED), PDiffPipeline.from_pretrained(tmp_path / "b")):
        assert push.push_to_hub(ID) == first and (push.hub_id, push.hub_revision) == (ID, hub.head(ID))
    assert pull(ID, tmp_path / "c") == "pipeline"
    assert contents(tmp_path / "c") == {path: content for path, content in ours(hub).items() if path not in CODE}
    push_folder(tmp_path / "c", ID)
    assert len(hub.repos["model", ID].commits) == 2
    # A push to another branch.
    pipe.push_to_hub(ID, revision="other")
    assert hub.files(ID, revision="other") == hub.files(ID)


def test_a_changed_pipeline_carries_no_results(hub: LoopbackHub, tmp_path: Path) -> None:
    pipe = PDiffPipeline.from_pretrained(SHIPPED)
    for number in range(3):
        changed = PDiffPipeline.from_pretrained(SHIPPED)
        if number == 0:
            changed.autoencoder.mean_P += 1
        elif number == 1:
            changed.scheduler = DDIMScheduler.from_config(changed.scheduler.config)
        else:
            changed.register_to_config(default_num_inference_steps=20)
        with pytest.warns(UserWarning, match="not the one in .* any more, so README.md and others there"):
            changed.save_pretrained(tmp_path / str(number))
        assert not (tmp_path / str(number) / "results.json").exists()
    pipe.push_to_hub(ID)
    with pytest.warns(UserWarning, match="any more"):
        changed.push_to_hub(ID, commit_message="Other steps")
    files = ours(hub)
    assert "results.json" not in files and not any(path.endswith(".png") for path in files)
    assert b"was not evaluated" in files["README.md"] and b"recipe is not known" in files["README.md"]
    ModelCard(files["README.md"].decode()).validate(repo_type="model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PDiffPipeline(pipe.autoencoder, pipe.unet, pipe.scheduler).save_pretrained(tmp_path / "built")
    assert not (tmp_path / "built" / "README.md").exists()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the pictures, since drawing them takes most of the time when few networks are judged."""
    for name in ("accuracy_similarity_figure", "similarity_figure"):
        monkeypatch.setattr(evaluation, name, lambda *args, **options: None)


@pytest.mark.usefixtures("no_pictures")
def test_checkpoints_go_with_it_and_an_audit_finds_them(hub: LoopbackHub, tmp_path: Path) -> None:
    push_pipeline_folder(SHIPPED, ID, checkpoints_id=SET, private=True)
    assert hub.repos["model", ID].private and hub.repos["dataset", SET].private
    named = {"repo_id": SET, "revision": hub.head(SET, "dataset")}
    results = json.loads(ours(hub)["results.json"])
    assert results == {**json.loads((SHIPPED / "results.json").read_text()), "checkpoints": named}
    assert ModelCard(ours(hub)["README.md"].decode()).data.datasets == [SET]
    originals = CheckpointDataset.from_pretrained(SET)
    assert torch.equal(originals.params_KP, CheckpointDataset.from_pretrained(SHIPPED / "checkpoints").params_KP)
    done = CliRunner().invoke(
        app, ["audit", ID, "--num-models", "4", "--metric", "similarity", "--output-dir", str(tmp_path / "audit")]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    judged = json.loads((tmp_path / "audit" / "results.json").read_text())
    assert judged["checkpoints"] == named and judged["name"] == "digits" and judged["num_checkpoints"] == 200
    assert judged["recipe"] == results["recipe"]
    # A pushed copy of the repository still names the same checkpoints.
    PDiffPipeline.from_pretrained(ID).push_to_hub("user/copy")
    assert json.loads(ours(hub, "user/copy")["results.json"])["checkpoints"] == named
    # A pipeline that was not evaluated names its checkpoints in its card.
    no_set = copy_of_shipped(tmp_path / "none")
    (no_set / "results.json").unlink()
    shutil.copytree(SHIPPED / "checkpoints", no_set / "checkpoints")
    push_pipeline_folder(no_set, "user/unknown", checkpoints_id=SET)
    card = ModelCard(ours(hub, "user/unknown")["README.md"].decode())
    assert card.data.datasets == [SET] and f"pdiff audit user/unknown --dataset {SET}" in card.text
    assert "num_checkpoints: 200" in card.text and "for `digits`" in card.text
    shutil.rmtree(no_set / "checkpoints")
    with pytest.raises(FileNotFoundError, match="has no checkpoints/"):
        push_pipeline_folder(no_set, "user/x", checkpoints_id="user/y")
    assert ("model", "user/x") not in hub.repos


def test_no_path_of_this_machine_is_pushed(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = copy_of_shipped(tmp_path / "pipeline")
    secret = str(tmp_path / "no ones & bus\u00efness" / "photos")
    config = json.loads((folder / "autoencoder" / "config.json").read_text())
    config["task"] |= {"dataset": secret}
    config["task"]["resolved"]["source"] = secret
    config["_name_or_path"] = str(tmp_path)
    (folder / "autoencoder" / "config.json").write_text(json.dumps(config))
    (folder / "recipe.yaml").write_text(f"task: {secret}\nnetwork: mlp3\ncollect: {{method: import, source: ~/mine}}\n")
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "task": secret, "recipe": {"task": secret}}))
    (folder / "report.html").write_text(f"<p>{secret.replace('&', '&amp;')}</p>")
    before = contents(folder)
    push_pipeline_folder(folder, ID)
    assert contents(folder) == before
    for path, content in ours(hub).items():
        assert str(tmp_path).encode() not in content and b"no ones" not in content, path
    assert b"networks for photos" in ours(hub)["report.html"] and b"source: mine" in ours(hub)["recipe.yaml"]
    assert "networks for `photos`" in ours(hub)["README.md"].decode()
    pipe = PDiffPipeline.from_pretrained(ID)
    assert pipe.autoencoder.config.task["dataset"] == "photos"
    head = hub.head(ID)
    pipe.push_to_hub(ID)
    assert {
        path for path, content in ours(hub).items() if content != hub.repos["model", ID].commits[head].files[path]
    } <= {"autoencoder/config.json"}  # written anew by diffusers


ALONE = (
    WITHOUT_PACKAGE
    + """
import torch
from diffusers import DiffusionPipeline
try:
    DiffusionPipeline.from_pretrained(sys.argv[1])
except ValueError as error:
    print("refused:", error)
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
torch.save(pipe(2, 5, torch.Generator().manual_seed(5)).params, "params.pt")
again = type(pipe).from_pretrained(sys.argv[1], trust_remote_code=True)
assert torch.equal(again(2, 5, torch.Generator().manual_seed(5)).params, torch.load("params.pt"))
for call in (lambda: pipe.push_to_hub("user/x"), pipe.build_network):
    try:
        call()
    except ImportError as error:
        print(error)
pipe.save_pretrained("saved")
"""
)


def test_opens_without_the_package(hub: LoopbackHub, tmp_path: Path) -> None:
    push_pipeline_folder(SHIPPED, ID)
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, ID], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"refused: The repository for {ID} contains custom code in pipeline_pdiff.py")
    assert "trust_remote_code=True" in done.stdout
    assert done.stdout.count("pip install . in a copy of its source") == 2
    params = torch.load(tmp_path / "params.pt", weights_only=True)
    assert float((params - sample(PDiffPipeline.from_pretrained(ID))).abs().max()) == 0
    assert torch.equal(sample(PDiffPipeline.from_pretrained(tmp_path / "saved")), params)


def hostile() -> dict[str, tuple[dict[str, bytes | None], str]]:
    """Name of the case -> (files that replace the shipped ones, message of the expected error)."""

    def edited(path: str, **changes: Any) -> bytes:
        return json.dumps({**json.loads((SHIPPED / path).read_text()), **changes}).encode()

    weights, config = "autoencoder/diffusion_pytorch_model.safetensors", "autoencoder/config.json"
    tensors = load((SHIPPED / weights).read_bytes())
    header = json.dumps({"mean_P": {"dtype": "F32", "shape": [5 * 10**9], "data_offsets": [0, 20 << 30]}}).encode()
    layout = json.loads((SHIPPED / config).read_text())["layout"]
    huge = {**layout["entries"][0], "shape": [5 * 10**6, 1000], "stop": 5 * 10**9}
    return {
        "no pipeline": ({"model_index.json": None}, "is no pipeline of this package: it has no model_index.json"),
        "another pipeline": ({"model_index.json": b'{"_class_name": "X"}'}, "model_index.json describes no PDiffPipel"),
        "not JSON": ({"model_index.json": b"{"}, "model_index.json is not JSON"),
        "deep JSON": ({"model_index.json": b"[" * 100_000}, "model_index.json is not JSON"),
        "newer": ({"model_index.json": edited("model_index.json", format_version=3)}, "reads up to 2; upgrade with"),
        "odd version": ({"model_index.json": edited("model_index.json", format_version="2")}, "format version '2'"),
        "scheduler": ({"model_index.json": edited("model_index.json", scheduler=["os", "system"])}, "'system', which"),
        "not a class": ({"model_index.json": edited("model_index.json", scheduler=["x", "utils"])}, "'utils', which"),
        "steps": (
            {"scheduler/scheduler_config.json": edited("scheduler/scheduler_config.json", num_train_timesteps=10**12)},
            "num_train_timesteps is 1",
        ),
        "pickle": ({weights: None, "autoencoder/diffusion_pytorch_model.bin": b"\x80\x04cos\nsystem\n."}, "run code"),
        "not safetensors": ({weights: b"\x80\x04cos\nsystem\n."}, "diffusion_pytorch_model.safetensors is damaged"),
        "20 GB": ({weights: struct.pack("<Q", len(header)) + header + bytes(1000)}, "claims 21,474,836,480 bytes"),
        "long header": ({weights: struct.pack("<Q", 20 << 30) + bytes(1000)}, "its header claims 21,474,836,480"),
        "cut": ({weights: (SHIPPED / weights).read_bytes()[:-5]}, "its header claims"),
        "shape": ({weights: save({**tensors, "mean_P": torch.zeros(8969)})}, r"tensor 'mean_P' is \[8969\], expected"),
        "more": ({weights: save({**tensors, "x": torch.zeros(2)})}, r"tensor 'x' is \[2\], expected none"),
        "layout": ({config: edited(config, layout={**layout, "entries": [huge]})}, "do not fit|describes no Param"),
        "no layout": ({config: edited(config, layout=3)}, "config.json describes no ParamAutoencoder"),
        "unet": ({"unet/config.json": edited("unet/config.json", block_out_channels="x")}, "describes no UNet1DModel"),
        "name": ({"../up.png": b"x"}, "could lead out of its folder"),
        "absolute": ({"/tmp/x.png": b"x"}, "could lead out of its folder"),
    }


@pytest.mark.parametrize("wrong", hostile())
def test_hostile_repositories(hub: LoopbackHub, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files, message = hostile()[wrong]
    whole: dict[str, bytes | None] = {
        path: content for path, content in contents(SHIPPED).items() if not path.startswith("checkpoints/")
    }
    evil = b"raise SystemExit('downloaded code was run')"
    code = {**dict.fromkeys(CODE, evil), "pdiff_hub.py": evil, "autoencoder/__init__.py": evil}
    hub.add(ID, {path: content for path, content in {**whole, **code, **files}.items() if content is not None})
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ValueError, match=message):
        PDiffPipeline.from_pretrained(ID, cache_dir=tmp_path / "cache")
    if wrong != "no pipeline":
        with pytest.raises(ValueError, match=message):
            pull(ID, tmp_path / "work" / "pulled")
    assert list((tmp_path / "work").iterdir()) == [] and {path.name for path in tmp_path.iterdir()} <= {"work", "cache"}
    assert not any(
        "/resolve/" in request.path and (".py" in request.path or ".bin" in request.path) for request in hub.requests
    )


def test_a_broken_card_is_no_obstacle_and_is_replaced(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = copy_of_shipped(tmp_path / "pipeline")
    (folder / "README.md").write_text("---\ntags: [\n---\n")
    push_pipeline_folder(folder, ID)
    ModelCard(ours(hub)["README.md"].decode()).validate(repo_type="model")
    hub.add(ID, {"README.md": b"---\ntags: [\n---\n"})
    PDiffPipeline.from_pretrained(ID).push_to_hub(ID)
    ModelCard(ours(hub)["README.md"].decode()).validate(repo_type="model")
    (folder / "results.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"results\.json holds list"):
        push_pipeline_folder(folder, ID)
    (folder / "results.json").write_text('{"accuracy": 3}')
    with pytest.raises(ValueError, match="evaluate the pipeline again"):
        push_pipeline_folder(folder, ID)


def test_pull_leaves_all_or_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    push_pipeline_folder(SHIPPED, ID, checkpoints_id=SET)
    target = tmp_path / "target"
    hub.fail(Fault.status(503), lambda request: "unet/diffusion" in request.path, times=100)
    with pytest.raises(ConnectionError):
        pull(ID, target)
    assert list(tmp_path.iterdir()) == []
    hub.faults.clear()
    target.mkdir()
    done = CliRunner().invoke(app, ["pull", ID, str(target)])
    assert done.exit_code == 0 and f"pipeline is in {target}" in done.output, done.output
    before = contents(target)
    assert pull(ID, target) == "pipeline" and contents(target) == before
    with pytest.raises(FileExistsError, match="holds something else, and was not changed"):
        pull(SET, target)
    (target / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="holds something else"):
        pull(ID, target)
    assert contents(target) == {**before, "mine.txt": b"x"}
    done = CliRunner().invoke(app, ["pull", SET, str(tmp_path / "rows"), "--rows", "3:7"])
    assert done.exit_code == 0, (done.output, done.exception)
    some, whole = (CheckpointDataset.from_pretrained(path) for path in (tmp_path / "rows", SHIPPED / "checkpoints"))
    assert torch.equal(some.params_KP, whole.params_KP[3:7])
    assert pull(SET, tmp_path / "all", rows=slice(None)) == "data set" == pull(SET, tmp_path / "all")
    for rows, message in (("198:1000000000000", "checkpoint 200 does not"), ("7", "START:STOP"), ("5:5", "empty")):
        done = CliRunner().invoke(app, ["pull", SET, str(tmp_path / "no"), "--rows", rows])
        assert isinstance(done.exception, ValueError) and message in str(done.exception), (rows, done.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"target", "rows", "all"}


def test_what_a_repository_is(hub: LoopbackHub, tmp_path: Path) -> None:
    push_folder(SHIPPED, ID)
    push_folder(SHIPPED / "checkpoints", SET)
    push_folder(SHIPPED / "checkpoints", ID)
    assert (kind_of(ID), kind_of(SET)) == ("pipeline", "data set")
    pull(ID, tmp_path / "rows", rows=[1])
    assert len(CheckpointDataset.from_pretrained(tmp_path / "rows")) == 1
    hub.add("user/other", {"x.txt": b"x"})
    with pytest.raises(ValueError, match=r"neither a pipeline nor .* a model repository without model_index\.json"):
        kind_of("user/other")
    with pytest.raises(FileNotFoundError, match="no model repository 'user/none'"):
        pull("user/none", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="is no folder here, and there is no model repository"):
        PDiffPipeline.from_pretrained("user/none")
    with pytest.raises(FileNotFoundError, match="has no revision 'v9'"):
        PDiffPipeline.from_pretrained(ID, revision="v9")
    with pytest.raises(ValueError, match="local folder, which has no revision 'v9'"):
        PDiffPipeline.from_pretrained(SHIPPED, revision="v9")
    for name, text in (
        (ID, "pipeline: ParamLayout"),
        (SET, "data set: 200 checkpoints"),
        (str(SHIPPED), "pipeline:"),
        (str(SHIPPED / "checkpoints"), "data set: 200"),
    ):
        done = CliRunner().invoke(app, ["info", name])
        assert done.exit_code == 0 and text in done.output and "num_params=8970" in done.output, (name, done.exception)
    assert describe(SET)[1] is None and describe(ID)[1].facts.name == "digits-mlp3"
    for wrong, options, message in (
        (SHIPPED, {"append": True}, "append is for data sets"),
        (tmp_path, {}, "neither a pipeline"),
        (SHIPPED / "checkpoints", {"checkpoints_id": SET}, "is a data set itself"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            push_folder(wrong, "user/no", **options)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        push_pipeline_folder(tmp_path / "gone", "user/no")


def test_generate_publishes_one_network(hub: LoopbackHub, tmp_path: Path) -> None:
    push_pipeline_folder(SHIPPED, ID)
    revision = hub.head(ID)
    command = ["generate", ID, "--revision", revision, "--seed", "3", "--num-inference-steps", "5"]
    done = CliRunner().invoke(app, [*command, "--push-to-hub", "user/net", "--output-dir", str(tmp_path / "net")])
    assert done.exit_code == 0 and "user/net" in done.output, (done.output, done.exception)
    published, written = (
        load(hub.files("user/net")["model.safetensors"]),
        load((tmp_path / "net" / "model-00000.safetensors").read_bytes()),
    )
    assert all(torch.equal(published[name], written[name]) for name in written) and published.keys() == written.keys()
    assert revision in hub.files("user/net")["README.md"].decode()
    for more, message in ((["--push-to-hub", "user/n", "--num-models", "2"], "one at a time"), ([], "--output-dir")):
        done = CliRunner().invoke(app, [*command, *more])
        assert isinstance(done.exception, ValueError) and message in str(done.exception)
    assert ("model", "user/n") not in hub.repos


@pytest.mark.usefixtures("no_pictures")
def test_evaluate_a_pipeline_off_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    push_pipeline_folder(SHIPPED, ID, checkpoints_id=SET)
    done = CliRunner().invoke(
        app,
        [
            "evaluate",
            ID,
            "--dataset",
            SET,
            "--num-models",
            "3",
            "--baselines",
            "0",
            "--num-inference-steps",
            "5",
            "--output-dir",
            str(tmp_path),
        ],
    )
    assert done.exit_code == 0, (done.output, done.exception)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["name"] == "digits" and results["checkpoints"]["repo_id"] == SET
    assert (
        results["audit"]["deviation_r2"] == json.loads((SHIPPED / "results.json").read_text())["audit"]["deviation_r2"]
    )
    assert results["figures"] == ["copies", "training"]


def test_the_example_shares_the_shipped_pipeline(hub: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "share_on_hub.py"))["main"](str(SHIPPED), ID)
    assert "8,970 parameters per network" in capsys.readouterr().out
    assert len(CheckpointDataset.from_pretrained(f"{ID}-checkpoints")) == 200
