"""`PDiffPipeline` equals a hand-written loop, ignores the batch size, survives saving and refuses bad arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import nn

from pdiff_hub import PDiffPipeline
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.training.diffusion import build_scheduler, build_unet
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout

SPEC = resolve_network(
    {"name": "convnet3", "norm": "batch", "widths": [4, 4, 4]}, in_channels=1, image_size=8, num_classes=10
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipe() -> PDiffPipeline:
    torch.manual_seed(0)
    network = build_network(SPEC)
    layout = ParamLayout.from_module(network)
    autoencoder = ParamAutoencoder(layout.to_dict(), num_components=14, latent_length=4, network=SPEC)
    nn.init.normal_(autoencoder.components[0], std=0.02)  # little enough for variances to be finite
    autoencoder.set_frozen_state(layout.frozen_state(network.state_dict()))
    pipe = PDiffPipeline(autoencoder.eval(), build_unet(4, 4, (16,), 1).eval(), build_scheduler(), 7)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_equals_a_hand_written_loop(pipe: PDiffPipeline, prediction: str) -> None:
    pipe.scheduler = DDIMScheduler.from_config(build_scheduler(prediction).config)
    out = pipe(3, generator=seeded(1), return_trajectory=True)
    sample = torch.randn(3, 4, 4, generator=seeded(1))
    alphas = pipe.scheduler.alphas_cumprod
    times = [round(1000 - i * 1000 / 7) - 1 for i in range(7)]
    with torch.no_grad():
        for time in times:
            before = time - 1000 // 7
            alpha, earlier = alphas[time], alphas[before] if before >= 0 else torch.tensor(1.0)
            epsilon = pipe.unet(sample, torch.full((3,), time)).sample
            if prediction == "v_prediction":
                epsilon = alpha.sqrt() * epsilon + (1 - alpha).sqrt() * sample
            clean = (sample - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
            sample = earlier.sqrt() * clean + (1 - earlier).sqrt() * epsilon
        params = pipe.autoencoder.decode(sample)
    assert torch.allclose(out.latents, sample, rtol=1e-3, atol=1e-3)
    assert torch.allclose(out.params, params, rtol=1e-3, atol=1e-3)
    assert out.trajectory.shape == (8, 3, 4, 4)
    assert torch.equal(out.trajectory[-1], out.latents)
    assert torch.equal(pipe.decode_latents(out.trajectory[-1]), out.params)


@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_batch_size_changes_nothing(pipe: PDiffPipeline, scheduler: type) -> None:
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    whole = pipe(5, generator=seeded(3), output_type="params")
    parts = pipe(5, generator=seeded(3), output_type="params", batch_size=2)
    assert torch.allclose(whole.params, parts.params, rtol=1e-3, atol=1e-4)
    each = [seeded(i) for i in range(3)]
    listed = pipe(3, generator=each, output_type="params", batch_size=2)
    alone = pipe(1, generator=[seeded(2)], output_type="params")
    assert torch.allclose(listed.params[2:], alone.params, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(listed.params[0], listed.params[1])


def test_networks_load_strictly(pipe: PDiffPipeline) -> None:
    out = pipe(2, generator=seeded(0))
    network = pipe.build_network(out.state_dicts[1])
    assert not network.training
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert torch.equal(pipe.autoencoder.layout.flatten(network.state_dict()), out.params[1])


def test_output_types_callback_and_given_latents(pipe: PDiffPipeline) -> None:
    latents = torch.randn(2, 4, 4, generator=seeded(0))
    seen: list[int] = []

    def zero(_: PDiffPipeline, index: int, __: int, kwargs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(index)
        return {"latents": torch.zeros_like(kwargs["latents"])}

    out = pipe(latents=latents, num_inference_steps=3, output_type="latent", callback_on_step_end=zero)
    assert seen == [0, 1, 2] and out.params is None and out.state_dicts is None
    assert torch.equal(out.latents, torch.zeros(2, 4, 4))
    params, returned = pipe(latents=latents, output_type="params", generator=seeded(0), return_dict=False)
    assert params.shape[0] == 2 and returned.shape == latents.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_models": 0}, "num_models is 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 2000}, "at most the 1000"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_models": 2, "generator": [seeded(0)]}, "list of 1, expected one for each of 2"),
        ({"latents": torch.zeros(1, 4, 5)}, r"latents have shape \[1, 4, 5\]"),
        ({"latents": torch.zeros(4, 4)}, r"latents have shape \[4, 4\]"),
        ({"latents": torch.zeros(3, 4, 4), "num_models": 2}, "latents are given for 3 models"),
        ({"output_type": "pil"}, "output_type is 'pil'"),
    ],
)
def test_bad_arguments(pipe: PDiffPipeline, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**options)


def test_saved_folder_gives_equal_samples_and_leaks_no_path(pipe: PDiffPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "a")
    loaded = PDiffPipeline.from_pretrained(tmp_path / "a")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.default_num_inference_steps == 7
    assert isinstance(loaded.scheduler, DDPMScheduler) and not loaded.scheduler.config.clip_sample
    assert torch.equal(loaded(2, generator=seeded(5)).params, pipe(2, generator=seeded(5)).params)
    loaded.save_pretrained(tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    for file in files:
        content = (tmp_path / "a" / file).read_bytes()
        assert content == (tmp_path / "b" / file).read_bytes(), file
        assert (str(tmp_path).encode() not in content and b"_name_or_path" not in content) or file.suffix == ".py"


def test_saved_files_are_as_readable_as_the_umask_says(pipe: PDiffPipeline, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    pipe.save_pretrained(tmp_path / "saved")
    files = [file for file in (tmp_path / "saved").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} >= {".safetensors", ".json", ".py"}
    assert {file.stat().st_mode for file in files} == {(tmp_path / "plain").stat().st_mode}


def test_from_pretrained_refuses_what_is_no_pipeline(pipe: PDiffPipeline, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no pipeline folder"):
        PDiffPipeline.from_pretrained(str(tmp_path / "nothing" / "here"))
    with pytest.raises(FileNotFoundError, match=r"has no model_index\.json"):
        PDiffPipeline.from_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown option of from_pretrained: 'shceduler'"):
        PDiffPipeline.from_pretrained(tmp_path, shceduler=None)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["scheduler"][1] = "DDPMSheduler"
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"'DDPMSheduler', which diffusers does not have.*'DDPMScheduler'"):
        PDiffPipeline.from_pretrained(tmp_path)


def test_a_pipeline_cannot_make_build_network_import_anything(pipe: PDiffPipeline) -> None:
    pipe.autoencoder.register_to_config(network={"name": "os.system", "command": "true"})
    with pytest.raises(ValueError, match="not allowed here"):
        pipe.build_network()
