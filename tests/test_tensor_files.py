"""A safetensors file from elsewhere is what its header says, or is refused in one sentence that names it."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files import read_json
from pdiff_hub.safe_files.tensors import DTYPES, all_finite, read_header, read_tensors, require_finite

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor(3),
    "c": torch.ones(2, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False, True]),
    "z": torch.tensor([1 + 2j], dtype=torch.complex64),
}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(file: Path, header: object, numbers: int = 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(numbers))
    return file


def test_a_whole_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})
    stored = read_header(tmp_path / "x.safetensors")
    assert {name: (each.dtype, each.shape) for name, each in stored.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()
    }
    read = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items()) and len(read) == len(TENSORS)
    assert str(stored["a"]) == "float32 [2, 3]"


def test_every_type_that_the_library_writes(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(3).to(dtype) for name, dtype in DTYPES.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert {name: stored.dtype for name, stored in read_header(tmp_path / "x.safetensors").items()} == DTYPES
    require_finite(tmp_path / "x.safetensors", read_tensors(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": {**ENTRY, "shape": [1]}}, r"'a' is float32 \[1\], and has 8 bytes"),
        ({"a": {**ENTRY, "data_offsets": [0, 4]}}, "claims 4 bytes of numbers, and it has 8"),
        ({"a": {**ENTRY, "shape": [2, 10**12]}}, r"and has 8 bytes"),
        ({"a": {**ENTRY, "dtype": "F64"}}, r"'a' is float64 \[2\], and has 8 bytes"),
        ({"a": {**ENTRY, "dtype": "F3"}}, r"of type 'F3', expected one of F64"),
        ({"a": {**ENTRY, "shape": [2.0]}}, "is no tensor"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, "is no tensor"),
        ({"a": {**ENTRY, "shape": [-2]}}, "is no tensor"),
        ({"a": {**ENTRY, "data_offsets": [8]}}, "is no tensor"),
        ({"a": []}, "is no tensor"),
        ({"a": ENTRY, "b": ENTRY}, "'b' begins at byte 0, expected 8"),
        ({"a": {**ENTRY, "shape": [1], "data_offsets": [4, 8]}}, "'a' begins at byte 4, expected 0"),
        ({}, "claims 0 bytes of numbers, and it has 8"),
        ({"a" * 501: ENTRY}, "is longer than 500 letters"),
        ([], "its header is list, expected an object"),
        (b"[" * 100_000, "its header is not JSON"),
        (b"{" + b"9" * 5000, "its header is not JSON"),
        (b"\xff{}", "its header is not JSON"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: object, why: str) -> None:
    file = write(tmp_path / "x.safetensors", header)
    with pytest.raises(PdiffError, match=rf"^{file} is damaged or no safetensors file: .*{why}"):
        read_tensors(file)


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", 2**30))
        opened.truncate(2**31)
    with pytest.raises(PdiffError, match=r"its header has 1,073,741,824 bytes, expected at most"):
        read_header(file)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        for read in (read_header, read_json):
            with pytest.raises(PdiffError, match=rf"{name} is no regular file"):
                read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_header(tmp_path / "none")
    (tmp_path / "link").symlink_to(write(tmp_path / "x.safetensors", {"a": ENTRY}))  # as in the Hub's cache
    assert list(read_header(tmp_path / "link")) == ["a"]


def test_a_text_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as opened:
        opened.truncate(2**40)
    with pytest.raises(PdiffError, match=r"x\.json has more than 16,777,216 bytes"):
        read_json(tmp_path / "x.json")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_file_is_refused_or_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("x") / "x.safetensors"
    save_file(TENSORS, file, {"format": "pt"})
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, 7, 0]))])
    try:
        stored, read = read_header(file), load_file(file)
    except (PdiffError, SafetensorError, RuntimeError):
        with pytest.raises(PdiffError, match=rf"^{file} is damaged or no safetensors file: [^\n]*$"):
            read_tensors(file)
        return
    assert {name: (each.dtype, tuple(each.shape)) for name, each in read.items()} == {
        name: (each.dtype, each.shape) for name, each in stored.items()
    }


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_numbers_are_finite(tmp_path: Path, odd: float, dtype: torch.dtype) -> None:
    tensor: Any = torch.zeros(3, 5, dtype=dtype)
    released: list[torch.Tensor] = []
    require_finite(tmp_path / "x", {"fine": tensor}, released.append)
    assert released == [tensor]
    tensor[1, 2] = odd
    assert not all_finite(tensor)
    with pytest.raises(PdiffError, match=r"x: tensor 'odd' holds NaN or infinity"):
        require_finite(tmp_path / "x", {"odd": tensor})
