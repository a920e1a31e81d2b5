"""What is not generated is shared: all checkpoints of a set must have the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_COUNTERS = ("num_batches_tracked",)  # how often a network was used says nothing of what it computes


def is_counter(name: str) -> bool:
    """Whether the tensor only counts, so that each checkpoint may have its own, and that of the first is kept."""
    return name.rpartition(".")[2] in _COUNTERS


def first_difference(shared: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor of `shared` that is another in `other`; None if all but counters are equal."""
    for name, tensor in shared.items():
        if not is_counter(name) and not torch.equal(tensor.cpu(), other[name].cpu()):
            return name
    return None


def remedy(tensor: Tensor) -> str:
    """What to do about a tensor that differs and is not selected."""
    if tensor.is_floating_point() or tensor.is_complex():
        return "select it too (buffers=True for buffers)"
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"it is {kind}, and only float tensors are generated, so it must be the same in all checkpoints"
