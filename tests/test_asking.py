"""Asking a pipeline for networks: guidance, requests, files, and training that learns what a condition means."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, RePaintScheduler
from loopback_hub import LoopbackHub
from test_conditions import ACCURACY, ANGLE, DIGITS, SPECS
from torch import nn
from typer.testing import CliRunner
from without_package import WITHOUT_PACKAGE

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.cli import app
from pdiff_hub.networks import build_network
from pdiff_hub.recipes import load_recipe, recipe_from_dict
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.diffusion import build_scheduler, build_unet
from pdiff_hub.training.pipeline import train_pipeline
from pdiff_hub.travelling.conditioner import Conditioner, ConditionSpec
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout

SPEC = {"name": "mlp3", "hidden": [4, 4], "in_channels": 1, "num_classes": 3, "image_size": 2}
SHIPPED = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conditional(spec: ConditionSpec = DIGITS) -> PDiffPipeline:
    torch.manual_seed(0)
    network = build_network(SPEC)
    layout = ParamLayout.from_module(network)
    autoencoder = ParamAutoencoder(layout.to_dict(), num_components=14, latent_length=4, network=SPEC)
    nn.init.normal_(autoencoder.components[0], std=0.1)
    unet = build_unet(4, 4, (16,), 1, condition_channels=spec.size + 1)
    conditioner = Conditioner(spec.to_dict(), 4, 4, num_known=3, squared_length=4.0)
    for tensor in (conditioner.known_MD, conditioner.weight_MCL):
        nn.init.normal_(tensor, std=0.3)
    nn.init.uniform_(conditioner.std_CL, 0.3, 1.0)
    pipe = PDiffPipeline(autoencoder.eval(), unet.eval(), build_scheduler(), 7, conditioner=conditioner)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 2.5])
def test_guidance_equals_a_hand_written_loop(guidance: float) -> None:
    pipe = conditional()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    out = pipe(3, generator=seeded(1), condition={"classes": [0, 3, 7]}, guidance_scale=guidance)
    bits = torch.tensor([1.0, -1, -1, 1, -1, -1, -1, 1, -1, -1, 1])[None, :, None].expand(3, -1, 4)
    sample = torch.randn(3, 4, 4, generator=seeded(1))
    mean, std = pipe.conditioner.gaussian(bits[:1, :, 0])
    pipe.scheduler.set_timesteps(7)
    with torch.no_grad():
        for time in pipe.scheduler.timesteps:
            free, asked = (pipe.unet(torch.cat([sample, each], 1), time).sample for each in (0 * bits, bits))
            # Bayes' rule for N(mean, std^2) seen through noise: precisions add.
            kept = pipe.scheduler.alphas_cumprod[time]
            clean = (mean / std**2 + sample * kept.sqrt() / (1 - kept)) / (1 / std**2 + kept / (1 - kept))
            noise = (sample - kept.sqrt() * clean) / (1 - kept).sqrt()
            asked = asked + kept.sqrt() * noise - (1 - kept).sqrt() * clean
            sample = pipe.scheduler.step(free + guidance * (asked - free), time, sample).prev_sample
    assert torch.allclose(out.latents, sample, atol=1e-4)


def test_one_request_in_all_its_forms() -> None:
    pipe = conditional()
    bits = DIGITS.encode([0, 3])
    wanted = pipe(2, generator=seeded(0), condition={"classes": [0, 3]}).params
    indices = torch.tensor([0, 3])
    named = [{"classes": each} for each in ("0,3", indices, indices.numpy(), frozenset({0, 3}))]
    for same in (*named, bits, bits[None], bits.expand(2, -1)):
        assert torch.equal(pipe(2, generator=seeded(0), condition=same).params, wanted)
    assert not torch.equal(pipe(2, generator=seeded(0)).params, wanted)
    # One row per network sets their number, and a batch of one changes nothing.
    both = torch.stack([bits, DIGITS.encode([5])])
    out = pipe(generator=seeded(0), condition=both, guidance_scale=1.5)
    assert torch.allclose(
        pipe(generator=seeded(0), condition=both, guidance_scale=1.5, batch_size=1).params, out.params, atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": {"class": [1]}}, "expected {'classes': ...}"),
        ({"condition": {"classes": [1], "angle": 3}}, "expected {'classes': ...}"),
        ({"condition": [0, 3]}, "the condition is 'list'"),
        ({"condition": {"classes": ["tree"]}}, "unknown classes: 'tree'"),
        ({"condition": torch.zeros(9)}, r"tensor \[9\], expected finite numbers of shape \[10\]"),
        ({"condition": torch.full((10,), math.nan)}, "expected finite"),
        ({"condition": torch.zeros(3, 10), "num_models": 2}, "given for 3 models, but num_models is 2"),
        ({"condition": torch.zeros(0, 10)}, "expected finite"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0, expected a number of at least 0"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan"),
    ],
)
def test_bad_requests(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conditional()(**options)


def test_outside_of_what_was_seen_is_said() -> None:
    pipe = conditional(ANGLE)
    with pytest.warns(
        UserWarning, match=r"condition 'angle' is 120, outside what the generator has seen \(-30 to 90\)"
    ) as said:
        pipe(condition={"angle": 120})
    assert said[0].filename == __file__
    pipe(condition={"angle": 45})  # warnings are errors here


def test_an_unconditional_pipeline_is_what_it_was(tmp_path: Path) -> None:
    pipe = PDiffPipeline.from_pretrained(SHIPPED)
    assert pipe.conditions is None
    with pytest.raises(ValueError, match="takes no condition"):
        pipe(condition={"classes": [1]})
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "model_index.json").read_bytes() == (SHIPPED / "model_index.json").read_bytes()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_a_saved_pipeline_can_be_asked_the_same(tmp_path: Path, spec: ConditionSpec) -> None:
    pipe, condition = conditional(spec), torch.zeros(spec.size) if spec.kind != "scalar" else spec.encode(spec.low[0])
    if spec.kind == "vector":
        condition = torch.tensor(spec.low)
    pipe.save_pretrained(tmp_path)
    back = PDiffPipeline.from_pretrained(tmp_path)
    back.set_progress_bar_config(disable=True)
    assert back.conditions == spec and back.config.format_version == 2
    asked = {"generator": seeded(0), "condition": condition, "guidance_scale": 2.0}
    assert torch.equal(pipe(2, **asked).params, back(2, **{**asked, "generator": seeded(0)}).params)


@pytest.mark.parametrize("wrong", [{"name": "classes"}, {**DIGITS.to_dict(), "kind": "x"}, [1], {**ACCURACY.to_dict()}])
def test_a_folder_with_false_conditions_is_refused(tmp_path: Path, wrong: Any) -> None:
    conditional().save_pretrained(tmp_path)
    file = tmp_path / "conditioner" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "condition": wrong}))
    with pytest.raises(ValueError, match=r"describes no Conditioner|do not fit .*known_MD"):
        PDiffPipeline.from_pretrained(tmp_path)


def test_a_folder_without_its_conditioner_is_refused(tmp_path: Path) -> None:
    conditional().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["conditioner"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="the U-Net has 15 input channels, expected 4"):
        PDiffPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["known_MD", "weight_MCL", "std_CL"])
def test_a_conditioner_with_nan_is_refused(tmp_path: Path, name: str) -> None:
    pipe = conditional()
    getattr(pipe.conditioner, name).flatten()[0] = math.nan
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"safetensors: tensor '{name}' holds NaN"):
        PDiffPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("length", [0, -1.0, math.nan, math.inf, "4", None])
def test_a_squared_length_out_of_range_is_refused(length: Any) -> None:
    with pytest.raises(ValueError, match="squared_length is"):
        Conditioner(DIGITS.to_dict(), 4, 4, squared_length=length)


def test_a_conditioner_of_other_latents_is_refused() -> None:
    pipe = conditional()
    with pytest.raises(ValueError, match=r"the conditioner is of latents \[4, 3\], expected \[4, 4\]"):
        PDiffPipeline(pipe.autoencoder, pipe.unet, pipe.scheduler, conditioner=Conditioner(DIGITS.to_dict(), 4, 3))


def test_a_scheduler_whose_step_needs_more_is_named() -> None:
    pipe = conditional()
    pipe.scheduler = RePaintScheduler()
    with pytest.raises(ValueError, match=r"a step of the scheduler RePaintScheduler needs .*original_image"):
        pipe()


def test_a_conditioner_without_spread_is_refused(tmp_path: Path) -> None:
    pipe = conditional()
    pipe.conditioner.std_CL[0, 0] = -1.0
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="std_CL has numbers of 0 or below"):
        PDiffPipeline.from_pretrained(tmp_path)


def learnable(num: int = 120) -> CheckpointDataset:
    """Networks whose weights are as large as their accuracy says, beside noise."""
    layout = ParamLayout.from_module(build_network(SPEC))
    accuracy_K = torch.linspace(0.5, 0.9, num, dtype=torch.float64).round(decimals=4)
    noise_KP = torch.randn(num, layout.num_params, generator=seeded(0))
    params_KP = (accuracy_K.float()[:, None] - 0.7) * torch.ones(layout.num_params) + 0.02 * noise_KP
    metadata = [{"run": f"r{row // 4}", "validation_accuracy": float(each)} for row, each in enumerate(accuracy_K)]
    return CheckpointDataset(params_KP, layout, network=SPEC, metadata=metadata)


def test_training_learns_what_a_condition_means(tmp_path: Path) -> None:
    dataset = learnable().with_conditions("validation_accuracy")
    config = DiffusionConfig(steps=300, widths=(32,), patience=None)
    train_pipeline(dataset, tmp_path, AutoencoderConfig(num_components=2), config)
    pipe = PDiffPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.conditions == dataset.conditions
    for wanted in (0.55, 0.7, 0.85):
        means = pipe(20, generator=seeded(1), condition={"validation_accuracy": wanted}).params.mean(dim=1)
        assert float(means.mean()) + 0.7 == pytest.approx(wanted, abs=0.04)
    with pytest.raises(ValueError, match="conditions"):
        train_pipeline(
            learnable(), tmp_path, AutoencoderConfig(num_components=2), config
        )  # the folder was begun with conditions


def test_without_conditions_training_draws_the_same_numbers(tmp_path: Path) -> None:
    config = DiffusionConfig(steps=20, widths=(16,), patience=None)
    for name, dropout in (("first", 0.1), ("second", 0.7)):
        train_pipeline(learnable(40), tmp_path / name, diffusion=replace(config, condition_dropout=dropout))
    first, second = (PDiffPipeline.from_pretrained(tmp_path / name).unet.state_dict() for name in ("first", "second"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_by_command(tmp_path: Path) -> None:
    conditional().save_pretrained(tmp_path / "pipe")
    called = CliRunner().invoke
    said = called(app, ["info", str(tmp_path / "pipe")], catch_exceptions=False).output
    assert "ask for classes: some of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 (--condition classes=0,1)" in said
    command = ["generate", str(tmp_path / "pipe"), "--num-models", "2", "--output-dir", str(tmp_path / "nets")]
    called(app, [*command, "--condition", "classes=0,3", "--guidance-scale", "1.5"], catch_exceptions=False)
    written = json.loads((tmp_path / "nets" / "generated.json").read_text())
    assert written["condition"] == {"classes": "0,3"} and written["guidance_scale"] == 1.5
    with pytest.raises(ValueError, match="expected NAME=VALUE"):
        called(app, [*command, "--condition", "classes"], catch_exceptions=False)


def test_a_recipe_names_a_column() -> None:
    recipe = load_recipe("digits-mlp3", ["condition=validation_accuracy"])
    assert recipe.condition == "validation_accuracy" and recipe.to_dict()["condition"] == "validation_accuracy"
    assert "condition" not in load_recipe("digits-mlp3").to_dict()
    with pytest.raises(ValueError, match="condition is 3"):
        recipe_from_dict({**recipe.to_dict(), "condition": 3})


ALONE = (
    WITHOUT_PACKAGE
    + """
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
bits = pipe.conditions.encode([0, 3])
asked = [
    pipe(2, generator=torch.Generator().manual_seed(5), condition=each, guidance_scale=1.5).params
    for each in ({"classes": [0, 3]}, bits)
]
assert torch.equal(*asked)
torch.save(asked[0], "params.pt")
try:
    pipe.fit(None, None)
except ImportError as error:
    print(error)
"""
)


def test_without_the_package_a_condition_gives_the_same(hub: LoopbackHub, tmp_path: Path) -> None:
    pipe = conditional()
    pipe.push_to_hub("user/asked")
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "user/asked"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Fitting networks to examples needs the package" in done.stdout
    wanted = PDiffPipeline.from_pretrained("user/asked")
    wanted.set_progress_bar_config(disable=True)
    for each in (wanted, pipe):
        params = each(2, generator=seeded(5), condition={"classes": [0, 3]}, guidance_scale=1.5).params
        assert torch.equal(params, torch.load(tmp_path / "params.pt", weights_only=True))
