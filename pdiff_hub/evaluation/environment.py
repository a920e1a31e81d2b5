"""The versions and the machine that a measurement was made with, for later readers of the numbers."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

_PACKAGES = ("pdiff-hub", "torch", "diffusers", "accelerate", "datasets", "safetensors", "numpy", "scikit-learn")


def environment() -> dict[str, str | int | None]:
    """Package versions, Python version, kind of machine, cores, threads of torch, and the GPU if there is one."""
    return {
        **{package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
