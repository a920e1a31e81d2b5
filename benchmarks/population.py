"""How much faster K networks train together than one after another: median of 3, both ways in one run.

Run: python benchmarks/population.py [--networks 200] [--epochs 10]
One after another is timed on six networks; each takes the same time. Run it on an idle machine: threads that wait for
each other slow the plain loop more than the batched program.
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

RATE, DECAY, AT_ONCE = 3e-3, 0.01, 200
CASES: dict[str, tuple[dict[str, Any], int]] = {  # network, batch size
    "mlp3": ({"name": "mlp3"}, 64),
    "convnet3": ({"name": "convnet3"}, 64),
    # Below the wanted 3 when last measured (2.4): kept in sight.
    "convnet3 with strides, batch 64": ({"name": "convnet3", "widths": [16, 32, 32], "downsample": "stride"}, 64),
    "convnet3 of digits-convnet3-seeds": ({"name": "convnet3", "widths": [16, 32, 32], "downsample": "stride"}, 32),
}


def one_by_one(spec: dict[str, Any], task: Task, batch: int, seeds: range, epochs: int) -> float:
    """Seconds a network in the plain loop: an nn.Module and torch's own AdamW."""
    inputs, labels = task.inputs(task.train), task.train.labels_N
    began = time.perf_counter()
    for seed in seeds:
        network = build_network(spec, seed=seed)
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for chosen in torch.randperm(len(inputs), generator=generator).split(batch)[: len(inputs) // batch]:
                optimizer.zero_grad()
                F.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
                optimizer.step()
    return (time.perf_counter() - began) / len(seeds)


def together(spec: dict[str, Any], task: Task, batch: int, seeds: range, epochs: int) -> float:
    """Seconds a network, AT_ONCE of them in training at a time."""
    inputs, labels = task.inputs(task.train), task.train.labels_N
    began = time.perf_counter()
    for start in range(0, len(seeds), AT_ONCE):
        trainer = BatchedTrainer(lambda seed: build_network(spec, seed=seed), seeds[start : start + AT_ONCE], inputs,
                                 labels, epochs=epochs, batch_size=batch, learning_rate=RATE, weight_decay=DECAY)
        for _ in range(epochs):
            trainer.run_epoch()
    return (time.perf_counter() - began) / len(seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    task = load_task("digits")
    for name, (options, batch) in CASES.items():
        spec = resolve_network(options, in_channels=1, image_size=8, num_classes=10)
        one_by_one(spec, task, batch, range(1), 1)
        together(spec, task, batch, range(AT_ONCE), 1)
        ratios = []
        for _ in range(3):
            plain = one_by_one(spec, task, batch, range(6), args.epochs)
            ratios.append(plain / together(spec, task, batch, range(args.networks), args.epochs))
        print(f"{name}: {args.networks} networks together are {statistics.median(ratios):.1f} times as fast as one by "
              f"one ({', '.join(f'{ratio:.1f}' for ratio in ratios)}), {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
