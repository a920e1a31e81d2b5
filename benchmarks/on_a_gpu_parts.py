"""The parts of on_a_gpu.py: training steps, sampling, whole recipes, the tests."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from on_a_gpu_runs import Row, run_tests, whole_command
from random_checkpoints import random_checkpoints

from pdiff_hub import PDiffPipeline
from pdiff_hub.training import steps
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.diffusion import train_unet
from pdiff_hub.training.loop import build_accelerator
from pdiff_hub.training.pipeline import train_pipeline

RECIPES = ("fashion-mnist-mlp3", "fashion-mnist-resnet18")
QUICK = "digits-mlp3"
# Of latents and of the U-Net: the default size for 16 and 32 components in 4 channels, and a large one.
_SIZES = ((4, DiffusionConfig().widths), (8, DiffusionConfig().widths), (256, (256, 512)))


def seconds_per_step(length: int, widths: Sequence[int], precision: str, captured: bool, few: int, many: int) -> float:
    """Of a training step of 64 latents, by the difference of two runs, which leaves out what comes before."""
    latent_KCL = torch.randn(180, AutoencoderConfig().latent_channels, length)
    seconds = []
    for number in (few, few, many):  # the first is not counted: it pays for what any first step costs
        config = DiffusionConfig(steps=number, save_every=number, mixed_precision=precision, widths=widths)
        AcceleratorState._reset_state()  # a process keeps the precision of its first Accelerator
        accelerator = build_accelerator(mixed_precision=precision)
        with (
            TemporaryDirectory() as folder,
            mock.patch.object(steps, "CapturedStep", steps.CapturedStep if captured else steps.EagerStep),
        ):
            began = time.perf_counter()
            train_unet(latent_KCL, latent_KCL[:0], config, seed=0, accelerator=accelerator, directory=Path(folder))
            seconds.append(time.perf_counter() - began)
    return (seconds[2] - seconds[1]) / (many - few)


def training_steps(options: Namespace) -> Iterator[Row]:
    # Fewer of those that are not captured, which take ten times as long.
    numbers = {False: (5, 15), True: (5, 15)} if options.quick else {False: (10, 40), True: (100, 400)}
    for length, widths in _SIZES[: 1 if options.quick else None]:
        for precision in ("no",) if options.device == "cpu" else ("no", "bf16"):
            eager, captured = (
                1e3 * seconds_per_step(length, widths, precision, captured, *numbers[captured])
                for captured in (False, True)
            )
            kind = "float32" if precision == "no" else precision
            case = f"U-Net {list(widths)}, latents 4 x {length}, a training step in {kind}"
            yield case, f"{captured:.2f} ms (not captured: {eager:.2f} ms)"


def sampling(options: Namespace) -> Iterator[Row]:
    hidden, num_models = ((8, 8), 20) if options.quick else ((48, 32), 10_000)
    with TemporaryDirectory() as folder:
        train_pipeline(random_checkpoints(hidden, 40), folder, diffusion=DiffusionConfig(steps=20))
        pipe = PDiffPipeline.from_pretrained(folder).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    seconds = []
    for number in (1, num_models, num_models):
        began = time.perf_counter()
        pipe(number, generator=torch.Generator().manual_seed(0), output_type="params")
        seconds.append(time.perf_counter() - began)
    params = pipe.autoencoder.layout.num_params
    yield f"sample {num_models:,} networks of {params:,} numbers, 50 steps", f"{seconds[1]:.2f} s, {seconds[2]:.2f} s"


def whole_runs(options: Namespace) -> Iterator[Row]:
    """Each recipe from start to report, and more networks of the last one judged."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.quick:
            quick = ["collect.num_checkpoints=12", "collect.epochs=1", "diffusion.steps=5", "generate.num_models=4"]
            overrides = [part for each in (*quick, "evaluate.baselines=2") for part in ("--override", each)]
            yield from whole_command(QUICK, ["run", QUICK, *overrides], folder / QUICK, options.device)
        for recipe in () if options.quick else RECIPES:
            yield from whole_command(recipe, ["run", recipe], folder / recipe, options.device)
        if not options.quick:  # what the first call read from a disk lies in memory now
            again = f"{RECIPES[0]} again"
            yield from whole_command(again, ["run", RECIPES[0]], folder / "again", options.device)
        if "judging" in options.parts:
            judged, number, baselines = (QUICK, 6, 1) if options.quick else (RECIPES[-1], 200, 2)
            arguments = ["evaluate", str(folder / judged), "--num-models", str(number), "--baselines", str(baselines)]
            name = f"{judged}, {number} networks and {baselines} a baseline"
            yield from whole_command(name, arguments, folder / "judged", options.device)


def machine(device: str) -> str:
    """The name of the device, and torch's version."""
    return f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, torch {torch.__version__}"


def rows(options: Namespace) -> Iterator[Row]:
    if "runs" in options.parts:
        yield from whole_runs(options)
    if "steps" in options.parts:
        yield from training_steps(options)
    if "sampling" in options.parts:
        yield from sampling(options)
    if "tests" in options.parts:
        more = ("--collect-only", "tests/test_gpu.py") if options.quick else ("tests",)
        yield from run_tests("gpu", *more)
