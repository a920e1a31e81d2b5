"""Only regular files that lie in a folder are published, copied or replaced; a link is refused by its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_sets import dataset
from loopback_hub import LoopbackHub
from no_waiting import without_pauses

from pdiff_hub import PDiffPipeline
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub import pull, push_folder
from pdiff_hub.transfer import require_own

SHIPPED = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"
SECRET = b"PRIVATE KEY 12345"


@pytest.fixture(autouse=True)
def quick(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pauses(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED, tmp_path / "pipe", ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_path / "pipe"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "id_rsa").write_bytes(SECRET)
    return tmp_path / "id_rsa"


def replace(file: Path, target: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to(target)


@pytest.mark.parametrize("name", ["report.html", "similarity.png", "README.md"])
def test_a_link_is_neither_published_nor_copied(
    name: str, hub: LoopbackHub, folder: Path, secret: Path, tmp_path: Path
) -> None:
    replace(folder / name, secret)
    pipe = PDiffPipeline.from_pretrained(folder)
    calls: list[Callable[[], object]] = [
        lambda: pipe.push_to_hub("user/b"),
        lambda: pipe.save_pretrained(tmp_path / "copy"),
    ]
    if name != "README.md":  # a push writes a card of its own
        calls.append(lambda: push_folder(folder, "user/a"))
    for call in calls:
        with pytest.raises(PdiffError, match=f"{name} is a link to '.*id_rsa', and only files that lie in their"):
            call()
    assert hub.repos == {} and not (tmp_path / "copy" / name).exists()


def test_a_linked_component_is_not_published(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    (folder / "unet").rename(tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(PdiffError, match="unet is a link to"):
        push_folder(folder, "user/a")
    assert hub.repos == {}


@pytest.mark.parametrize("name", ["recipe.yaml", "unet/config.json", "model_index.json"])
def test_a_save_does_not_write_through_a_link(name: str, folder: Path, secret: Path, tmp_path: Path) -> None:
    pipe = PDiffPipeline.from_pretrained(folder)
    (tmp_path / "there" / name).parent.mkdir(parents=True)
    replace(tmp_path / "there" / name, secret)
    with pytest.raises(PdiffError, match=f"{name} is a link"):
        pipe.save_pretrained(tmp_path / "there")
    assert secret.read_bytes() == SECRET


def test_a_pipe_is_not_waited_for(hub: LoopbackHub, folder: Path) -> None:
    (folder / "report.html").unlink(missing_ok=True)
    os.mkfifo(folder / "report.html")
    with pytest.raises(PdiffError, match=r"report\.html is no regular file"):
        push_folder(folder, "user/a")


def test_a_data_set_with_links_is_not_published(hub: LoopbackHub, tmp_path: Path) -> None:
    dataset(3).save_pretrained(tmp_path / "set")
    file = next((tmp_path / "set" / "data").iterdir())
    file.rename(tmp_path / "private.parquet")
    file.symlink_to(tmp_path / "private.parquet")
    with pytest.raises(PdiffError, match=rf"{file.name} is a link to '.*private\.parquet'"):
        push_folder(tmp_path / "set", "user/set")
    file.unlink()
    (tmp_path / "private.parquet").rename(file)
    (tmp_path / "set" / "data").rename(tmp_path / "data")
    (tmp_path / "set" / "data").symlink_to(tmp_path / "data", target_is_directory=True)
    with pytest.raises(PdiffError, match="data is a link to"):
        push_folder(tmp_path / "set", "user/set")
    assert hub.repos == {}


def test_linked_checkpoints_are_not_published(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    dataset(2).save_pretrained(tmp_path / "private")
    (folder / "checkpoints").symlink_to(tmp_path / "private", target_is_directory=True)
    with pytest.raises(PdiffError, match="checkpoints is a link to"):
        push_folder(folder, "user/a", checkpoints_id="user/set")
    assert hub.repos == {}


def test_a_folder_may_itself_be_reached_by_a_link(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short").symlink_to(folder, target_is_directory=True)
    push_folder(tmp_path / "short", "user/a")
    # What the client keeps as links in its cache is copied as files.
    assert pull("user/a", tmp_path / "pulled") == "pipeline"
    assert not any(file.is_symlink() for file in (tmp_path / "pulled").rglob("*"))
    assert (tmp_path / "pulled" / "results.json").read_bytes() == (folder / "results.json").read_bytes()


def test_a_folder_that_looks_like_the_cache_leads_nowhere_else(tmp_path: Path, secret: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "x").write_bytes(b"content")
    (snapshot / "good.png").symlink_to("../../blobs/x")
    require_own(snapshot / "good.png", snapshot)
    (blobs / "y").symlink_to(secret)
    for number, target in enumerate(["../../blobs/y", "../../../id_rsa", secret]):
        link = snapshot / f"{number}.png"
        link.symlink_to(target)
        with pytest.raises(PdiffError, match="is a link to"):
            require_own(link, snapshot)
    (blobs / "y").unlink()
    shutil.rmtree(blobs)
    blobs.symlink_to(tmp_path, target_is_directory=True)
    (snapshot / "3.png").symlink_to("../../blobs/id_rsa")
    with pytest.raises(PdiffError, match="is a link to"):
        require_own(snapshot / "3.png", snapshot)
