"""A killed training run ends with the same bytes, two processes learn what one learns, and divergence stops a run."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.records import TrainingFolder
from pdiff_hub.training import autoencoder as autoencoder_training
from pdiff_hub.training.autoencoder import fit_autoencoder
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig, with_preset
from pdiff_hub.training.diffusion import build_unet
from pdiff_hub.training.loop import LoopConfig, build_accelerator
from pdiff_hub.training.pipeline import require_processes, train_pipeline
from pdiff_hub.travelling.param_autoencoder import ParamLayout

EXAMPLE = Path(__file__).parent.parent / "examples" / "train.py"
TRAIN = f"import runpy; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
OPTIONS = [
    "diffusion.steps=60",
    "diffusion.widths=[16]",
    "diffusion.batch_size=16",
    "diffusion.save_every=7",
    "diffusion.log_every=5",
]


def checkpoints(num: int = 24, seed: int = 0) -> CheckpointDataset:
    spec = resolve_network({"name": "mlp3", "hidden": [8, 8]}, in_channels=1, image_size=8, num_classes=10)
    network = build_network(spec)
    layout = ParamLayout.from_module(network)
    generator = torch.Generator().manual_seed(seed)
    params_KP = torch.randn(num, 5, generator=generator) @ torch.randn(5, layout.num_params, generator=generator)
    return CheckpointDataset(
        params_KP,
        layout,
        network=spec,
        task={"dataset": "digits"},
        frozen={},
        metadata=[{"step": i} for i in range(num)],
        collect={},
    )


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "checkpoints"
    checkpoints().save_pretrained(folder)
    return folder


def arguments(dataset_dir: Path, output_dir: Path, extra: list[str] | None = None) -> list[str]:
    overrides = [part for option in OPTIONS for part in ("--override", option)]
    return ["--dataset", str(dataset_dir), "--output-dir", str(output_dir), *overrides, *(extra or [])]


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    training, config = TrainingFolder(tmp_path / "training"), DiffusionConfig(steps=4, widths=(16,), batch_size=16)
    train_pipeline(checkpoints(), tmp_path, diffusion=config)
    whole = sorted(path for path in tmp_path.rglob("*"))
    for leftover in (
        tmp_path / ".unfinished-recipe.yaml-0123abcd",
        training.path / ".unfinished-latents.safetensors-0123abcd",
        training.autoencoder / ".tmpAbC123",
        training.components(0) / "slice-00000.safetensors",
        training.components(3) / "slice-00000.safetensors",
        training.diffusion_steps / "unfinished" / "model.safetensors",
        training.unfinished_pipeline / "unet" / "config.json",
    ):
        leftover.parent.mkdir(exist_ok=True, parents=True)
        leftover.write_bytes(b"half")
    train_pipeline(checkpoints(), tmp_path, diffusion=config)
    assert sorted(path for path in tmp_path.rglob("*")) == whole


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    config = DiffusionConfig(steps=4, widths=(16,), batch_size=16)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failures: list[OSError] = []
    for limit in (5_000, 20_000, 60_000):  # in stage one, and in stage two
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            train_pipeline(checkpoints(), tmp_path, diffusion=config)
        except OSError as error:
            failures.append(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(failures) == 3
    for failure in failures:
        assert re.search(rf"could not write {tmp_path}.*(too large|os error 27)", str(failure), re.IGNORECASE)
        assert "\n" not in str(failure)
    train_pipeline(checkpoints(), tmp_path, diffusion=config)  # once there is room, it goes on
    train_pipeline(checkpoints(), tmp_path / "whole", diffusion=config)
    assert all(torch.equal(each, weights(tmp_path / "whole")[name]) for name, each in weights(tmp_path).items())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLE.parent.parent)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_killed_and_resumed_ends_in_the_same_bytes(dataset_dir: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    processes.run(TRAIN, *arguments(dataset_dir, whole))
    kills = 0
    for target in (7, 21, 42):
        process = processes.start(TRAIN, *arguments(dataset_dir, killed))
        while process.is_alive():
            saves = sorted((killed / "training" / "diffusion").glob("step-*"))
            if saves and int(saves[-1].name[5:]) >= target:
                process.kill()
                process.join()
                kills += process.exitcode == -signal.SIGKILL
            time.sleep(0.001)
    processes.run(TRAIN, *arguments(dataset_dir, killed))
    assert kills >= 1
    timed, untimed = (json.loads((each / "training" / "summary.json").read_text()) for each in (whole, killed))
    assert timed["seconds_diffusion"] > 0 and untimed["seconds_diffusion"] is None
    processes.run(TRAIN, *arguments(dataset_dir, whole))
    assert json.loads((whole / "training" / "summary.json").read_text()) == timed  # a finished run is not run again
    for file in (
        "unet/diffusion_pytorch_model.safetensors",
        "autoencoder/diffusion_pytorch_model.safetensors",
        "model_index.json",
    ):
        assert (whole / file).read_bytes() == (killed / file).read_bytes(), file
    assert len(list((killed / "training" / "diffusion").glob("step-*"))) == 2


def test_two_processes_learn_what_one_does(dataset_dir: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    # The learning rate is low, because at the default rate rounding differences grow a thousandfold in 60 steps.
    gentle = ["--override", "diffusion.learning_rate=0.0005"]
    processes.run(TRAIN, *arguments(dataset_dir, one, gentle))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(EXAMPLE)]
    done = subprocess.run(
        [*launcher, *arguments(dataset_dir, two, ["--num-processes", "2", *gentle])],
        check=True,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert "2 processes" in done.stdout
    curves = [json.loads((folder / "training" / "summary.json").read_text())["loss"] for folder in (one, two)]
    assert math.isclose(*curves, rel_tol=1e-3)
    for name, tensor in weights(one).items():
        assert torch.allclose(tensor, weights(two)[name], rtol=1e-2, atol=1e-3), name


def test_the_number_of_processes_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = build_accelerator()
    require_processes(accelerator)
    with pytest.raises(ValueError, match="2 processes were asked for and 1 runs"):
        require_processes(accelerator, 2)


@pytest.mark.parametrize("options", [{"mixed_precision": "fp8.5"}, {"log_with": "tensorbord"}])
def test_what_accelerate_refuses_is_a_sentence(options: dict[str, str]) -> None:
    with pytest.raises(PdiffError, match=rf"accelerate refuses .*{next(iter(options.values()))}"):
        build_accelerator(**options)


def test_training_makes_a_pipeline_and_keeps_its_settings(tmp_path: Path) -> None:
    config = DiffusionConfig(steps=20, widths=(16,), batch_size=8)
    summary = train_pipeline(checkpoints(), tmp_path, diffusion=config, num_inference_steps=9, log_with="tensorboard")
    assert summary.deviation_r2 is not None and summary.deviation_r2 > 0.99
    assert list((tmp_path / "training" / "logs").rglob("events.*"))
    pipe = PDiffPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(2, generator=torch.Generator().manual_seed(0)).state_dicts) == 2
    assert pipe.config.default_num_inference_steps == 9
    with pytest.raises(ValueError, match=r"diffusion\.steps was 20 and is 30"):
        train_pipeline(checkpoints(), tmp_path, diffusion=DiffusionConfig(steps=30, widths=(16,), batch_size=8))
    with pytest.raises(ValueError, match="checkpoints_sha256 was "):
        train_pipeline(checkpoints(seed=1), tmp_path, diffusion=config)


def test_diverging_loss_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    config = DiffusionConfig(
        steps=400,
        widths=(16,),
        batch_size=8,
        learning_rate=1e6,
        warmup_steps=200,
        save_every=2,
        log_every=2,
        max_grad_norm=1e9,
    )
    with pytest.raises(ValueError, match=r"diffusion: the loss is .*last good state is kept in step-.*learning_rate"):
        train_pipeline(checkpoints(), tmp_path, diffusion=config)
    saves = sorted((tmp_path / "training" / "diffusion").glob("step-*"))
    assert saves and all(t.isfinite().all() for t in load_file(saves[-1] / "model.safetensors").values())
    assert not (tmp_path / "model_index.json").exists()


def test_conv_stage_is_trained_then_resumed_from_disk(tmp_path: Path) -> None:
    autoencoder = AutoencoderConfig(form="conv", steps=10, latent_noise=0.1, input_noise=0.001)
    config = DiffusionConfig(steps=5, widths=(16, 32), batch_size=8)
    first = train_pipeline(checkpoints(), tmp_path, autoencoder, config)
    assert first.latent_shape[1] % 2 == 0
    again = train_pipeline(checkpoints(), tmp_path, autoencoder, config)
    assert again.deviation_r2 == first.deviation_r2


@pytest.mark.parametrize("kept", [0, 2**30])
def test_windows_go_on_where_they_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    module = autoencoder_training
    monkeypatch.setattr(module, "_WINDOW_PARAMS", 625)
    monkeypatch.setattr(module, "_KEPT_BYTES", kept)
    monkeypatch.setattr(module, "LoopConfig", lambda **options: LoopConfig(**{**options, "save_every": 2}))
    dataset, loss_of, calls = checkpoints(), module.nn.functional.mse_loss, 0
    config = AutoencoderConfig(form="conv", steps=6, latent_noise=0.1, input_noise=0.001, batch_size=4)

    def fit(name: str) -> dict[str, Tensor]:
        fitted, *_ = fit_autoencoder(
            dataset,
            config,
            length_multiple=1,
            seed=0,
            accelerator=build_accelerator(),
            state=TrainingFolder(tmp_path / name),
        )
        assert len(module._windows(fitted)) > 1
        return fitted.state_dict()

    def stopped(*given: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return loss_of(*given)

    whole = fit("whole")
    with monkeypatch.context() as patch:
        patch.setattr(module.nn.functional, "mse_loss", stopped)
        with pytest.raises(KeyboardInterrupt):
            fit("stopped")
    assert sorted(path.name for path in (tmp_path / "stopped" / "autoencoder-steps").iterdir()) == ["step-00000004"]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in fit("stopped").items())


def test_the_papers_autoencoder_can_be_trained(tmp_path: Path) -> None:
    summary = train_pipeline(
        checkpoints(),
        tmp_path,
        AutoencoderConfig(**with_preset({"preset": "paper", "steps": 2, "batch_size": 4})),
        DiffusionConfig(steps=2, widths=(16,), batch_size=4),
    )
    config = PDiffPipeline.from_pretrained(tmp_path).autoencoder.config
    assert (config.form, config.normalization, list(config.decoder_widths)) == ("conv", "none", [4, 256, 256, 8])
    assert summary.latent_shape[0] == 4


@pytest.mark.slow
def test_a_compiled_unet_learns_the_same(tmp_path: Path) -> None:
    losses = [
        train_pipeline(
            checkpoints(),
            tmp_path / str(compiled),
            diffusion=DiffusionConfig(steps=30, widths=(16,), batch_size=8, compile=compiled, learning_rate=1e-3),
        ).loss
        for compiled in (False, True)
    ]
    assert math.isclose(*losses, rel_tol=1e-3)
    pipe = PDiffPipeline.from_pretrained(tmp_path / "True")  # its weights are saved under their plain names
    assert set(pipe.unet.state_dict()) == set(weights(tmp_path / "False"))


def test_one_checkpoint_and_odd_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least 2"):
        train_pipeline(checkpoints().select_rows([0]), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match=r"diffusion\.widths"):
        DiffusionConfig(widths=(12,))


@pytest.mark.parametrize(("widths", "length"), [([8], 1), ([8, 16], 2), ([16, 8, 16], 4)])
def test_widths_at_which_a_single_latent_cannot_be_normalised(widths: list[int], length: int) -> None:
    with pytest.raises(PdiffError, match=r"diffusion\.widths is .*more than 8 channels"):
        build_unet(4, length, widths, 1)
    unet = build_unet(4, 2 * length, widths, 1).eval()
    assert unet(torch.zeros(1, 4, 2 * length), torch.zeros(1, dtype=torch.long)).sample.shape == (1, 4, 2 * length)
