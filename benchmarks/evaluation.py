"""Judging networks on the test split: many in one batched forward pass against loading one after another.

The networks are the checkpoints of `pipelines/digits-mlp3` (8,970 parameters), on the 719 test images of digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from harness import SHIPPED, Result, compare, count_flops, main, result
from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.networks import build_network
from pdiff_hub.prediction.predictions import evaluate
from pdiff_hub.tasks import load_task


def measure(options: argparse.Namespace) -> Iterator[Result]:
    dataset = CheckpointDataset.from_pretrained(SHIPPED / "checkpoints")
    assert dataset.task is not None
    task = load_task(dataset.task)
    inputs, labels_N = task.inputs(task.test), task.test.labels_N
    params_BP = dataset.params_KP[: options.networks]
    network = build_network(dataset.network, pretrained=False).eval()

    def together() -> Tensor:
        return evaluate(network, dataset.layout, dataset.frozen, params_BP, inputs, labels_N).accuracy_B

    @torch.no_grad()
    def one_by_one() -> Tensor:
        accuracies = []
        for index in range(len(params_BP)):
            network.load_state_dict(dataset.state_dict(index), strict=True)
            accuracies.append((network(inputs).argmax(1) == labels_N).double().mean())
        return torch.stack(accuracies)

    apart = float((together() - one_by_one()).abs().max())
    seconds_plain, seconds_ours = compare(one_by_one, together, options.rounds)
    network_flops = count_flops(lambda: network(inputs))
    yield result(
        "evaluation",
        f"{len(params_BP)} networks, mlp3, {len(inputs)} test images of digits",
        seconds_ours,
        plain="load_state_dict and forward, one by one",
        seconds_plain=seconds_plain,
        flops=len(params_BP) * network_flops,
        note=f"The accuracies differ by at most {100 * apart:.2f} points.",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", type=int, default=200)


if __name__ == "__main__":
    main("evaluation", measure, add_options)
