"""Whether torch can use a device here, and how much work a device gets at once."""

from __future__ import annotations

import torch

from pdiff_hub.errors import PdiffError, require

# Larger pieces: a piece costs milliseconds of Python, in which a GPU does what a CPU's cache holds a hundred times.
_ACCELERATOR_FACTOR = 256
_DRAWN_FACTOR = 4  # of pieces for which random numbers are drawn
_SHARE = 16  # of an accelerator's free memory, at most, for one piece


def require_device(device: str | torch.device, option: str) -> None:
    """PdiffError, which names the option, if torch cannot compute on this device."""
    require(isinstance(device, str | torch.device), option, device, "the name of a device, such as cpu or cuda")
    try:
        torch.ones(1, device=device).item()  # "meta" holds no numbers
    # Which error it is differs between devices: a missing GPU, a build without it, a library that is not installed.
    except (RuntimeError, AssertionError, ImportError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PdiffError(f"{option} {device} cannot be used here: {reason}; give cpu, or cuda with a GPU.") from error


def at_once(num_bytes: int, device: torch.device) -> int:
    """How many bytes to work on at once where `num_bytes` are right for a CPU."""
    if device.type == "cpu":
        return num_bytes
    return max(num_bytes, min(_ACCELERATOR_FACTOR * num_bytes, free_bytes(device) // _SHARE))


def at_once_drawn(num_bytes: int, device: torch.device) -> int:
    """As `at_once`, but the same at every call: how numbers are drawn must not depend on what else takes memory."""
    return num_bytes if device.type == "cpu" else _DRAWN_FACTOR * num_bytes


def free_bytes(device: torch.device) -> int:
    """The memory of an accelerator that nobody uses; of one that does not tell it, 4 GiB."""
    if device.type != "cuda":
        return 4 << 30
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for its next tensors
    return torch.cuda.mem_get_info(device)[0] + kept


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64, in which distances and other sums are taken."""
    try:
        torch.ones(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):  # which of the two differs between devices
        return False
    return True


def multiplies_bf16(device: torch.device) -> bool:
    """Whether this is an x86 CPU with instructions that multiply bfloat16, as far as torch tells; else False.

    Without them a CPU makes float32 of each number, which takes longer than float32 does. torch tells it in
    `torch.cpu.get_capabilities`, which older versions do not have: https://docs.pytorch.org/docs/main/cpu.html
    On ARM it was not measured.
    """
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))
