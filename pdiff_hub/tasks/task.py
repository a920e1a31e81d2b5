"""`Task` and `Split`: images and labels in memory, normalised and augmented in batches.

Shape suffixes: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pdiff_hub.tasks.normalization import checked_normalize, statistics_of


@dataclass(frozen=True, eq=False)
class Split:
    """images_NCHW: uint8, 0..255 (`digits`: 16 grey levels, 0..240); or float32, if such images were given in Python,
    which networks get as they are. labels_N: int64, 0..num_classes - 1."""

    images_NCHW: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def to(self, device: torch.device | str) -> Split:
        """The split with its tensors on `device`."""
        return Split(self.images_NCHW.to(device), self.labels_N.to(device))


@dataclass(frozen=True, eq=False)
class Task:
    """Three disjoint splits of labelled square images; made by `load_task`.

    Attributes:
        spec: the complete, JSON-able spec: `load_task(task.spec)` gives the same task. `spec["resolved"]` records the
            source, the sizes of the splits, a sha256 fingerprint of their indices and labels, the class names, and
            the attributes below.
        mean: per channel, for pixels scaled to [0, 1]: over the training split, or what `normalize` asks for.
        std: the same for the standard deviation.
    """

    spec: dict[str, Any]
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    test: Split

    def inputs(self, split: Split, index: Tensor | slice | None = None) -> Tensor:
        """float32 [N, C, H, W]: the images of `split` (at `index`), less the mean and over the std."""
        images = split.images_NCHW if index is None else split.images_NCHW[index]
        scale = torch.tensor([1 / (255 * std) for std in self.std], device=images.device)
        shift = torch.tensor([-mean / std for mean, std in zip(self.mean, self.std, strict=True)], device=images.device)
        return images.to(torch.float32, copy=True).mul_(scale[:, None, None]).add_(shift[:, None, None])

    def normalized(self, normalize: str | Mapping[str, Any]) -> Task:
        """The task with its images normalised in another way, which its spec records: as the option of `load_task`."""
        option = checked_normalize(normalize)
        mean, std = statistics_of(option, self.in_channels)
        rest = {name: value for name, value in self.spec.items() if name not in ("normalize", "resolved")}
        resolved = {**self.spec.get("resolved", {}), "mean": list(mean), "std": list(std)}
        return replace(self, spec={**rest, "normalize": option, "resolved": resolved}, mean=mean, std=std)

    def augment(self, images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Mirrors each image with probability 1/2 and shifts it by up to `crop_padding` pixels, as the spec asks.

        Args:
            images_NCHW: what `inputs` returned. Pixels that come in from outside are black.
            generator: the only source of randomness. A task that does not augment draws nothing and copies nothing.
        """
        flip, padding = self.spec["augment"]["flip"], self.spec["augment"]["crop_padding"]
        if not flip and not padding:
            return images_NCHW
        num_images, num_channels, height, width = images_NCHW.shape
        device = images_NCHW.device
        rows_NH = torch.arange(height, device=device).expand(num_images, -1)
        columns_NW = torch.arange(width, device=device).expand(num_images, -1)
        if padding:
            shape = (2, num_images, 1)
            draws = torch.randint(-padding, padding + 1, shape, generator=generator, device=generator.device)
            rows_NH, columns_NW = rows_NH + draws[0].to(device), columns_NW + draws[1].to(device)
        if flip:
            draws = torch.randint(2, (num_images, 1), generator=generator, device=generator.device)
            columns_NW = torch.where(draws.to(device).bool(), width - 1 - columns_NW, columns_NW)
        image_N111 = torch.arange(num_images, device=device)[:, None, None, None]
        channel_C11 = torch.arange(num_channels, device=device)[:, None, None]
        row_N1H1 = rows_NH.clamp(0, height - 1)[:, None, :, None]
        column_N11W = columns_NW.clamp(0, width - 1)[:, None, None, :]
        moved_NCHW = images_NCHW[image_N111, channel_C11, row_N1H1, column_N11W]
        inside_NH = (rows_NH >= 0) & (rows_NH < height)
        inside_NW = (columns_NW >= 0) & (columns_NW < width)
        inside_N1HW = inside_NH[:, None, :, None] & inside_NW[:, None, None, :]
        black = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        return torch.where(inside_N1HW, moved_NCHW, images_NCHW.new_tensor(black)[:, None, None])

    def to(self, device: torch.device | str) -> Task:
        """The task with its three splits on `device`."""
        splits = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return replace(self, **splits)
