"""Checkpoints for measuring time. They are random perturbations of one random MLP and say nothing about quality."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_DIRECTIONS = 16  # a pipeline takes at least this many principal components


def random_checkpoints(hidden: Sequence[int], num_checkpoints: int) -> CheckpointDataset:
    """Checkpoints of an `mlp3` for images of 28 x 28: one network, moved along 16 random directions.

    hidden: the widths of its two hidden layers.
    """
    spec = resolve_network({"name": "mlp3", "hidden": list(hidden)}, in_channels=1, image_size=28, num_classes=10)
    network = build_network(spec)
    layout = ParamLayout.from_module(network)
    generator = torch.Generator().manual_seed(0)
    mixing_KD = torch.randn(num_checkpoints, _DIRECTIONS, generator=generator)
    directions_DP = 0.002 * torch.randn(_DIRECTIONS, layout.num_params, generator=generator)
    return CheckpointDataset(layout.flatten(network.state_dict()) + mixing_KD @ directions_DP, layout, network=spec)
