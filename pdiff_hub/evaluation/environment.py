"""What a measurement was made on: versions and machine, for whoever reads the numbers later."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

_PACKAGES = ("pdiff-hub", "torch", "diffusers", "accelerate", "datasets", "safetensors", "numpy", "scikit-learn")


def environment() -> dict[str, str | int | None]:
    """Versions by package, Python, the machine's kind and cores, torch's threads, the GPU if there is one."""
    return {
        **{package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
