"""Records the outputs that `prefix_cache` shares for a whole set of images, and serves any batch of them.

Shapes: N images, B of them in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pdiff_hub.networks.prefix_cache import Answers, Forward, PrefixPlan, changed, record, tensors_in


@dataclass(frozen=True)
class Recording:
    """The outputs of the shared modules for many images. `record_all` makes it; `answers` serves any batch of them.

    kept: tensors [N, ...] per module. skipped: NaN per module, in the shape of one image's output.
    """

    kept: Mapping[str, Any]
    skipped: Mapping[str, Any]

    def answers(self, index_B: Tensor) -> Answers:
        """What `serve` needs for the images `index_B`: int64 [B], each 0..N-1."""

        def of_batch(tensor: Tensor) -> Tensor:
            return tensor.expand(len(index_B), *tensor.shape[1:])

        kept = {name: partial(changed, output, lambda tensor: tensor[index_B]) for name, output in self.kept.items()}
        return kept | {name: partial(changed, output, of_batch) for name, output in self.skipped.items()}


def record_all(
    network: nn.Module, plan: PrefixPlan, forward: Forward, state: Mapping[str, Tensor], batches: Iterable[Tensor]
) -> Recording | None:
    """`record` for many images, batch after batch. None if nothing is shared, or an output lacks one row per image.

    Takes `plan.kept_bytes` per image, and as much again while the batches are joined.
    """
    parts: list[Answers] = []
    for inputs_NCHW in batches:
        parts.append(record(network, plan, forward, state, inputs_NCHW))
        sizes = {len(tensor) if tensor.ndim else 0 for answer in parts[-1].values() for tensor in tensors_in(answer())}
        if sizes != {len(inputs_NCHW)}:
            return None
    if not parts:
        return None
    kept = {name: _concatenated([part[name]() for part in parts]) for name in plan.kept}
    return Recording(kept, {name: changed(parts[0][name](), lambda tensor: tensor[:1]) for name in plan.skipped})


def _concatenated(outputs: Sequence[Any]) -> Any:
    """Joins the outputs of several batches into one output for all their images."""
    return tree_map(lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0], *outputs)


def same_outputs(one: Answers, other: Answers) -> bool:
    """Whether two recordings of the same images agree to float tolerance."""
    return one.keys() == other.keys() and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        for name in one
        for a, b in zip(tensors_in(one[name]()), tensors_in(other[name]()), strict=True)
    )
