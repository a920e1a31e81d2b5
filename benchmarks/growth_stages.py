"""What is measured as it grows: saving, training, sampling and judging, each as a function for a process of its own.

Every function returns the seconds of its parts by the name that tables and pictures give them. The checkpoints are
random perturbations of one random network: they do for memory and time, and say nothing about quality.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from growth_process import Seconds
from torch import Tensor, nn

from pdiff_hub import PDiffPipeline, runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.evaluation.similarity import mean_pairwise
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline
from pdiff_hub.travelling.param_autoencoder import ParamLayout

UNET_STEPS = 20
INFERENCE_STEPS = 20
DIRECTIONS = 8
JUDGED_IMAGES = 2000
TINY_MLP = {"name": "mlp3", "hidden": [12, 12]}  # 1,066 parameters on images of 8 x 8 and ten classes
PIPELINE = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"
_BLOCK = 2**20


def vit(num_params: float) -> nn.Module:
    """A ViT with about so many parameters, on the meta device: 12 layers of 12 h^2 numbers each, fewer below 10,000."""
    from transformers import ViTConfig, ViTForImageClassification

    width = max(4 if num_params < 4000 else 8, round((num_params / 144) ** 0.5 / 8) * 8)
    layers = 12
    if num_params < 1e4:  # embeddings, last norm and head have 80 h + 10, a layer 12 h^2 + 13 h
        layers = max(1, round((num_params - 80 * width - 10) / (12 * width**2 + 13 * width)))
    config = ViTConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=28,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    )
    with torch.device("meta"):
        return ViTForImageClassification(config)


def vit_params(num_params: float) -> int:
    """P, exactly, of `vit(num_params)`."""
    return ParamLayout.from_module(vit(num_params)).num_params


class Perturbations:
    """K rows of P numbers: one random network, plus eight random directions, in any rectangle without the rest.

    `seconds` adds up what drawing them took, which is no part of what is measured.
    """

    def __init__(self, num_rows: int, num_params: int):
        self.num_rows, self.num_params, self.seconds = num_rows, num_params, 0.0
        self._mixing = 0.1 * torch.randn(num_rows, DIRECTIONS, generator=torch.Generator().manual_seed(1))

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        began = time.perf_counter()
        rows_RS = torch.empty(last - first, stop - start)
        for block in range(start // _BLOCK, -(-stop // _BLOCK)):  # every block of numbers from a seed of its own
            begin = block * _BLOCK
            shape = (1 + DIRECTIONS, min(_BLOCK, self.num_params - begin))
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(block + 2)).mul_(0.02)
            low, high = max(start, begin), min(stop, begin + _BLOCK)
            inside = drawn[:, low - begin : high - begin]
            torch.addmm(inside[0], self._mixing[first:last], inside[1:], out=rows_RS[:, low - start : high - start])
        self.seconds += time.perf_counter() - began
        return rows_RS


def save_vits(folder: Path, size: float, checkpoints: int) -> Seconds:
    """Save so many checkpoints of the ViT of that size."""
    return _save(folder, vit(size), {"name": "vit", "size": size}, checkpoints)


def save_mlps(folder: Path, checkpoints: int) -> Seconds:
    """Save so many checkpoints of `TINY_MLP`."""
    spec = resolve_network(TINY_MLP, in_channels=1, image_size=8, num_classes=10)
    return _save(folder, build_network(spec), spec, checkpoints)


def _save(folder: Path, network: nn.Module, spec: dict[str, object], checkpoints: int) -> Seconds:
    layout = ParamLayout.from_module(network)
    rows = Perturbations(checkpoints, layout.num_params)
    began = time.perf_counter()
    CheckpointDataset(rows, layout, network=spec).save_pretrained(folder / "checkpoints")
    return {"save": time.perf_counter() - began - rows.seconds}


def train(folder: Path) -> Seconds:
    """Both stages of training on what was saved, and writing the pipeline: GBs where the network is large."""
    began = time.perf_counter()
    summary = train_pipeline(
        CheckpointDataset.from_pretrained(folder / "checkpoints"),
        folder / "pipeline",
        AutoencoderConfig(),
        DiffusionConfig(steps=UNET_STEPS, save_every=UNET_STEPS),
    )
    total = time.perf_counter() - began
    assert summary.seconds_autoencoder is not None and summary.seconds_diffusion is not None  # in a new folder
    return {
        "fit autoencoder": summary.seconds_autoencoder,
        "U-Net steps": summary.seconds_diffusion,
        "write pipeline": total - summary.seconds_autoencoder - summary.seconds_diffusion,
    }


def sample(folder: Path) -> Seconds:
    """Open the pipeline that was trained, generate one network and write it."""
    began = time.perf_counter()
    runs.write_networks(
        PDiffPipeline.from_pretrained(folder / "pipeline"),
        1,
        folder / "generated",
        seed=0,
        num_inference_steps=INFERENCE_STEPS,
    )
    return {"sample": time.perf_counter() - began}


def similarity(networks: int) -> Seconds:
    """Mean IoU of the errors of all pairs; the errors are random, a tenth of the images."""
    wrong_KN = torch.empty(networks, JUDGED_IMAGES, dtype=torch.bool)
    wrong_KN.bernoulli_(0.1, generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    mean_pairwise(wrong_KN)
    return {"similarity": time.perf_counter() - began}


def sample_models(networks: int) -> Seconds:
    """Generate so many networks with the shipped pipeline at its default steps, and keep their parameters."""
    pipe = PDiffPipeline.from_pretrained(PIPELINE)
    began = time.perf_counter()
    runs.generate(pipe, networks, seed=0)
    return {"sample": time.perf_counter() - began}


def write_models(folder: Path, networks: int) -> Seconds:
    """Generate them and write each as a file that loads with `strict=True`."""
    pipe = PDiffPipeline.from_pretrained(PIPELINE)
    began = time.perf_counter()
    runs.write_networks(pipe, networks, folder / "generated", seed=0)
    return {"sample and write": time.perf_counter() - began}
