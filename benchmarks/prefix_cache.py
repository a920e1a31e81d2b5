"""Judging norm-only variants of one ResNet-18: shared activations against a full forward pass for every network.

200 variants differ in the last two norm layers (2,048 numbers) and are judged on 2,000 images of 28 x 28, as in
`fashion-mnist-resnet18-norms`. The plain way is timed on a few networks, one after another, and scaled up, because it
takes the same time for every network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from harness import Result, compare, count_flops, main, result
from torch import Tensor

from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.prediction.predictions import evaluate
from pdiff_hub.travelling.param_autoencoder import ParamLayout


def measure(options: argparse.Namespace) -> Iterator[Result]:
    generator = torch.Generator().manual_seed(0)
    spec = resolve_network({"name": "resnet18", "stem_stride": 2}, in_channels=1, image_size=28, num_classes=10)
    network = build_network(spec, pretrained=False).eval()
    layout = ParamLayout.from_module(network, "last_norms:2")
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    params_BP = layout.flatten(state) + 0.1 * torch.randn(options.networks, layout.num_params, generator=generator)
    images = torch.randn(options.images, 1, 28, 28, generator=generator)
    labels_N = torch.randint(10, (options.images,), generator=generator)
    wrong: dict[str, Tensor] = {}  # wrong answers of each way, in the last round

    def shared() -> None:
        wrong["ours"] = evaluate(network, layout, layout.frozen_state(state), params_BP, images, labels_N).wrong_BN

    @torch.no_grad()
    def plain() -> float:
        began = time.perf_counter()
        rows = []
        for variant in layout.unflatten(params_BP[: options.plain_networks]):
            assert isinstance(variant, dict)
            network.load_state_dict({**state, **variant}, strict=True)
            rows.append(torch.cat([network(part).logits.argmax(1) for part in images.split(256)]) != labels_N)
        wrong["plain"] = torch.stack(rows)
        return (time.perf_counter() - began) * options.networks / len(rows)

    seconds_plain, seconds_ours = compare(plain, shared, options.rounds)
    same = float((wrong["plain"] == wrong["ours"][: options.plain_networks]).double().mean())
    yield result(
        "evaluation",
        f"{options.networks} networks, ResNet-18 that differ in 2,048 norm numbers, "
        f"{options.images:,} images of 28 x 28",
        seconds_ours,
        plain=f"a full forward pass of each network, scaled up from {options.plain_networks}",
        seconds_plain=seconds_plain,
        flops=count_flops(shared),
        note=f"Both ways are right on the same images for {100 * same:.2f} % of networks and images.",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--plain-networks", type=int, default=4, help="of these the plain way judges, per round")


if __name__ == "__main__":
    main("prefix_cache", measure, add_options)
