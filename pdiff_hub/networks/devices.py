"""Whether torch can use a device here."""

from __future__ import annotations

import torch

from pdiff_hub.errors import PdiffError, require


def require_device(device: str | torch.device, option: str) -> None:
    """PdiffError, which names the option, if torch cannot compute on this device."""
    require(isinstance(device, str | torch.device), option, device, "the name of a device, such as cpu or cuda")
    try:
        torch.ones(1, device=device).item()  # "meta" holds no numbers
    # Which error it is differs between devices: a missing GPU, a build without it, a library that is not installed.
    except (RuntimeError, AssertionError, ImportError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PdiffError(f"{option} {device} cannot be used here: {reason}; give cpu, or cuda with a GPU.") from error
