"""How much faster K networks train together than one after another: median of 3, both ways in one run.

Run: python benchmarks/population.py [--networks 200] [--epochs 3]
One after another is timed on a few networks and scaled; each network's time is the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F

from pdiff_hub.collect.batched_training import BatchedTrainer
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.tasks import Task, load_task

BATCH, RATE, DECAY = 64, 3e-3, 0.01
CASES = {
    "mlp3": ({"name": "mlp3"}, 50),
    "convnet3": ({"name": "convnet3", "widths": [16, 32, 32], "downsample": "stride"}, 10),
}


def one_by_one(spec: dict[str, Any], task: Task, seeds: range, epochs: int) -> float:
    """Seconds a network in the plain loop: an nn.Module and torch's own AdamW."""
    inputs, labels = task.inputs(task.train), task.train.labels_N
    began = time.perf_counter()
    for seed in seeds:
        network = build_network(spec, seed=seed)
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for chosen in torch.randperm(len(inputs), generator=generator).split(BATCH)[: len(inputs) // BATCH]:
                optimizer.zero_grad()
                F.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
                optimizer.step()
    return (time.perf_counter() - began) / len(seeds)


def together(spec: dict[str, Any], task: Task, seeds: range, epochs: int, at_once: int) -> float:
    """Seconds a network as batched programs of `at_once` networks."""
    inputs, labels = task.inputs(task.train), task.train.labels_N
    began = time.perf_counter()
    for start in range(0, len(seeds), at_once):
        trainer = BatchedTrainer(lambda seed: build_network(spec, seed=seed), seeds[start : start + at_once], inputs,
                                 labels, epochs=epochs, batch_size=BATCH, learning_rate=RATE, weight_decay=DECAY)
        for _ in range(epochs):
            trainer.run_epoch()
    return (time.perf_counter() - began) / len(seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    task = load_task("digits")
    for name, (options, at_once) in CASES.items():
        spec = resolve_network(options, in_channels=1, image_size=8, num_classes=10)
        together(spec, task, range(at_once), 1, at_once)
        ratios = []
        for _ in range(3):
            plain = one_by_one(spec, task, range(6), args.epochs)
            ratios.append(plain / together(spec, task, range(args.networks), args.epochs, at_once))
        print(f"{name}: {args.networks} networks together are {statistics.median(ratios):.1f} times as fast as one by "
              f"one ({', '.join(f'{ratio:.1f}' for ratio in ratios)}), {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
