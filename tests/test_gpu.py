"""On a GPU the results equal those of the CPU to float tolerance, and no step waits for the device.

Run with `pytest -m gpu`. `torch.cuda.set_sync_debug_mode` makes CUDA raise an error where a step waits for the device.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from test_captured_steps import finetuned, training
from test_training import checkpoints

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints.rows import write_shard
from pdiff_hub.collect.family import FamilyConfig, collect_family
from pdiff_hub.collect.finetune import FinetuneConfig, collect_finetune
from pdiff_hub.collect.population.batched_training import BatchedTrainer
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.networks.capturing import captured_or_said
from pdiff_hub.prediction.predictions import predict_logits
from pdiff_hub.tasks import load_task
from pdiff_hub.training import loop
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.training.diffusion import train_unet
from pdiff_hub.training.loop import build_accelerator
from pdiff_hub.training.pipeline import train_pipeline
from pdiff_hub.training.steps import CapturedStep, EagerStep, Training
from pdiff_hub.travelling.param_autoencoder import ParamLayout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PIPELINE = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"
SPEC = resolve_network("convnet3", in_channels=1, image_size=8, num_classes=10)


@pytest.fixture(autouse=True)
def new_accelerator() -> None:
    """A process keeps the precision of its first Accelerator."""
    AcceleratorState._reset_state()


def waiting_is(mode: str) -> None:
    """Whether CUDA raises an error where Python waits for the device. torch 2.11 warns that this is a prototype."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("steps", [8, 20], ids=["one by one", "captured"])
