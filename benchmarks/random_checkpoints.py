"""Checkpoints for measuring time: random perturbations of one random MLP, which say nothing about quality."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_DIRECTIONS = 16  # as many principal components as a pipeline takes at least


def random_checkpoints(hidden: Sequence[int], num_checkpoints: int) -> CheckpointDataset:
    """An `mlp3` for images of 28 x 28 with these two hidden layers, moved along 16 random directions."""
    spec = resolve_network({"name": "mlp3", "hidden": list(hidden)}, in_channels=1, image_size=28, num_classes=10)
    network = build_network(spec)
    layout = ParamLayout.from_module(network)
    generator = torch.Generator().manual_seed(0)
    mixing_KD = torch.randn(num_checkpoints, _DIRECTIONS, generator=generator)
    directions_DP = 0.002 * torch.randn(_DIRECTIONS, layout.num_params, generator=generator)
    return CheckpointDataset(layout.flatten(network.state_dict()) + mixing_KD @ directions_DP, layout, network=spec)
