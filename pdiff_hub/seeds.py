"""Seeds derived from seeds: each random choice has its own stream, which depends only on (seed, use, index)."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*key: int | str) -> int:
    """A seed below 2**56 that differs for each key, such as (seed, "step", number).

    The key is hashed because torch keeps only the lowest 32 bits of a seed, where sums and shifts of numbers collide.
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:7])


def generator_of(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` with the seed derived from this key."""
    return torch.Generator(device).manual_seed(derived_seed(*key))
