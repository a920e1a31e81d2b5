"""What is measured as sizes grow: saving, training, sampling and judging. Each is a function for its own process.

Every function returns the seconds of its parts, by the names in the tables and pictures. The checkpoints are random
perturbations of one random network. They are good enough for memory and time, and say nothing about quality.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from growth_process import Seconds
from growth_training import timed_training
from torch import Tensor, nn

from pdiff_hub import PDiffPipeline, runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.evaluation.baselines import baseline_variants
from pdiff_hub.evaluation.evaluate import evaluate_networks
from pdiff_hub.evaluation.similarity import mean_pairwise
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.pipeline import sample as sample_networks
from pdiff_hub.runs.generating import generated_rows
from pdiff_hub.tasks import Split, Task
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.travelling.param_autoencoder import ParamLayout

UNET_STEPS = 20
INFERENCE_STEPS = 20
DIRECTIONS = 8
JUDGED_IMAGES = 2000
JUDGED_NETWORKS = 2
FEW_IMAGES = 4
TINY_MLP = {"name": "mlp3", "hidden": [12, 12]}  # 1,066 parameters on images of 8 x 8 and ten classes
PIPELINE = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"
_BLOCK = 2**20


def vit(num_params: float) -> nn.Module:
    """A ViT with about `num_params` parameters, on the meta device.

    It has 12 layers of 12 h^2 numbers each, where h is its width, and fewer layers below 10,000 parameters.
    """
    from transformers import ViTConfig, ViTForImageClassification

    width = max(4 if num_params < 4000 else 8, round((num_params / 144) ** 0.5 / 8) * 8)
    layers = 12
    if num_params < 1e4:  # embeddings, last norm and head have 80 h + 10 numbers, and each layer has 12 h^2 + 13 h
        layers = max(1, round((num_params - 80 * width - 10) / (12 * width**2 + 13 * width)))
    config = ViTConfig(  # type: ignore[call-arg]  # num_labels is taken by its base class
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
    """The exact number of parameters of `vit(num_params)`."""
    return ParamLayout.from_module(vit(num_params)).num_params


class Perturbations:
    """K rows of P numbers: one random network plus a random mix of eight random directions per row.

    Any rectangle can be read without the rest. `seconds` sums the time that drawing took, which is not to be measured.
    """

    def __init__(self, num_rows: int, num_params: int):
        self.num_rows, self.num_params, self.seconds = num_rows, num_params, 0.0
        self._mixing = 0.1 * torch.randn(num_rows, DIRECTIONS, generator=torch.Generator().manual_seed(1))

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        began = time.perf_counter()
        rows_RS = torch.empty(last - first, stop - start)
        for block in range(start // _BLOCK, -(-stop // _BLOCK)):  # every block of numbers has its own seed
            begin = block * _BLOCK
            shape = (1 + DIRECTIONS, min(_BLOCK, self.num_params - begin))
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(block + 2)).mul_(0.02)
            low, high = max(start, begin), min(stop, begin + _BLOCK)
            inside = drawn[:, low - begin : high - begin]
            torch.addmm(inside[0], self._mixing[first:last], inside[1:], out=rows_RS[:, low - start : high - start])
        self.seconds += time.perf_counter() - began
        return rows_RS


def save_vits(folder: Path, size: float, checkpoints: int) -> Seconds:
    """Save `checkpoints` checkpoints of the ViT of that size."""
    return _save(folder, vit(size), {"name": "vit", "size": size}, checkpoints)


def save_mlps(folder: Path, checkpoints: int) -> Seconds:
    """Save `checkpoints` checkpoints of `TINY_MLP`."""
    spec = resolve_network(TINY_MLP, in_channels=1, image_size=8, num_classes=10)
    return _save(folder, build_network(spec), spec, checkpoints)


def _save(folder: Path, network: nn.Module, spec: dict[str, object], checkpoints: int) -> Seconds:
    layout = ParamLayout.from_module(network)
    rows = Perturbations(checkpoints, layout.num_params)
    began = time.perf_counter()
    CheckpointDataset(rows, layout, network=spec).save_pretrained(folder / "checkpoints")
    return {"save": time.perf_counter() - began - rows.seconds}


def train(folder: Path) -> Seconds:
    """Train both stages on the saved checkpoints and write the pipeline, which takes GBs if the network is large."""
    return timed_training(folder, DiffusionConfig(steps=UNET_STEPS, save_every=UNET_STEPS))


def sample(folder: Path) -> Seconds:
    """Open the trained pipeline, generate one network and write it."""
    began = time.perf_counter()
    runs.write_networks(
        PDiffPipeline.from_pretrained(folder / "pipeline"),
        1,
        folder / "generated",
        seed=0,
        num_inference_steps=INFERENCE_STEPS,
    )
    return {"sample": time.perf_counter() - began}


def judge(folder: Path, size: float) -> Seconds:
    """Judge networks of the trained pipeline beside as many of every baseline, on random images."""
    pipe = PDiffPipeline.from_pretrained(folder / "pipeline")
    network = vit(size).to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.zero_()
    task = _random_task()
    variants = baseline_variants(network, task, pipe.autoencoder, fine_tune_steps=1)
    with generated_rows(
        pipe, JUDGED_NETWORKS, folder / "judged", seed=0, num_inference_steps=INFERENCE_STEPS
    ) as generated:
        began = time.perf_counter()
        evaluate_networks(
            network,
            task,
            CheckpointDataset.from_pretrained(folder / "checkpoints"),
            generated,
            deviation_r2=None,
            autoencoder=pipe.autoencoder,
            variants=variants,
            num_models=JUDGED_NETWORKS,
        )
    return {"judge": time.perf_counter() - began}


def _random_task() -> Task:
    """Images of the size that `vit` takes, so few that networks and not images take time and memory."""

    def split(number: int) -> Split:
        return Split(
            torch.randint(256, (number, 1, 28, 28), dtype=torch.uint8, generator=drawn),
            torch.randint(10, (number,), generator=drawn),
        )

    drawn = torch.Generator().manual_seed(0)
    spec = {"augment": {"flip": False, "crop_padding": 0}}
    return Task(spec, 10, 1, 28, (0.5,), (0.3,), split(64), split(FEW_IMAGES), split(FEW_IMAGES))


def similarity(networks: int) -> Seconds:
    """Mean IoU of the errors of all pairs. The errors are random, on a tenth of the images."""
    wrong_KN = torch.empty(networks, JUDGED_IMAGES, dtype=torch.bool)
    wrong_KN.bernoulli_(0.1, generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    mean_pairwise(wrong_KN)
    return {"similarity": time.perf_counter() - began}


def sample_models(networks: int) -> Seconds:
    """Generate `networks` networks with the shipped pipeline at its default steps, and keep their parameters."""
    pipe = PDiffPipeline.from_pretrained(PIPELINE)
    began = time.perf_counter()
    sample_networks(pipe, networks, seed=0)
    return {"sample": time.perf_counter() - began}


def write_models(folder: Path, networks: int) -> Seconds:
    """Generate `networks` networks with it, and write each as a file that loads with `strict=True`."""
    pipe = PDiffPipeline.from_pretrained(PIPELINE)
    began = time.perf_counter()
    runs.write_networks(pipe, networks, folder / "generated", seed=0)
    return {"sample and write": time.perf_counter() - began}
