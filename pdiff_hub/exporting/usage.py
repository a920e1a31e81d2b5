"""`Usage`: what one must know to use a network without this package. It is written beside and into its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pdiff_hub.networks import build_network
from pdiff_hub.networks.small import NAMES
from pdiff_hub.tasks import described_pixels

SAFETENSORS, TORCH_EXPORT, ONNX = "safetensors", "torch-export", "onnx"
SUFFIXES = {SAFETENSORS: ".safetensors", TORCH_EXPORT: ".pt2", ONNX: ".onnx"}
"""The formats of files, with their suffixes. Those after the first hold a program with its weights."""
INPUT, OUTPUT = "images", "logits"
"""What a program calls its input and its output."""
KEY = "pdiff_hub"
"""Under which files hold the facts about their network, as JSON."""


@dataclass(frozen=True)
class Usage:
    """What one must know to use a network. Nothing here may be private: it is written into files that people share.

    Attributes:
        network: the complete spec of the architecture; None if it is not known.
        mean, std: of each channel, for pixels scaled to [0, 1]; None if it is not known how images are normalised.
        class_names: of the answers, in the order of the logits; None if they are not known.
        task: the complete spec of the images that the network is for; None if it is not known.
    """

    network: Mapping[str, Any] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...] | None
    task: Mapping[str, Any] | None

    def to_dict(self, format: str = SAFETENSORS, num_averaged: int = 1) -> dict[str, Any]:
        """JSON-able. What goes into a file of this format and comes out, what that means, and of which network.

        num_averaged: how many networks a program averages.
        """
        spec = dict(self.network or {})
        side = spec.get("image_size")
        facts: dict[str, Any] = {"format": format, "network": self.network, "torch": self.torch_code()}
        pixels: dict[str, Any] = {"mean": self.mean and list(self.mean), "std": self.std and list(self.std)}
        if self.task is not None:
            pixels["pixels"] = described_pixels(self.task)
        shape = {"shape": ["N", spec.get("in_channels"), side, side]}
        if format == SAFETENSORS:
            facts["input"] = {**shape, "dtype": "float32", "normalized": "(pixel / 255 - mean) / std", **pixels}
        else:
            inside = "by the file itself: (pixel / 255 - mean) / std"
            facts["input"] = {"name": INPUT, **shape, "dtype": "uint8", "normalized": inside, **pixels}
        meaning = "logits" if num_averaged == 1 else f"logarithms of the mean probabilities of {num_averaged} networks"
        facts["output"] = {"name": OUTPUT, "shape": ["N", spec.get("num_classes")], "meaning": meaning}
        facts["class_names"] = self.class_names and list(self.class_names)
        facts["task"] = self.task
        return facts

    def torch_code(self) -> str | None:
        """The architecture in plain torch, for Python with `nn` and `OrderedDict`; None if its layers are not enough.

        A network from transformers is made by that library, one's own by the function that the spec names.
        """
        if self.network is None or self.network.get("name") not in NAMES:
            return None
        layers = build_network(self.network).named_children()
        return f"nn.Sequential(OrderedDict([{', '.join(map(_line, layers))}]))"


def _line(layer: tuple[str, nn.Module]) -> str:
    # What torch prints for one of its layers is the call that makes it.
    return f'("{layer[0]}", nn.{layer[1]!r})'
