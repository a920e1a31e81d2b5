"""Reading safetensors files that somebody else may have written. What a file claims is checked before it is used.

The library checks that tensors fit the file. Here an error also names the file, the file must be a regular one (a named
pipe or a device never ends), and a long header costs no more memory than a short one.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub.errors import PdiffError, one_line, shortened
from pdiff_hub.safe_files import open_regular

MOST_LETTERS = 500
"""Of the name of a tensor. No network has longer ones, and they would fill every message."""
_MOST_HEADER_BYTES = 1 << 23  # of 10,000 tensors it has about 2 MB; Python takes some 20 times as much to read it
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "C64": torch.complex64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
"""The types of a header that are read."""


@dataclass(frozen=True)
class Stored:
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def read_header(file: Path) -> dict[str, Stored]:
    """What a safetensors file holds, by name; no number is read.

    Raises:
        PdiffError: names a file that is no regular file, or whose header is none or does not fit the file: a shape or
            type that does not fit the bytes, tensors that overlap or leave a hole, a file of another size.
        FileNotFoundError: there is no such file.
    """
    header, length, size = _read(file)
    header.pop("__metadata__", None)
    if long := [name for name in header if len(name) > MOST_LETTERS]:
        raise _damaged(file, f"a tensor's name, {shortened(long[0])}, is longer than {MOST_LETTERS} letters")
    spans = {name: _span(file, name, entry) for name, entry in header.items()}
    if (claimed := max((end for _, end in spans.values()), default=0)) != size - 8 - length:
        raise _damaged(file, f"its header claims {claimed:,} bytes of numbers, and it has {size - 8 - length:,}")
    position = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            raise _damaged(file, f"tensor {name!r} begins at byte {begin:,}, expected {position:,}")
        position = end
    return {name: _stored(file, name, entry) for name, entry in header.items()}


def read_metadata(file: Path) -> dict[str, str]:
    """The texts that a safetensors file says of itself; empty if there are none. Errors as in `read_header`."""
    said = _read(file)[0].get("__metadata__") or {}
    if not isinstance(said, dict) or not all(isinstance(each, str) for each in said.values()):
        raise _damaged(file, "its metadata are not texts")
    return said


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, memory-mapped. Errors as in `read_header`."""
    read_header(file)
    try:
        return load_file(file)
    except (SafetensorError, RuntimeError) as error:
        raise _damaged(file, one_line(error)) from error


def require_weights(file: Path, name: str) -> None:
    """PdiffError unless the weights of `name`, a file of safetensors, are there."""
    if not file.is_file():
        raise PdiffError(
            f"{name} has no {file.name}. Weights in another format are not opened, because reading a pickle can run "
            "code; ask its author for safetensors."
        )


def require_finite(file: Path, tensors: Mapping[str, Tensor], release: Callable[[Tensor], None] | None = None) -> None:
    """PdiffError names file and tensor if a number is NaN or infinite. release: called with each tensor once read."""
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise PdiffError(
                f"{file}: tensor {name!r} holds NaN or infinity, expected finite numbers; restore the file, or ask its "
                "author for one that is whole."
            )
        if release is not None:
            release(tensor)


def all_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; true of integers, and of nothing."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    numbers = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if numbers.element_size() == 1:  # eight bits know no order
        numbers = numbers.float()
    # An extreme is not finite exactly if some number is not; finding the extremes takes one pass and no memory.
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(numbers))


def _read(file: Path) -> tuple[dict[str, Any], int, int]:
    """A header, how many bytes it has, and how many the file has."""
    with open_regular(file) as opened:
        size = opened.seek(0, 2)
        opened.seek(0)
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise _damaged(
                file, f"its header claims {length:,} bytes, and the file has {size:,}" if start else "it is empty"
            )
        if length > _MOST_HEADER_BYTES:
            raise _damaged(file, f"its header has {length:,} bytes, expected at most {_MOST_HEADER_BYTES:,}")
        text = opened.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(file, f"its header is {type(header).__name__}, expected an object")
    return header, length, size


def _span(file: Path, name: str, entry: Any) -> tuple[int, int]:
    """The bytes from ... to that a header's entry claims."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, span = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _whole_numbers(shape) or not _whole_numbers(span) or len(span) != 2:
        raise _damaged(file, f"its header says of tensor {name!r} {str(entry)[:80]!r}, which is no tensor")
    return span[0], span[1]


def _stored(file: Path, name: str, entry: dict[str, Any]) -> Stored:
    """What a header's entry says, if it fits the bytes that it claims."""
    if entry["dtype"] not in DTYPES:
        raise _damaged(file, f"tensor {name!r} is of type {entry['dtype']!r}, expected one of {', '.join(DTYPES)}")
    stored = Stored(DTYPES[entry["dtype"]], tuple(entry["shape"]))
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(stored.shape) * stored.dtype.itemsize:
        raise _damaged(file, f"tensor {name!r} is {stored}, and has {end - begin:,} bytes")
    return stored


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    """Whether `value` is a list of some numbers that a file of any size could have."""
    return isinstance(value, list) and len(value) <= 64 and all(type(e) is int and 0 <= e < 2**63 for e in value)


def _damaged(file: Path, why: str) -> PdiffError:
    return PdiffError(f"{file} is damaged or no safetensors file: {why}.")
