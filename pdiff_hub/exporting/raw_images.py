"""Modules that are exported: they take images as they are, and give one answer for each.

Shapes: M networks, N images (N x C x H x W), c classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pdiff_hub.networks import logits
from pdiff_hub.networks.stacked import mean_log


class RawImages(nn.Module):
    """A network behind its normalisation: uint8 images [N, C, H, W], 0 to 255 -> float32 logits [N, c].

    It takes bytes only: floats that are scaled in another way would be answered as surely, and less rightly.

    Args:
        network: takes normalised images. mean, std: of each channel, for pixels scaled to [0, 1].
    """

    scale_C11: Tensor
    shift_C11: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        # As `Task.inputs` does it, to the last bit.
        self.register_buffer("scale_C11", torch.tensor([1 / (255 * each) for each in std])[:, None, None])
        shift = [-middle / each for middle, each in zip(mean, std, strict=True)]
        self.register_buffer("shift_C11", torch.tensor(shift)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        inputs_NCHW = images.to(torch.float32) * self.scale_C11 + self.shift_C11
        return logits(self.network(inputs_NCHW)).to(torch.float32)


class MeanProbabilities(nn.Module):
    """Several networks as one: what `networks` answers, [M, N, c], -> logarithms of the mean probabilities [N, c].

    They are logits like any other: softmax gives the probabilities.
    """

    def __init__(self, networks: nn.Module):
        super().__init__()
        self.networks = networks

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return mean_log(self.networks(images_NCHW).log_softmax(dim=2))
