"""Reads a state dict from a file that somebody else wrote, without running code that the file may contain."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub.errors import PdiffError

SUFFIXES = (".safetensors", ".pt", ".pth")
# What torch.load raises for a damaged file depends on where the damage is.
_DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    OverflowError,
)


def read_state_dict(path: Path, where: str, key: str | None = None, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a .safetensors (memory-mapped), .pt or .pth file, on the CPU.

    Errors call the file `where`. `key` is the entry that holds the state dict, if another dict is around it. `prefix`
    is removed from the front of every name. Nothing is guessed: ValueError names what the file has instead, or says
    that it is truncated, a pickle under another name, or refused because reading it could run code.
    """
    state = _state_dict(_read(path, where), key, where)
    for name in state:
        if not name.startswith(prefix):
            raise PdiffError(f"{where}: tensor {name!r} does not begin with the prefix {prefix!r}.")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _read(path: Path, where: str) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            with path.open("rb") as file:
                pickled = file.read(1) == b"\x80" or zipfile.is_zipfile(path)
            what = (
                "is a pickle (torch.save), not safetensors: call it .pt"
                if pickled
                else f"is truncated or not a safetensors file ({error})"
            )
            raise PdiffError(f"{where} {what}.") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        if "GLOBAL" in str(error):  # it names something that is not a tensor; a truncated file may do so too
            raise PdiffError(
                f"{where} is damaged or holds more than tensors, and reading it could run code in it: "
                "refused. If you trust it, load it yourself and save its state dict as safetensors."
            ) from error
        reason = f"{error}".strip().splitlines()[0][:200] if f"{error}".strip() else type(error).__name__
        raise PdiffError(f"{where} is truncated or not a file of torch.save ({reason}).") from error


def _state_dict(content: Any, key: str | None, where: str) -> dict[str, Tensor]:
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            found = list(content)[:8] if isinstance(content, Mapping) else f"a {type(content).__name__}"
            raise PdiffError(f"{where} has no {key!r}; it has {found}.")
        content = content[key]
    if not isinstance(content, Mapping):
        raise PdiffError(f"{where} holds a {type(content).__name__}, expected a state dict.")
    for name, value in content.items():
        if not isinstance(name, str):
            raise PdiffError(f"{where}: {name!r} is no name of a tensor; expected a state dict.")
        if not isinstance(value, Tensor):
            inner = [each for each, held in content.items() if isinstance(held, Mapping)]
            hint = f"; if the state dict is inside, give its key: one of {inner}" if inner else ""
            raise PdiffError(f"{where}: {name!r} is a {type(value).__name__}, expected a tensor{hint}.")
    return dict(content)
