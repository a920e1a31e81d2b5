"""Random numbers of a block of code are decided by a seed, and nobody else's are changed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch, NumPy and Python inside the block, and restores the caller's generators afterwards.

    A user's factory may draw from any of them. CUDA is seeded only if it is already in use. Initialising it here would
    break processes that are forked later, and `torch.manual_seed` would leave behind a seed that CUDA takes when it
    starts.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    before, numpy_before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            if devices:
                torch.cuda.manual_seed_all(seed)
            yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)
