"""Saving and opening a set of checkpoints: `CheckpointDataset` against one file per checkpoint.

The set has 200 checkpoints of an MLP of 39,578 parameters. Saving begins with their state dicts. Opening ends with all
of them in memory as one tensor. Our way waits until the bytes are on the disk, so that a kill loses nothing. The plain
way is measured both without and with this wait.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import torch
from harness import Result, clock, compare, main, result
from random_checkpoints import random_checkpoints
from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.travelling.param_autoencoder import ParamLayout

StateDict = dict[str, Tensor]


def save_files(states: list[StateDict], folder: Path, flush: bool) -> None:
    """The plain way: one `torch.save` per checkpoint. With `flush` it waits until each file is on the disk."""
    folder.mkdir(exist_ok=True)
    for index, state in enumerate(states):
        with (folder / f"{index:05d}.pt").open("wb") as file:
            torch.save(state, file)
            if flush:
                file.flush()
                os.fsync(file.fileno())


def open_files(layout: ParamLayout, folder: Path) -> Tensor:
    """The checkpoints that `save_files` wrote, as float32 [K,P]."""
    return layout.flatten([torch.load(file, weights_only=True) for file in sorted(folder.iterdir())])


def seconds_from_generator(params_KP: Tensor, folder: Path) -> float:
    """Seconds that `datasets.Dataset.from_generator` and `save_to_disk` take for the same rows."""

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for params_P in params_KP.numpy():
            yield {"params": params_P}

    datasets.disable_progress_bars()
    return clock(lambda: datasets.Dataset.from_generator(rows, cache_dir=str(folder)).save_to_disk(folder / "saved"))


def measure(options: argparse.Namespace) -> Iterator[Result]:
    made = random_checkpoints([48, 32], options.checkpoints)
    layout = made.layout
    states = [{name: tensor.clone() for name, tensor in made.state_dict(index).items()} for index in range(len(made))]
    size = f"{options.checkpoints} checkpoints of {layout.num_params:,} numbers"
    with TemporaryDirectory() as temporary:
        plain, ours = Path(temporary, "files"), Path(temporary, "dataset")

        def save() -> None:
            CheckpointDataset(layout.flatten(states), layout, network=made.network).save_pretrained(ours)

        def save_anew() -> float:
            shutil.rmtree(ours, ignore_errors=True)
            return clock(save)

        generator = seconds_from_generator(made.params_KP, Path(temporary, "generator"))
        for words, flush in (
            ("torch.save of each, not waiting for the disk", False),
            ("torch.save of each, on the disk, as ours is", True),
        ):
            seconds_plain, seconds_ours = compare(partial(save_files, states, plain, flush), save_anew, options.rounds)
            yield result(
                "saving",
                f"save {size}",
                seconds_ours,
                plain=words,
                seconds_plain=seconds_plain,
                note=f"datasets.Dataset.from_generator and save_to_disk: {generator:.2f} s.",
            )
        assert torch.equal(open_files(layout, plain), CheckpointDataset.from_pretrained(ours).params_KP)
        seconds_plain, seconds_ours = compare(
            lambda: open_files(layout, plain), lambda: CheckpointDataset.from_pretrained(ours).params_KP, options.rounds
        )
        yield result(
            "saving", f"open {size} and read all", seconds_ours, plain="torch.load of each", seconds_plain=seconds_plain
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoints", type=int, default=200)


if __name__ == "__main__":
    main("saving", measure, add_options)
