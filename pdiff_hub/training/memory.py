"""Keeping what a process holds from the system close to what it uses."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's mallopt
_LARGE_BYTES = 1 << 20


def return_large_tensors() -> None:
    """From now on the memory of a tensor over 1 MiB goes back to the system when it is freed. Linux with glibc only.

    glibc raises that limit to 32 MiB by itself. Freed pieces below it stay with the process, and small objects that
    settle in them make the next piece take new memory: 32 MB a slice of a network, measured.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
