"""The options of networks that have a name, with their defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class MlpOptions:
    """Linear layers with ReLU between them, one more than there are hidden widths.

    Attributes:
        hidden (1 to 1000 of them, each at least 1): the widths of the hidden layers.
    """

    hidden: Sequence[int] = (32,)


@dataclass(frozen=True)
class Mlp3Options:
    """Three linear layers with ReLU between them.

    Attributes:
        hidden (two, each at least 1): the widths of the hidden layers.
    """

    hidden: Sequence[int] = (64, 64)


@dataclass(frozen=True)
class Convnet3Options:
    """Three 3x3 convolutions and one linear layer.

    Attributes:
        widths (three, each at least 1): channels of each convolution.
        norm ("none", "batch" or "group"): the layer after each convolution.
        downsample ("max_pool" or "stride"): how the map is halved, while it is at least 4 pixels wide.
        global_pool: whether the last map is averaged before the linear layer. Flattened it is more accurate on small
            images.
    """

    widths: Sequence[int] = (8, 16, 16)
    norm: str = "none"
    downsample: str = "max_pool"
    global_pool: bool = False


@dataclass(frozen=True)
class ResnetOptions:
    """Image classifiers of transformers, for which it must be installed.

    Attributes:
        pretrained: a Hub id or a folder with weights of this architecture; null: random weights.
        revision: of the Hub id: a branch, tag or commit.
        small_images: a 3x3 stem without max-pool. null: for images of up to 64 pixels without `pretrained`.
        stem_stride (1 or 2; 1 with small_images only): of the first convolution. null: 1 with small_images, else 2.
    """

    pretrained: str | None = None
    revision: str | None = None
    small_images: bool | None = None
    stem_stride: int | None = None


@dataclass(frozen=True)
class PatchOptions:
    """Image classifiers of transformers, for which it must be installed.

    Attributes:
        pretrained: a Hub id or a folder with weights of this architecture; null: random weights.
        revision: of the Hub id: a branch, tag or commit.
        patch_size (at least 1; of a ViT, a divisor of the images' side): side in pixels. null: that of `pretrained`, or
            the largest usual one that leaves 7 patches across (ConvNeXt: 8).
    """

    pretrained: str | None = None
    revision: str | None = None
    patch_size: int | None = None


SMALL: Mapping[str, type[Any]] = {"mlp": MlpOptions, "mlp3": Mlp3Options, "convnet3": Convnet3Options}


def defaults(options: type[Any]) -> dict[str, Any]:
    """The options and their defaults, as JSON holds them."""
    given = {each.name: each.default for each in fields(options) if each.default is not MISSING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
