"""Seeds out of seeds: every random choice has a stream of its own, which follows from (seed, use, index) alone."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*key: int | str) -> int:
    """A seed below 2**56 for each key, such as (seed, "step", number), unlike that of any other key.

    Hashed, because torch keeps only the lowest 32 bits of a seed, in which sums and shifts of numbers would collide.
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:7])


def generator_of(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` that begins at the seed of this key."""
    return torch.Generator(device).manual_seed(derived_seed(*key))
