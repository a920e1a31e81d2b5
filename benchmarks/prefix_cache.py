"""Judging norm-only variants of one ResNet-18: shared activations against a full forward pass for every network.

200 variants that differ in the last two norm layers (2,048 numbers), 2,000 images of 28 x 28, as in
`fashion-mnist-resnet18-norms`. The plain way is timed on a few networks, one after another, and scaled up: every
network costs it the same. Prints the median ratio of a few rounds, all in one run.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from pdiff_hub.evaluation.predictions import evaluate
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.param_autoencoder import ParamLayout


def main() -> None:
    """Time both ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--plain-networks", type=int, default=4, help="of these the plain way judges, a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    spec = resolve_network({"name": "resnet18", "stem_stride": 2}, in_channels=1, image_size=28, num_classes=10)
    network = build_network(spec, pretrained=False).eval()
    layout = ParamLayout.from_module(network, "last_norms:2")
    state = network.state_dict()
    own_P = layout.flatten(state)
    params_BP = own_P + 0.1 * torch.randn(options.networks, layout.num_params, generator=generator)
    images = torch.randn(options.images, 1, 28, 28, generator=generator)
    labels_N = torch.randint(10, (options.images,), generator=generator)
    ratios = []
    for _ in range(options.rounds):
        began = time.perf_counter()
        found = evaluate(network, layout, layout.frozen_state(state), params_BP, images, labels_N)
        cached = time.perf_counter() - began
        began = time.perf_counter()
        agree = 0
        for b in range(options.plain_networks):
            variant = layout.unflatten(params_BP[b])
            assert isinstance(variant, dict)
            network.load_state_dict({**state, **variant}, strict=True)
            with torch.no_grad():
                answers = torch.cat([network(part).logits.argmax(1) for part in images.split(256)])
            agree += int(((answers != labels_N) == found.wrong_BN[b]).sum())
        network.load_state_dict(state)
        plain = (time.perf_counter() - began) * options.networks / options.plain_networks
        ratios.append(plain / cached)
        same = agree / (options.plain_networks * options.images)
        print(f"shared {cached:.1f} s, plain {plain:.0f} s (scaled up), same answers {100 * same:.2f} %, "
              f"ratio {ratios[-1]:.1f}")
    print(f"median ratio {statistics.median(ratios):.1f} ({options.networks} networks, {options.images} images, "
          f"{torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