def test_sampling_on_a_gpu_is_sampling_on_the_cpu_and_waits_for_nothing(steps: int) -> None:
    pipe = PDiffPipeline.from_pretrained(PIPELINE)
    assert isinstance(pipe.scheduler, DDPMScheduler)  # which draws noise at every step
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    on_cpu = pipe(8, generator=generators, num_inference_steps=steps, return_trajectory=True).trajectory

    def watch(
        pipe: PDiffPipeline, step: int, timestep: int, values: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        waiting_is("error" if step < steps - 1 else "default")
        return {}

    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    try:
        on_gpu = pipe.to("cuda")(
            8, generator=generators, num_inference_steps=steps, return_trajectory=True, callback_on_step_end=watch
        ).trajectory
    finally:
        waiting_is("default")
    assert on_cpu is not None
    assert on_gpu is not None
    assert torch.allclose(on_cpu, on_gpu, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("first", [0, 6], ids=["from the beginning", "resumed"])
def test_a_captured_training_step_is_a_step(first: int) -> None:
    plain, captured = training("cuda"), training("cuda")
    eager, ahead = EagerStep(plain), EagerStep(captured)
    for done in range(first):
        eager(done)
        ahead(done)
    replayed = CapturedStep(captured)
    for done in range(first, 12):
        assert torch.allclose(replayed(done), eager(done), atol=1e-5)
    for own, expected in zip(
        [*captured.model.parameters(), *captured.ema.shadow_params],
        [*plain.model.parameters(), *plain.ema.shadow_params],
        strict=True,
    ):
        assert torch.allclose(own, expected, atol=1e-5)


def test_stopped_and_resumed_on_a_gpu_ends_in_the_same_bytes(tmp_path: Path) -> None:
    latent_KCL = torch.randn(40, 4, 8, generator=torch.Generator().manual_seed(0))
    config = DiffusionConfig(steps=30, widths=(32,), save_every=10, eval_every=10, log_every=10)

    def train(name: str, stop_at: int | None = None) -> list[torch.Tensor]:
        def stop(step: int, losses: dict[str, float]) -> None:
            if "loss" in losses and step == stop_at:
                raise KeyboardInterrupt

        accelerator = build_accelerator(mixed_precision="bf16")
        unet, _ = train_unet(
            latent_KCL[:32],
            latent_KCL[32:],
            config,
            seed=0,
            accelerator=accelerator,
            directory=tmp_path / name,
            on_log=stop,
        )
        return list(unet.parameters())

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop_at=20)
    assert all(map(torch.equal, train("stopped"), whole))


def test_a_training_step_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed_of, average, measure = Training.seed_of, loop._average, loop._measure

    def seeded(training: Training, done: int) -> int:  # called at the beginning of every step
        waiting_is("error" if done > 1 else "default")  # it is captured in the first
        return seed_of(training, done)

    def averaged(window: list[torch.Tensor], accelerator: Accelerator) -> float:  # what is logged may wait
        waiting_is("default")
        return average(window, accelerator)

    def measured(*arguments: Any) -> None:  # so may what is measured: it decides whether training ends
        waiting_is("default")
        measure(*arguments)

    monkeypatch.setattr(Training, "seed_of", seeded)
    monkeypatch.setattr(loop, "_average", averaged)
    monkeypatch.setattr(loop, "_measure", measured)
    try:
        summary = train_pipeline(
            checkpoints(), tmp_path, diffusion=DiffusionConfig(steps=20, widths=(16,), batch_size=8)
        )
    finally:
        waiting_is("default")
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


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("network", [{"name": "mlp3", "hidden": [8, 8]}, {"name": "resnet18"}], ids=str)
def test_a_captured_fine_tune_is_a_fine_tune(network: dict[str, Any], precision: str) -> None:
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        plain, captured = (finetuned(network, captured, "cuda", precision).state() for captured in (False, True))
    for name, tensor in plain.tensors.items():  # running statistics and moments too
        assert torch.allclose(captured.tensors[name].float(), tensor.float(), rtol=1e-2, atol=1e-2), name


def test_what_cannot_be_captured_leaves_the_gpu_as_it_was() -> None:
    device = torch.device("cuda", 0)
    inputs, stream = torch.ones(8, device=device), torch.cuda.current_stream()

    def wait() -> None:
        torch.nn.functional.dropout(inputs).sum().item()

    with pytest.warns(UserWarning, match="a call is not captured"):
        assert captured_or_said("a call", wait, device) is None
    assert torch.cuda.current_stream() == stream
    wait()  # torch's own generator is not left in the middle of a capture


def test_collecting_and_judging_on_a_gpu(tmp_path: Path) -> None:
    task = load_task("digits")
    config = FinetuneConfig(num_checkpoints=5, save_every=2, epochs=3)
    dataset = collect_finetune(task, SPEC, "all", config, tmp_path, seed=0, device="cuda")
    network = build_network(SPEC)
    layout, images = ParamLayout.from_module(network), task.inputs(task.test)
    on_cpu = predict_logits(network, layout, dataset.frozen, dataset.params_KP, images)
    on_gpu = predict_logits(network.cuda(), layout, dataset.frozen, dataset.params_KP, images)
    assert torch.allclose(on_cpu, on_gpu, rtol=1e-2, atol=1e-2)


def test_a_family_that_begins_with_a_trunk_is_that_of_the_cpu(tmp_path: Path) -> None:
    task = load_task("digits")
    config = FamilyConfig("class-subsets", num_tasks=6, seeds_per_task=1, held_out_tasks=2, epochs=2, trunk_steps=20)
    spec = resolve_network({"name": "mlp", "hidden": [16]}, in_channels=1, image_size=8, num_classes=2)
    rows = []
    for device in ("cpu", "cuda"):
        seen = collect_family(task, spec, "all", config, tmp_path / device, seed=0, device=device, progress=False)
        unseen = seen.held_out()
        assert unseen is not None
        rows.append(torch.cat([seen.params_KP, unseen.params_KP]))
    assert torch.allclose(*rows, rtol=1e-2, atol=1e-3)


def test_rows_come_back_from_a_gpu_as_they_are(tmp_path: Path) -> None:
    params_KP = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    pieces = [(0, 0, params_KP[:5, :20]), (5, 0, params_KP[5:, :20]), (0, 20, params_KP[:, 20:])]
    for device in ("cpu", "cuda"):
        write_shard(tmp_path / device, 7, 33, [(row, start, part.to(device)) for row, start, part in pieces])
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "cuda").read_bytes()
