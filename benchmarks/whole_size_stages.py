"""What is done with a network of whole size: save checkpoints of it, train on them, sample, and use what was sampled.

Every function is for its own process, and returns the seconds of its parts. Where there is a GPU that the process may
see, training takes it by itself; sampling and the check take `device`.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from growth_process import Seconds
from growth_training import timed_training
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub import PDiffPipeline, runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.networks import build_network, logits, resolve_network
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.travelling.param_autoencoder import ParamLayout

DIRECTIONS = 8
INFERENCE_STEPS = 20
_SPREAD = 0.002  # of a weight between checkpoints
_POOL, _BLOCK = 2**22, 2**18


class Perturbations:
    """K rows of P numbers: one network plus a random mix of eight random directions per row.

    A direction is made of one pool of random numbers that repeats after 4 million; drawing each number anew would take
    longer than all that is measured. `seconds` sums what making them took, which is not to be measured.
    """

    def __init__(self, params_P: Tensor, num_rows: int):
        self.num_rows, self.num_params, self.seconds, self._params_P = num_rows, len(params_P), 0.0, params_P
        generator = torch.Generator().manual_seed(0)
        self._mixing_KD = _SPREAD * torch.randn(num_rows, DIRECTIONS, generator=generator)
        pool = torch.randn(_POOL, generator=generator)
        self._pool = torch.cat([pool, pool[:_BLOCK]])
        self._shifts = torch.randint(_POOL, (DIRECTIONS,), generator=generator).tolist()

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        began = time.perf_counter()
        rows_RS = torch.empty(last - first, stop - start)
        for begin in range(start, stop, _BLOCK):
            end = min(begin + _BLOCK, stop)
            places = [(begin + shift) % _POOL for shift in self._shifts]
            directions_DS = torch.stack([self._pool[place : place + end - begin] for place in places])
            torch.addmm(
                self._params_P[begin:end],
                self._mixing_KD[first:last],
                directions_DS,
                out=rows_RS[:, begin - start : end - start],
            )
        self.seconds += time.perf_counter() - began
        return rows_RS


def network_of(name: str, image_size: int, num_classes: int) -> dict[str, object]:
    """The complete spec of a network for colour images; the names are those of recipes."""
    return resolve_network(name, in_channels=3, image_size=image_size, num_classes=num_classes)


def save(folder: Path, spec: dict[str, object], checkpoints: int) -> Seconds:
    """Save `checkpoints` perturbations of one network with random weights."""
    network = build_network(spec)
    layout, state = ParamLayout.from_module(network), network.state_dict()
    rows = Perturbations(layout.flatten(state), checkpoints)
    began = time.perf_counter()
    CheckpointDataset(rows, layout, network=spec, frozen=layout.frozen_state(state)).save_pretrained(
        folder / "checkpoints"
    )
    return {"save": time.perf_counter() - began - rows.seconds}


def train(folder: Path, steps: int) -> Seconds:
    """Train both stages on the saved checkpoints and write the pipeline."""
    _start_device()
    return timed_training(folder, DiffusionConfig(steps=steps, save_every=steps, patience=None))


def sample(folder: Path, networks: int, device: str) -> Seconds:
    """Open the trained pipeline, generate `networks` networks and write each as a file."""
    _start_device()
    began = time.perf_counter()
    pipe = PDiffPipeline.from_pretrained(folder / "pipeline").to(device)
    opened = time.perf_counter()
    runs.write_networks(pipe, networks, folder / f"generated-{networks}", seed=0, num_inference_steps=INFERENCE_STEPS)
    return {"open": opened - began, f"sample {networks}": time.perf_counter() - opened}


def use(folder: Path, spec: dict[str, object], device: str) -> Seconds:
    """Load every generated network with `strict=True` and ask it about random images. RuntimeError if it is no good."""
    network = build_network(spec).to(device).eval()
    size = int(str(spec["image_size"]))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    files = sorted(folder.glob("generated-*/*.safetensors"))
    began = time.perf_counter()
    for file in files:
        network.load_state_dict(load_file(file), strict=True)
        with torch.no_grad():
            answers = logits(network(images))
        if answers.shape != (2, spec["num_classes"]) or not bool(answers.isfinite().all()):
            raise RuntimeError(f"{file.name} does not answer with finite logits")
    return {"use": (time.perf_counter() - began) / len(files)}


def _start_device() -> None:
    """Starts the GPU, if there is one: that takes up to seconds, once in a process, and is not to be measured."""
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
