"""The images of a fine-tune, in batches that depend only on the seed, the phase and the step.

Shapes: N images, B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pdiff_hub.seeds import derived_seed, generator_of
from pdiff_hub.tasks import Split, Task

_MAX_RESIDENT_BYTES = 1 << 30  # smaller splits are kept as float images; larger ones are converted batch by batch
_MAX_BATCH_VALUES = 2 << 20  # numbers per batch of images that are not trained on


class ImageBatches:
    """The task's images on one device, in batches that depend only on (seed, phase, step)."""

    def __init__(self, task: Task, batch_size: int, seed: int, device: torch.device):
        self.task, self.device, self._seed = task, device, seed
        self._train, self._validation = task.train.to(device), task.validation.to(device)
        self.batch_size = min(batch_size, len(self._train))
        self.steps_per_epoch = len(self._train) // self.batch_size
        self._resident = {
            id(split): task.inputs(split)
            for split in (self._train, self._validation)
            if 4 * split.images_NCHW.numel() < _MAX_RESIDENT_BYTES
        }
        self._order: tuple[tuple[str, int], Tensor] | None = None

    @property
    def augments(self) -> bool:
        """Whether a training image looks different from one step to the next."""
        probe_BCHW = self._inputs(self._train, slice(0, 1))
        return self.task.augment(probe_BCHW, torch.Generator()) is not probe_BCHW

    def index(self, phase: str, step: int) -> Tensor:
        """Which training images a step sees: int64 [B] on the device."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != (phase, epoch):
            order_N = torch.randperm(len(self._train), generator=generator_of(self._seed, phase, "order", epoch))
            self._order = (phase, epoch), order_N.to(self.device)
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def batch(self, phase: str, step: int) -> tuple[Tensor, Tensor]:
        """Augmented inputs and labels of a step. Also seeds torch's own generators, which dropout draws from."""
        index_B = self.index(phase, step)
        inputs_BCHW = self.task.augment(
            self._inputs(self._train, index_B), generator_of(self._seed, phase, "augment", step)
        )
        self.seed_dropout(phase, step)
        return inputs_BCHW, self._train.labels_N[index_B]

    def seed_dropout(self, phase: str, step: int) -> None:
        """Seeds torch's own generators for a step."""
        # Not torch.manual_seed: it would also leave a seed behind for CUDA where CUDA is not in use yet.
        dropout = derived_seed(self._seed, phase, "dropout", step)
        torch.default_generator.manual_seed(dropout)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(dropout)

    def validation_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All validation images in order, and their labels."""
        return self._in_order(self._validation)

    def train_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All training images in order, without augmentation, and their labels."""
        return self._in_order(self._train)

    def _in_order(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        size = min(1024, max(16, _MAX_BATCH_VALUES // split.images_NCHW[0].numel()))
        for start in range(0, len(split), size):
            yield self._inputs(split, slice(start, start + size)), split.labels_N[start : start + size]

    def _inputs(self, split: Split, index: Tensor | slice) -> Tensor:
        return self._resident[id(split)][index] if id(split) in self._resident else self.task.inputs(split, index)
