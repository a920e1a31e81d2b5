"""Two requests to the system that keep the memory a process holds close to the memory it uses.

Peaks on two cores with 10 checkpoints (docs/measurements.md): training a generator of 100 million numbers takes
1,116 MiB with both requests and 3,700 MiB without `return_large_tensors`. Training one of 30 million takes 849 MiB with
both and 1,665 MiB without `give_back`; sampling a network from it takes 636 and 1,660 MiB.
"""

from __future__ import annotations

import ctypes
import os
import sys

from torch import Tensor

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's mallopt
_LARGE_BYTES = 1 << 20
_PAGE_OUT = 21  # MADV_PAGEOUT of Linux


def return_large_tensors() -> None:
    """From now on, a tensor over 1 MiB gives its memory back to the system when it is freed. Linux with glibc only.

    By itself, glibc raises that limit to 32 MiB. The process then keeps freed pieces below 32 MiB, and small objects
    settle in them. So the next piece takes new memory: 32 MB per slice of a network, measured.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back(tensor: Tensor) -> None:
    """Lets the system take back the memory of a tensor in a memory-mapped file; reading the tensor loads it again.

    It changes no content, and has no effect if the system does not support it.
    """
    if sys.platform == "linux" and tensor.device.type == "cpu":
        page = os.sysconf("SC_PAGE_SIZE")
        first = -(-tensor.data_ptr() // page) * page
        length = (tensor.data_ptr() + tensor.nbytes) // page * page - first
        if length > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _PAGE_OUT)
