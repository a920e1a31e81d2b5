"""The three axes along which sizes grow: what is done at each size, and the page's text about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from growth_process import Seconds
from growth_stages import (
    DIRECTIONS,
    FEW_IMAGES,
    INFERENCE_STEPS,
    JUDGED_IMAGES,
    JUDGED_NETWORKS,
    TINY_MLP,
    UNET_STEPS,
    judge,
    sample,
    sample_models,
    save_mlps,
    save_vits,
    similarity,
    train,
    vit_params,
    write_models,
)

CHECKPOINTS = 10
"""Number of checkpoints of every network on the axis of parameters."""


class Stage(NamedTuple):
    """The work of one process."""

    name: str
    work: Callable[..., Seconds]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Axis:
    """One quantity that grows.

    Attributes:
        name: names the pictures, and the axis in the progress bar. title: of the section on the page.
        label: of the x axis in the pictures, with its unit.
        what: Markdown text about what was measured.
        stages: (folder, size) -> the stages, in the order in which they are done. The folder exists.
        number: size -> the exact x.
        settings: what a point depends on besides size and machine.
        per_network: whether x is the size of one network. If so, the page also shows the memory minus one network.
    """

    name: str
    title: str
    label: str
    what: str
    stages: Callable[[Path, float], list[Stage]]
    number: Callable[[float], int]
    settings: Mapping[str, Any]
    per_network: bool = False


def _of_size(folder: Path, size: float) -> list[Stage]:
    return [
        Stage("save", save_vits, (folder, size, CHECKPOINTS)),
        Stage("train", train, (folder,)),
        Stage("sample", sample, (folder,)),
        Stage("judge", judge, (folder, size)),
    ]


def _of_checkpoints(folder: Path, count: float) -> list[Stage]:
    return [
        Stage("save", save_mlps, (folder, int(count))),
        Stage("train", train, (folder,)),
        Stage("similarity", similarity, (int(count),)),
    ]


def _of_models(folder: Path, count: float) -> list[Stage]:
    return [
        Stage("sample", sample_models, (int(count),)),
        Stage("sample and write", write_models, (folder, int(count))),
    ]


PARAMETERS = Axis(
    "parameters",
    "Number of parameters",
    "parameters of the network (number)",
    f"""A ViT of 12 layers (fewer below 10,000 parameters) that is generated whole, from {CHECKPOINTS} checkpoints.
These are random perturbations of one random network, along {DIRECTIONS} directions: good for memory and time, they say
nothing about quality.

*Save* writes them as a data set; drawing them is not in its seconds, but the block of up to {1 + DIRECTIONS} x 2^20
numbers that they are drawn in is in its memory. *Train* is one process: *fit autoencoder* is stage one whole (principal
components, latents, held-out R2), *U-Net steps* are {UNET_STEPS} steps of stage two and its save, *write pipeline* is
the rest: the pipeline's files are as large as its components, that is as several networks. *Sample* opens the pipeline,
generates one network in {INFERENCE_STEPS} steps and writes it. *Judge* compares {JUDGED_NETWORKS} generated networks
with all checkpoints and {JUDGED_NETWORKS} networks of every baseline, each on {2 * FEW_IMAGES} images. With more of
them it takes more time, and up to 512 MiB more: baselines are made when they are needed.

A whole run, measured 2026-11-27 on the machine below with two threads (`task: digits`, `network: {{name: mlp3, hidden:
[4050, 4050]}}`, 16,710,310 numbers, 24 checkpoints, all else by default), took 325 s and held at most 2,023 MiB: 64 s
to collect, 22 to train, 7 to generate 32 networks, and 222 to judge them and 8 of each baseline, which are fewer than
of small networks (`evaluate.most_numbers`).""",
    _of_size,
    vit_params,
    {
        "checkpoints": CHECKPOINTS,
        "unet_steps": UNET_STEPS,
        "inference_steps": INFERENCE_STEPS,
        "judged_networks": JUDGED_NETWORKS,
        "few_images": FEW_IMAGES,
    },
    per_network=True,
)

CHECKPOINTS_OF_ONE = Axis(
    "checkpoints",
    "Number of checkpoints",
    "checkpoints (number)",
    f"""Checkpoints of an MLP of 1,066 parameters (`mlp3` with hidden layers of 12 and 12, on images of 8 x 8), again
random perturbations of one random network along {DIRECTIONS} directions. *Save* and *train* as above. *Similarity* is
the mean IoU of the errors of all pairs of networks, on {JUDGED_IMAGES:,} images with random errors: the number of pairs
grows as the square.""",
    _of_checkpoints,
    int,
    {"network": TINY_MLP, "unet_steps": UNET_STEPS, "images": JUDGED_IMAGES},
)

MODELS = Axis(
    "models",
    "Number of generated models",
    "generated models (number)",
    """Networks of 8,970 parameters from the shipped `pipelines/digits-mlp3`, at its default number of steps. *Sample*
keeps their parameters in memory; *sample and write* streams them into files that each load with `strict=True`. The time
to open the pipeline is not in the seconds.""",
    _of_models,
    int,
    {"pipeline": "digits-mlp3"},
)

AXES = (PARAMETERS, CHECKPOINTS_OF_ONE, MODELS)
