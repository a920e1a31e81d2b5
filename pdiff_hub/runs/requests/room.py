"""Room for many whole networks: of large ones, a file's, which the system reads and writes as it has memory."""

from __future__ import annotations

import math
import os
import sys
import tempfile

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError

_MOST_BYTES = 1 << 30  # that are simply memory


def room(*shape: int) -> Tensor:
    """A float32 tensor on the CPU, to be filled.

    What is larger than 1 GiB lies in a file in the folder for temporary files. It has no name, so it is gone with the
    tensor, however the process ends. PdiffError if the disk has no room for it.
    """
    size = 4 * math.prod(shape)
    if size <= _MOST_BYTES or sys.platform == "win32":  # which cannot remove a file that is in use
        return torch.empty(shape)
    with tempfile.NamedTemporaryFile(prefix="pdiff-networks-") as file:
        try:
            _take(file.fileno(), size)
        except OSError as error:
            raise PdiffError(
                f"networks to judge take {size / 1e9:.1f} GB, which could not be laid out in {tempfile.gettempdir()} "
                f"({error.strerror}); make room there, or name another folder in the environment variable TMPDIR."
            ) from None
        return torch.from_file(file.name, shared=True, size=math.prod(shape)).view(shape)


def _take(descriptor: int, size: int) -> None:
    """Makes the file so large that every byte has its place: else a disk that is full ends the process later on."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, 1 << 24):
        os.write(descriptor, bytes(min(1 << 24, size - start)))
