"""Files of state dicts from elsewhere are read without running code, and errors say what is wrong with them."""

from __future__ import annotations

import argparse
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pdiff_hub.collect.importing.weight_files import read_state_dict

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
FORMS = ["safetensors", "zip", "legacy"]


def write(folder: Path, form: str) -> Path:
    if form == "safetensors":
        save_file(STATE, folder / "x.safetensors")
        return folder / "x.safetensors"
    torch.save(STATE, folder / "x.pth", _use_new_zipfile_serialization=form == "zip")
    return folder / "x.pth"


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_needs_code_is_refused(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "x.pt"
    for content in (Evil(tmp_path / "hacked"), {"args": argparse.Namespace(a=1)}, nn.Linear(2, 2)):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ValueError, match=r"^a/x is damaged or holds more than tensors, .*refused"):
            read_state_dict(path, "a/x")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_called_safetensors(tmp_path: Path, legacy: bool) -> None:
    torch.save(STATE, tmp_path / "x.safetensors", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"^a/x is a pickle \(torch\.save\), not safetensors"):
        read_state_dict(tmp_path / "x.safetensors", "a/x")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), form=st.sampled_from(FORMS))
def test_truncated_files(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, form: str) -> None:
    path = write(tmp_path_factory.mktemp("x"), form)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match=r"^a/x is (truncated or not a|damaged or)"):
        read_state_dict(path, "a/x")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_back(tmp_path: Path, form: str) -> None:
    found = read_state_dict(write(tmp_path, form), "a/x")
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items()) and found.keys() == STATE.keys()


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ([torch.zeros(1)], None, "holds a list, expected a state dict"),
        ([torch.zeros(1)], "model", "has no 'model'; it has a list"),
        ({"a": torch.zeros(1)}, "model", r"has no 'model'; it has \['a'\]"),
        ({"model": 3}, "model", "holds a int, expected a state dict"),
        ({"epoch": 1, "model": {}}, None, r"'epoch' is a int, expected a tensor; .*one of \['model'\]"),
        ({3: torch.zeros(1)}, None, "3 is no name of a tensor"),
    ],
)
def test_other_contents(tmp_path: Path, content: Any, key: str | None, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"^a/x:? {message}"):
        read_state_dict(tmp_path / "x.pt", "a/x", key)


def test_a_sentence_stays_short_whatever_the_header_says(tmp_path: Path) -> None:
    header = json.dumps({"a": "x" * 10_000}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="is truncated or not a safetensors file") as refused:
        read_state_dict(tmp_path / "x.safetensors", "x.safetensors")
    assert len(str(refused.value)) < 500
