"""What a GPU does with this package: training steps, sampling, whole recipes, and how busy it is while judging.

One run of a few minutes that prints a table for docs/many-devices.md. Fashion-MNIST must be on the machine. With
`--device cpu --quick` the same code runs without a GPU, at sizes that say nothing about speed.

    python benchmarks/on_a_gpu.py --json on_a_gpu.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from harness import ROOT
from random_checkpoints import random_checkpoints

from pdiff_hub import PDiffPipeline
from pdiff_hub.training import steps
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.diffusion import train_unet
from pdiff_hub.training.loop import build_accelerator
from pdiff_hub.training.pipeline import train_pipeline

Row = tuple[str, str]
RECIPES = ("fashion-mnist-mlp3", "fashion-mnist-resnet18")
# Of latents and of the U-Net: the default size for 16 and 32 components in 4 channels, and a large one.
_SIZES = ((4, DiffusionConfig().widths), (8, DiffusionConfig().widths), (256, (256, 512)))
_POLL_SECONDS = 0.1


def seconds_per_step(length: int, widths: Sequence[int], precision: str, captured: bool, few: int, many: int) -> float:
    """Of a training step of 64 latents, by the difference of two runs, which leaves out what comes before."""
    latent_KCL = torch.randn(180, AutoencoderConfig().latent_channels, length)
    seconds = []
    for number in (few, many):
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
    return (seconds[1] - seconds[0]) / (many - few)


def training_steps(options: argparse.Namespace) -> Iterator[Row]:
    # Fewer of those that are not captured, which take ten times as long.
    numbers = {False: (5, 15), True: (5, 15)} if options.quick else {False: (20, 100), True: (100, 600)}
    for length, widths in _SIZES[: 1 if options.quick else None]:
        for precision in ("no",) if options.device == "cpu" else ("no", "bf16"):
            eager, captured = (
                1e3 * seconds_per_step(length, widths, precision, captured, *numbers[captured])
                for captured in (False, True)
            )
            kind = "float32" if precision == "no" else precision
            case = f"U-Net {list(widths)}, latents 4 x {length}, a training step in {kind}"
            yield case, f"{captured:.2f} ms (not captured: {eager:.2f} ms)"


def sampling(options: argparse.Namespace) -> Iterator[Row]:
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


@contextmanager
def polled() -> Iterator[list[tuple[float, int]]]:
    """How busy the GPU is, in percent of the last moments, at times of `time.perf_counter`."""
    found: list[tuple[float, int]] = []
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(_POLL_SECONDS):
            found.append((time.perf_counter(), torch.cuda.utilization()))

    thread = threading.Thread(target=poll)
    if torch.cuda.is_available():
        thread.start()
    try:
        yield found
    finally:
        ended.set()
        if torch.cuda.is_available():
            thread.join()


def whole_run(recipe: str, options: argparse.Namespace, overrides: Sequence[str] = ()) -> Iterator[Row]:
    """A recipe from start to report, in a process of its own."""
    code = "import sys; from pdiff_hub.cli import main; sys.argv[0] = 'pdiff'; main()"
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, "run", recipe, "--output-dir", folder, "--device", options.device]
        for override in overrides:
            command += ["--override", override]
        began = time.perf_counter()
        with polled() as busy:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        ended = time.perf_counter()
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
            yield f"{recipe}, whole", f"failed with exit code {done.returncode}"
            return
        seconds = json.loads((Path(folder) / "results.json").read_text())["seconds"]
    stages = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in seconds.items())
    yield f"{recipe}, from start to report", f"{ended - began:.1f} s ({stages})"
    judging = [percent for moment, percent in busy if moment > ended - seconds["evaluate"]]
    if judging:
        yield f"{recipe}, GPU busy while judging", f"{sum(judging) / len(judging):.0f} %"


def rows(options: argparse.Namespace) -> Iterator[Row]:
    if "steps" in options.only:
        yield from training_steps(options)
    if "sampling" in options.only:
        yield from sampling(options)
    if "runs" in options.only:
        if options.quick:
            quick = ["collect.num_checkpoints=12", "collect.epochs=1", "diffusion.steps=5", "generate.num_models=4"]
            yield from whole_run("digits-mlp3", options, [*quick, "evaluate.baselines=2"])
        else:
            for recipe in options.recipes:
                yield from whole_run(recipe, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    parser.add_argument("--only", nargs="+", default=["steps", "sampling", "runs"], help="some of its parts")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="what is run whole")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    found = [("device", f"{device}, torch {torch.__version__}")]
    for row in rows(options):
        found.append(row)
        print(f"{row[0]}: {row[1]}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n")
    print("\n| what | measured |\n| --- | --- |", *(f"| {name} | {value} |" for name, value in found), sep="\n")


if __name__ == "__main__":
    main()
