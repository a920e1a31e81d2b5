"""Memory and time against the size of the network: a ladder of ViTs from 10 thousand to 100 million parameters.

Run: python benchmarks/ladder.py [--sizes 1e4 1e6 1e7 1e8] [--checkpoints 10]
The checkpoints are random perturbations of one random network: they do for memory and time, and say nothing about
quality. Saving, training and sampling each run in a process of their own, whose peak of resident memory is read at its
end; the smallest network's peak stands for interpreter and libraries.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from pdiff_hub import workflow
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.param_autoencoder import ParamLayout
from pdiff_hub.pipeline_pdiff import PDiffPipeline
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline

STAGES = ("save", "train", "sample")


def vit(num_params: float) -> nn.Module:
    """A ViT with about so many parameters, on the meta device: 12 layers of 12 h^2 numbers each."""
    width = max(8, round((num_params / 144) ** 0.5 / 8) * 8)
    config = ViTConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=12, num_attention_heads=4,
                       image_size=28, patch_size=4, num_channels=1, num_labels=10)
    with torch.device("meta"):
        return ViTForImageClassification(config)


class Perturbations:
    """K rows of P numbers: one random network, plus eight random directions, in any rectangle without the rest."""

    def __init__(self, num_rows: int, num_params: int):
        self.num_rows, self.num_params = num_rows, num_params

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        mixing = torch.randn(self.num_rows, 8, generator=torch.Generator().manual_seed(1))[first:last]
        parts = []
        for block in range(start // 2**20, -(-stop // 2**20)):  # every block of numbers from a seed of its own
            drawn = 0.02 * torch.randn(9, 2**20, generator=torch.Generator().manual_seed(block + 2))
            inside = drawn[:, max(start - block * 2**20, 0) : stop - block * 2**20]
            parts.append(inside[0] + 0.1 * mixing @ inside[1:])
        return torch.cat(parts, dim=1)


def save(folder: Path, size: float, checkpoints: int) -> None:
    layout = ParamLayout.from_module(vit(size))
    rows = Perturbations(checkpoints, layout.num_params)
    CheckpointDataset(rows, layout, network={"name": "vit", "size": size}).save_pretrained(folder / "checkpoints")


def train(folder: Path, size: float, checkpoints: int) -> None:
    train_pipeline(CheckpointDataset.from_pretrained(folder / "checkpoints"), folder / "pipeline", AutoencoderConfig(),
                   DiffusionConfig(steps=20, save_every=20))


def sample(folder: Path, size: float, checkpoints: int) -> None:
    workflow.write_networks(PDiffPipeline.from_pretrained(folder / "pipeline"), 1, folder / "generated", seed=0,
                            num_inference_steps=20)


def _measured(stage: str, folder: Path, size: float, checkpoints: int, file: Path) -> None:
    work: Callable[[Path, float, int], None] = {"save": save, "train": train, "sample": sample}[stage]
    began = time.perf_counter()
    work(folder, size, checkpoints)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    file.write_text(json.dumps({"seconds": time.perf_counter() - began, "peak": peak}))


def measure(stage: str, folder: Path, size: float, checkpoints: int) -> dict[str, Any]:
    """Seconds, and peak resident bytes, of one stage in a fresh process."""
    file = folder / f"{stage}.json"
    process = multiprocessing.get_context("spawn").Process(
        target=_measured, args=(stage, folder, size, checkpoints, file))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"{stage} of {size:g} parameters failed.")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e4, 1e6, 1e7, 1e8])
    parser.add_argument("--checkpoints", type=int, default=10)
    args = parser.parse_args()
    print(f"{'parameters':>12} {'stage':>7} {'seconds':>8} {'peak MiB':>9} {'working MiB':>12} {'less a network':>17}")
    floor: dict[str, float] = {}
    for size in args.sizes:
        num_params = ParamLayout.from_module(vit(size)).num_params
        with tempfile.TemporaryDirectory() as folder:
            for stage in STAGES:
                found = measure(stage, Path(folder), size, args.checkpoints)
                floor.setdefault(stage, found["peak"])
                working = found["peak"] - floor[stage]
                print(f"{num_params:>12,} {stage:>7} {found['seconds']:>8.1f} {found['peak'] / 2**20:>9.0f} "
                      f"{working / 2**20:>12.0f} {(working - 4 * num_params) / 2**20:>17.0f}", flush=True)


if __name__ == "__main__":
    main()
