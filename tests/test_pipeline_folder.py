"""The files in a pipeline's folder describe its own weights only, and a push gives away no path of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file

from pdiff_hub import PDiffPipeline
from pdiff_hub.hub import push_pipeline_folder
from pdiff_hub.pipeline.public import public
from pdiff_hub.records import RunFolder
from pdiff_hub.training.pipeline import publish

SHIPPED = Path(__file__).parent.parent / "pipelines" / "digits-mlp3"
TELLING = {"README.md", "results.json", "frontier.png"}


def copied(path: Path) -> Path:
    shutil.copytree(SHIPPED, path, ignore=shutil.ignore_patterns("checkpoints"))
    return path


def changed(folder: Path) -> PDiffPipeline:
    pipe = PDiffPipeline.from_pretrained(folder)
    next(pipe.unet.parameters()).data.add_(1.0)
    return pipe


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_saved_over_itself_or_another_nothing_false_stays(tmp_path: Path) -> None:
    own = copied(tmp_path / "own")
    PDiffPipeline.from_pretrained(own).save_pretrained(own)
    assert names(own) >= TELLING
    with pytest.warns(UserWarning, match="held another pipeline"):
        changed(own).save_pretrained(own)
    assert not names(own) & TELLING and "recipe.yaml" in names(own)
    other = copied(tmp_path / "other")
    with pytest.warns(UserWarning, match=r"held another pipeline|is not the one in"):
        changed(SHIPPED).save_pretrained(other)
    assert not names(other) & TELLING


def test_trained_again_nothing_false_stays(tmp_path: Path) -> None:
    folder = copied(tmp_path / "pipeline")
    (folder / "training").mkdir()
    with pytest.warns(UserWarning, match="is not the one in"):
        publish(changed(SHIPPED), RunFolder(folder))
    assert not names(folder) & TELLING


@pytest.mark.parametrize("index", [{"weight_map": {}}, [], {"weight_map": {"mean_P": "../elsewhere.safetensors"}}])
def test_an_index_of_shards_that_is_not_true(tmp_path: Path, index: object) -> None:
    folder = copied(tmp_path / "pipeline")
    file = folder / "autoencoder" / "diffusion_pytorch_model.safetensors.index.json"
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json"):
        PDiffPipeline.from_pretrained(folder)
    whole = file.with_name("diffusion_pytorch_model.safetensors")
    tensors = load_file(whole)
    save_file(tensors, whole.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"), {"format": "pt"})
    whole.unlink()
    with pytest.raises(ValueError, match=r"index\.json"):
        PDiffPipeline.from_pretrained(folder)
    true = dict.fromkeys(tensors, "diffusion_pytorch_model-00001-of-00001.safetensors")
    file.write_text(json.dumps({"metadata": {}, "weight_map": true}))
    assert PDiffPipeline.from_pretrained(folder).autoencoder.layout.num_params == 8970


@pytest.mark.parametrize(
    "path",
    ["/home/some one/a very long path with blanks/" * 3 + "data", "/srv/\u00fcber/data", '/it\'s/"quoted"/data', "/a"],
)
def test_paths_of_this_machine_stay_here(hub: LoopbackHub, tmp_path: Path, path: str) -> None:
    folder = copied(tmp_path / "pipeline")
    results = json.loads((folder / "results.json").read_text())
    recipe = {**results["recipe"], "task": {"dataset": path}}
    (folder / "results.json").write_text(json.dumps({**results, "task": path, "recipe": recipe}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "report.html").write_text(f"<p>{path}</p>")
    push_pipeline_folder(folder, "user/digits")
    files = hub.files("user/digits")
    last = Path(path).name
    assert yaml.safe_load(files["recipe.yaml"])["task"]["dataset"] == last
    assert json.loads(files["results.json"])["task"] == last
    assert files["frontier.png"] == (folder / "frontier.png").read_bytes()
    for name, content in files.items():
        if path != "/a":
            assert path.encode() not in content and path[:20].encode() not in content, name
    assert b"<svg" in files["report.html"] or b"base64" in files["report.html"]


def test_what_is_public() -> None:
    assert public({"a": ["/x/y", "~/z", "C:\\p\\q", "user/name", "", 3], "b": None}) == {
        "a": ["y", "z", "q", "user/name", "", 3],
        "b": None,
    }
