"""`FinetuneConfig`: how checkpoints of one fine-tuned network are trained and kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pdiff_hub.errors import PdiffError


@dataclass(frozen=True)
class FinetuneConfig:
    """One network is trained, then trained further while snapshots are kept.

    Args:
        num_checkpoints (at least 2): how many checkpoints are kept.
        save_every (at least 1): steps of the second phase from one checkpoint to the next.
        epochs (at least 0): of the first phase; with 0, collecting starts from the initial or pretrained weights.
        batch_size (at least 1): at most the number of training images is used; the last incomplete batch of an epoch is
            left out.
        learning_rate (above 0): of AdamW in the first phase: the peak of a linear warm-up followed by half a cosine.
        finetune_learning_rate (above 0): of a fresh AdamW in the second phase; constant.
        weight_decay (at least 0): of both phases.
        buffers: whether running statistics are collected, too; null: only if `select` is all.
        label_smoothing (at least 0, below 1): of both phases. With 0, a network that has learned its images by heart
            gets hardly a gradient any more, so that its checkpoints stand still after a few large steps, and are no
            distribution that could be learned (docs/measurements.md, "Copying"). The paper's setting is 0.
        mixed_precision ("no", "auto" or "bf16"): of both phases. bf16: the network computes in bfloat16 where
            `torch.autocast` does; its weights stay float32, and it is judged in float32. auto: bf16 on an x86 CPU with
            instructions for it (a ResNet-18 is collected 1.2 to 1.4 times as fast), else no, on a GPU too; a set that
            was begun goes on as it began. So other machines collect other checkpoints.

    Raises ValueError naming the option that is out of range.
    """

    num_checkpoints: int = 200
    save_every: int = 5
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 3e-3
    finetune_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    buffers: bool | None = None
    label_smoothing: float = 0.1
    mixed_precision: str = "no"

    def __post_init__(self) -> None:
        for option, least in (("num_checkpoints", 2), ("save_every", 1), ("epochs", 0), ("batch_size", 1)):
            if type(value := getattr(self, option)) is not int or value < least:
                raise PdiffError(f"{option} must be an integer from {least}, found {value!r}")
        for option in ("learning_rate", "finetune_learning_rate", "weight_decay", "label_smoothing"):
            value, rate, below = getattr(self, option), option.endswith("rate"), 1 if "label" in option else math.inf
            if type(value) not in (int, float) or not (0 < value < below or (value == 0 and not rate)):
                wanted = "above 0" if rate else "from 0" + " and below 1" * (below == 1)
                raise PdiffError(f"{option} must be a number {wanted}, found {value!r}")
        if not isinstance(self.buffers, bool | None):
            raise PdiffError(f"buffers must be true, false or null, found {self.buffers!r}")
        if self.mixed_precision not in ("no", "auto", "bf16"):
            raise PdiffError(f"mixed_precision must be 'no', 'auto' or 'bf16', found {self.mixed_precision!r}")
