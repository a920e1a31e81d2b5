"""How sure a mean over tasks is. Shapes: U tasks, R resamples."""

from __future__ import annotations

import torch
from torch import Tensor

from pdiff_hub.seeds import generator_of

_RESAMPLES = 2000


def interval(each_U: Tensor, seed: int, name: str) -> tuple[float, float]:
    """Ends of the 95 % bootstrap interval of the mean over tasks. name: of what is resampled, for the random stream."""
    rows_RU = torch.randint(
        len(each_U), (_RESAMPLES, len(each_U)), generator=generator_of(seed, f"bootstrap of {name}")
    )
    low, high = torch.quantile(each_U[rows_RU].mean(dim=1), torch.tensor([0.025, 0.975], dtype=each_U.dtype)).tolist()
    return low, high
