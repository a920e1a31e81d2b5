"""On a GPU the results equal those of the CPU to float tolerance, and no step waits for the device.

Run with `pytest -m gpu`. `torch.cuda.set_sync_debug_mode` makes CUDA raise an error where a step waits for the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from test_training import checkpoints

from pdiff_hub import PDiffPipeline
from pdiff_hub.collect.finetune import FinetuneConfig, collect_finetune
from pdiff_hub.collect.population.batched_training import BatchedTrainer
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.prediction.predictions import predict_logits
from pdiff_hub.tasks import load_task
from pdiff_hub.training import loop
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline
from pdiff_hub.travelling.param_autoencoder import ParamLayout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PIPELINE = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"
SPEC = resolve_network("convnet3", in_channels=1, image_size=8, num_classes=10)


def test_sampling_on_a_gpu_is_sampling_on_the_cpu_and_waits_for_nothing() -> None:
    pipe = PDiffPipeline.from_pretrained(PIPELINE)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(
        8,
        *(pipe.autoencoder.config.latent_channels, pipe.autoencoder.config.latent_length),
        generator=torch.Generator().manual_seed(0),
    )
    on_cpu = pipe(latents=latents, num_inference_steps=20, output_type="latent").latents

    def watch(
        pipe: PDiffPipeline, step: int, timestep: int, values: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        torch.cuda.set_sync_debug_mode("error" if step < 19 else "default")
        return {}

    try:
        on_gpu = pipe.to("cuda")(
            latents=latents, num_inference_steps=20, output_type="latent", callback_on_step_end=watch
        ).latents
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(on_cpu, on_gpu, rtol=1e-2, atol=1e-2)


def test_a_training_step_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_of, average, measure = loop.derived_seed, loop._average, loop._measure

    def seeded(seed: int, stage: str, step: int) -> int:  # called at the beginning of every step
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        return seed_of(seed, stage, step)

    def averaged(window: list[torch.Tensor], accelerator: Accelerator) -> float:  # what is logged may wait
        torch.cuda.set_sync_debug_mode("default")
        return average(window, accelerator)

    def measured(*arguments: Any) -> None:  # so may what is measured: it decides whether training ends
        torch.cuda.set_sync_debug_mode("default")
        measure(*arguments)

    monkeypatch.setattr(loop, "derived_seed", seeded)
    monkeypatch.setattr(loop, "_average", averaged)
    monkeypatch.setattr(loop, "_measure", measured)
    try:
        summary = train_pipeline(
            checkpoints(), tmp_path, diffusion=DiffusionConfig(steps=20, widths=(16,), batch_size=8)
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert summary.loss > 0


def test_a_population_trained_on_a_gpu_is_that_of_the_cpu() -> None:
    task = load_task("digits")
    losses = []
    for device in ("cpu", "cuda"):
        inputs_NX = task.inputs(task.train).to(device)
        trainer = BatchedTrainer(
            lambda seed: build_network(SPEC, seed=seed),
            range(5),
            inputs_NX,
            task.train.labels_N.to(device),
            epochs=2,
            batch_size=64,
            learning_rate=1e-3,
            weight_decay=0.01,
        )
        losses.append([trainer.run_epoch() for _ in range(2)][-1])
    assert torch.allclose(*losses, rtol=1e-2)


def test_collecting_and_judging_on_a_gpu(tmp_path: Path) -> None:
    task = load_task("digits")
    config = FinetuneConfig(num_checkpoints=5, save_every=2, epochs=3)
    dataset = collect_finetune(task, SPEC, "all", config, tmp_path, seed=0, device="cuda")
    network = build_network(SPEC)
    layout, images = ParamLayout.from_module(network), task.inputs(task.test)
    on_cpu = predict_logits(network, layout, dataset.frozen, dataset.params_KP, images)
    on_gpu = predict_logits(network.cuda(), layout, dataset.frozen, dataset.params_KP, images)
    assert torch.allclose(on_cpu, on_gpu, rtol=1e-2, atol=1e-2)
