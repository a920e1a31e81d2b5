"""Against the authors' newest settings on the same work: training on a set of checkpoints, and sampling 200 networks.

The authors' seconds are constants (`WORKS`). Ours are measured: `train_pipeline` with the defaults on a set with as
many parameters, then 200 networks at the pipeline's own number of steps. The accuracy of these is compared with that of
networks sampled in 1,000 steps of DDPM. Give the folders of the sets; otherwise they are collected first, which takes
minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import Result, main, result

from pdiff_hub import PDiffPipeline, runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.networks import build_network
from pdiff_hub.pipeline import sample
from pdiff_hub.recipes import Recipe, load_recipe
from pdiff_hub.reproduce.settings import Settings
from pdiff_hub.tasks import load_task
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.training.diffusion import build_scheduler
from pdiff_hub.training.pipeline import train_pipeline

_PLAIN_STEPS = 1000
_WANTED_A_NETWORK = 200  # wanted: this many times as fast per network
_WANTED_POINTS = 0.2  # wanted: a mean accuracy at most this many points lower


@dataclass(frozen=True)
class Work:
    """A setting of the authors' code, with its seconds per step and per network.

    wanted: how many times as fast ours should be. recipe: makes our recipe for a set with about as many parameters.
    """

    num_params: int
    autoencoder_steps: int
    autoencoder_seconds: float
    diffusion_steps: int
    diffusion_seconds: float
    network_seconds: float
    wanted: int
    recipe: Callable[[], Recipe]

    def seconds(self, networks: int) -> float:
        return (
            self.autoencoder_steps * self.autoencoder_seconds
            + self.diffusion_steps * self.diffusion_seconds
            + networks * self.network_seconds
        )

    def words(self) -> str:
        return (
            f"the authors' code: {self.autoencoder_steps:,} steps of {self.autoencoder_seconds:g} s, "
            f"{self.diffusion_steps:,} of {self.diffusion_seconds:g} s, {self.network_seconds:g} s per network"
        )


# The authors' code was timed on 2 cores of the kind for which the ratios are wanted.
WORKS = {
    "subset": Work(2048, 500, 1.7, 1000, 1.5, 11.6, 25, lambda: Settings("small").norms("digits", "resnet18")),
    "mlp": Work(39_600, 2500, 46.0, 10_000, 13.0, 49.0, 300, lambda: load_recipe("fashion-mnist-mlp3")),
}


def ours(dataset: CheckpointDataset, networks: int, steps: int, folder: Path) -> tuple[float, float]:
    """Seconds of training, up to and including the opening of the pipeline, and seconds of sampling.

    steps: of the denoiser's training. folder: the pipeline is written into it.
    """
    began = time.perf_counter()
    train_pipeline(dataset, folder, diffusion=DiffusionConfig(steps=steps))
    pipe = PDiffPipeline.from_pretrained(folder)
    trained = time.perf_counter()
    sample(pipe, networks, seed=0)
    return trained - began, time.perf_counter() - trained


def accuracies(dataset: CheckpointDataset, networks: int, folder: Path) -> tuple[float, float]:
    """Mean test accuracies of networks in percent: at the pipeline's own steps, and in 1,000 steps of DDPM."""
    assert dataset.task is not None
    judge = Judge(
        build_network(dataset.network, pretrained=False), load_task(dataset.task), dataset.layout, dataset.frozen
    )
    own = sample(PDiffPipeline.from_pretrained(folder), networks, seed=0)
    ddpm = PDiffPipeline.from_pretrained(folder, scheduler=build_scheduler())
    slow = sample(ddpm, networks, seed=0, num_inference_steps=_PLAIN_STEPS)
    own_mean, slow_mean = (100 * float(judge(params_BP).test.accuracy_B.mean()) for params_BP in (own, slow))
    return own_mean, slow_mean


def against(work: Work, dataset: CheckpointDataset, options: argparse.Namespace) -> Iterator[Result]:
    """Two results: the seconds of everything, and the seconds per sampled network."""
    networks, rounds = options.networks, []
    for number in range(options.rounds):
        with TemporaryDirectory() as folder:
            rounds.append(ours(dataset, networks, options.steps, Path(folder)))
            if number == 0:
                own, slow = accuracies(dataset, networks, Path(folder))
    what = f"{dataset.layout.num_params:,} parameters of {dataset.network['name']}, {len(dataset)} checkpoints"
    yield result(
        "against the authors",
        f"train on {what}, and sample {networks} networks",
        [sum(each) for each in rounds],
        plain=work.words(),
        seconds_plain=[work.seconds(networks)] * len(rounds),
        note=f"Theirs, for {work.num_params:,} parameters, was timed elsewhere and scaled up from steps; no round of "
        f"ours to warm up. Wanted: {work.wanted} times as fast.",
    )
    yield result(
        "against the authors",
        f"sample a network of {what}",
        [sampling / networks for _, sampling in rounds],
        plain=f"the authors' code: {_PLAIN_STEPS:,} steps, batch 1",
        seconds_plain=[work.network_seconds] * len(rounds),
        note=f"Theirs was timed elsewhere; ours: {networks} in a batch. Mean test accuracy {own:.2f} %, by "
        f"{_PLAIN_STEPS:,} steps of DDPM {slow:.2f} %: {own - slow:+.2f} points. Wanted: {_WANTED_A_NETWORK} "
        f"times as fast, and at least as accurate (within {_WANTED_POINTS} points).",
    )


def measure(options: argparse.Namespace) -> Iterator[Result]:
    sets, missing = {}, ""
    with TemporaryDirectory() as folder:
        for name, work in WORKS.items():
            given, recipe = getattr(options, name), work.recipe()
            if given is not None:
                sets[name] = CheckpointDataset.from_pretrained(given)
                continue
            try:
                sets[name] = runs.collect(recipe, Path(folder, name))
            except OSError as error:  # errors of the Hub are OSErrors too
                missing += (
                    f" The set of {work.num_params:,} parameters is left out: its data, {recipe.task}, cannot "
                    f"be read ({error}). Fashion-MNIST comes with Debian's package dataset-fashion-mnist; or "
                    f"give a set that was collected elsewhere, with --{name}."
                )
        if not sets:
            raise SystemExit(missing.strip())
        for name, dataset in sets.items():
            for each in against(WORKS[name], dataset, options):
                yield replace(each, note=each.note + missing)  # so that the page names sets that are missing


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--subset",
        type=Path,
        help="folder of a CheckpointDataset of 2,048 parameters; default: the "
        "last two norm layers of a ResNet-18 on digits, collected",
    )
    parser.add_argument("--mlp", type=Path, help="of about 39,600; default: that of fashion-mnist-mlp3, collected")
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--steps", type=int, default=DiffusionConfig().steps, help="of the denoiser's training")


if __name__ == "__main__":
    main("authors", measure, add_options)
