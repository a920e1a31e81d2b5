"""A file that came from anybody makes no folder be walked; a folder that the user named is found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from pdiff_hub.errors import PdiffError
from pdiff_hub.runs import audit
from pdiff_hub.tasks import load_recorded_task, load_task, loading, named_folders

SHIPPED = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"


@pytest.fixture(autouse=True)
def nothing_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    forget(monkeypatch)
    monkeypatch.chdir(tmp_path)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(named_folders, "_named", set())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for label, grey in (("cat", 20), ("dog", 150)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(6):
            pixels = np.full((4, 4), grey + number, np.uint8)
            pixels[0, 0] = 255
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    return tmp_path / "images"


def test_folders_that_only_a_file_names_are_not_walked(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "open_source", lambda options: pytest.fail(f"walked {options['dataset']}"))
    monkeypatch.setenv("HOME", str(images))
    for dataset in ("~", "..", ".", "/usr", str(images), "images", "./images", "~/cat", f"{images}/../images"):
        for resolved in ({}, {"resolved": {"source": str(images)}}, {"resolved": {"source": dataset}}):
            with pytest.raises(PdiffError, match=r"which you have not named yet.*--images FOLDER"):
                load_recorded_task({"dataset": dataset, **resolved})


def test_a_folder_that_was_named_is_found_from_everywhere(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_task({"dataset": "images", "test_size": 4}).spec
    forget(monkeypatch)
    assert load_recorded_task(spec).spec["resolved"] == spec["resolved"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recorded_task(spec).spec["resolved"] == spec["resolved"]
    (tmp_path / "elsewhere" / "images").mkdir()  # another one, which nobody named
    assert load_recorded_task(spec).spec["resolved"] == spec["resolved"]
    images.rename(tmp_path / "moved")
    (tmp_path / "elsewhere" / "images").rmdir()
    with pytest.raises(PdiffError, match=f"recorded as '{images}', which is not here; give .*--images FOLDER"):
        load_recorded_task(spec)
    moved = load_recorded_task(spec, images=tmp_path / "moved")
    assert moved.spec["resolved"] == {**spec["resolved"], "source": str(tmp_path / "moved")}
    shutil.rmtree(tmp_path / "moved" / "cat")
    shutil.copytree(tmp_path / "moved" / "dog", tmp_path / "moved" / "cow")
    (tmp_path / "moved" / "cow" / "0.png").unlink()
    with pytest.raises(PdiffError, match="is not the one that this task was made with"):
        load_recorded_task(spec, images=tmp_path / "moved")


def test_data_sets_with_a_name_need_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_task("digits").spec
    assert load_recorded_task(spec).spec == spec
    asked = []
    monkeypatch.setattr(loading, "open_source", lambda options: asked.append(options["dataset"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_recorded_task({"dataset": "owner/name", "resolved": {"source": "owner/name"}})
    assert asked == ["owner/name"]
    with pytest.raises(PdiffError, match="'owner/name', recorded as '/data/name', which is not here"):
        load_recorded_task({"dataset": "owner/name", "resolved": {"source": "/data/name"}})
    for spec in ({"dataset": "~nobody-here/x"}, {"dataset": "a\0/b"}, {"dataset": 3}, {"dataset": "x/y/z"}, {}):
        with pytest.raises(PdiffError):
            load_recorded_task(spec)


def test_where_nothing_can_be_written_a_process_remembers(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hf").write_text("no folder")
    spec = load_task({"dataset": str(images), "test_size": 4}).spec
    assert load_recorded_task(spec).spec == spec
    forget(monkeypatch)
    with pytest.raises(PdiffError, match="not named yet"):
        load_recorded_task(spec)


@pytest.mark.parametrize("dataset", ["~", "..", "/usr"])
def test_audit_of_somebodys_pipeline_walks_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    folder = tmp_path / "received"
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("checkpoints", "*.png", "*.svg", "*.html"))
    file = folder / "autoencoder" / "config.json"
    config: dict[str, Any] = json.loads(file.read_text())
    config["task"] = {**config["task"], "dataset": dataset}
    file.write_text(json.dumps(config))
    (folder / "training").mkdir()  # a folder may claim to be a run of one's own
    (folder / "training" / "recipe.json").write_text(json.dumps({"task": {"dataset": dataset}, "network": "mlp3"}))
    monkeypatch.setattr(loading, "open_source", lambda options: pytest.fail(f"walked {options['dataset']}"))
    with pytest.raises(PdiffError, match="not named yet, and a file alone does not make it be read"):
        audit(folder, tmp_path / "report", metrics=["accuracy"], num_models=2)
