"""The state of training is read back without pickles; saves that are old, damaged or of other settings are named."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import checkpoints

from pdiff_hub.errors import PdiffError
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline

CONFIG = DiffusionConfig(steps=12, widths=(8,), batch_size=8, eval_every=4, save_every=4, warmup_steps=2)


class Hostile:
    """Unpickled, it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


def train(folder: Path) -> float:
    return train_pipeline(checkpoints(), folder, diffusion=CONFIG).loss


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


@pytest.fixture
def save(finished: Path, tmp_path: Path) -> Path:
    """The newest save of a finished training in `tmp_path / "run"`."""
    shutil.copytree(finished, tmp_path / "run")
    return max((tmp_path / "run" / "training" / "diffusion").glob("step-*"))


def test_a_save_holds_safetensors_and_json_only_and_pickles_in_it_are_not_read(save: Path, tmp_path: Path) -> None:
    assert {file.suffix for file in save.iterdir()} == {".safetensors", ".json"}
    ran = tmp_path / "ran"
    for name in ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin"):
        (save / name).write_bytes(pickle.dumps(Hostile(ran)))
    train(tmp_path / "run")  # goes on from the save: nothing is left to do
    (save / "progress.json").unlink()
    with pytest.raises(
        PdiffError, match=r"step-00000012 was saved by an older version .* pickles.*remove .*diffusion,"
    ):
        train(tmp_path / "run")
    assert not ran.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"step": "x"},
        {"step": -1},
        {"step": None},
        {"loss": "NaN"},
        {"measured": [{"step": 0.0}]},
        {"measured": []},
        {"measured": 5},
        {"scale": [1]},
    ],
    ids=str,
)
def test_what_progress_says_is_checked(save: Path, change: dict[str, object]) -> None:
    file = save / "progress.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(PdiffError, match=r"step-00000012.*and training begins again"):
        train(save.parents[2])


def test_tensors_of_a_save_are_checked(save: Path) -> None:
    kept = load_file(save / "state.safetensors")
    name = min(name for name in kept if name.endswith("exp_avg"))
    for spoiled in (
        {},
        {name: torch.zeros(3)},
        {name: kept[name].half()},
        {name: kept[name] * torch.nan},
        {"x": kept[name].clone()},
    ):
        whole = {**kept, **spoiled} if spoiled else {}
        save_file(whole, save / "state.safetensors")
        with pytest.raises(PdiffError, match=r"step-00000012 is damaged or of other settings \(see '"):
            train(save.parents[2])
    (save / "state.safetensors").write_bytes(b"\x80")
    with pytest.raises(PdiffError, match=r"step-00000012 is damaged \("):
        train(save.parents[2])
