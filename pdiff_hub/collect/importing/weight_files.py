"""Reads a state dict from a file that somebody else wrote, without running code that the file may contain.

What a file is, is decided by its first bytes: many names of torch.save files are usual (.pt, .pth, .bin, .ckpt,
.pth.tar, none). Only a file called .safetensors is never read as anything else.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub.errors import PdiffError, one_line, shortened
from pdiff_hub.safe_files import read_json
from pdiff_hub.safe_files.tensors import MOST_LETTERS

INDEX_SUFFIX = ".index.json"
KINDS = f"safetensors, torch.save or *{INDEX_SUFFIX}"
_MAX_INDEX_BYTES = 64 << 20
_MAX_HEADER_BYTES = 100 << 20  # of safetensors itself
_SPARE_BYTES = 16 << 20
_SHARD = re.compile(r".+-\d+-of-\d+(\.\w+)+")
_DEEPEST = 5  # dicts inside dicts that are looked through for a state dict, to name its key
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
    MemoryError,
)


def read_state_dict(path: Path, where: str, key: str | None = None, ignore: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a safetensors file (memory-mapped), a file of torch.save or an index of shards, on the CPU.

    Errors call the file `where`. `key` is the entry that holds the state dict, if other dicts are around it: "model",
    or "checkpoint.model" for one inside another. Entries that are no tensors are left out if their names match a glob
    of `ignore`. Nothing is guessed: ValueError names what the file has instead, or says that it is truncated, a pickle
    under another name, or refused because reading it could run code.
    """
    if kind_of(path) == "index":
        return _of_shards(path, where, key, ignore)
    return _state_dict(_read(path, where), key, where, ignore)


def read_whole(path: Path, where: str, key: str | None) -> dict[str, Tensor]:
    """As `read_state_dict`, for a network that was saved apart: under `key`, bare, or in the only dict of tensors."""
    if kind_of(path) == "index":
        return _of_shards(path, where, None, ())
    content = _read(path, where)
    keys = list(dict.fromkeys(_keys_of_states(content))) if isinstance(content, Mapping) else []
    bare = isinstance(content, Mapping) and all(isinstance(each, Tensor) for each in content.values())
    key = key if key in keys else keys[0] if len(keys) == 1 and not bare else None
    return _state_dict(content, key, where, ())


def kind_of(path: Path) -> str | None:
    """ "safetensors", "torch" (a file of torch.save, or another pickle or zip) or "index"; None if it is no weights."""
    if path.name.endswith(INDEX_SUFFIX):
        return "index"
    if path.suffix == ".safetensors":
        return "safetensors"
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    length = int.from_bytes(head[:8], "little")
    there = head[8:] == b"{" and length <= min(_MAX_HEADER_BYTES, path.stat().st_size - 8)
    return "safetensors" if there else None


def index_of(path: Path) -> Path | None:
    """The index beside the file `path` that lists it as a shard; None if it is a checkpoint of its own."""
    if not _SHARD.fullmatch(path.name):
        return None
    for index in sorted(path.parent.glob(f"*{INDEX_SUFFIX}")):
        if path.name in read_index(index, str(index)).values():
            return index
    return None


def read_index(path: Path, where: str) -> dict[str, str]:
    """The shard of each tensor in a `*.index.json`, names of files beside it; ValueError if it says anything else."""
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise PdiffError(f"{where} has {path.stat().st_size} bytes, too many for an index of shards.")
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise PdiffError(f"{where} has no weight_map, which tells the shard of each tensor; it is no index of shards.")
    for name, shard in shards.items():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.+=@ -]*", shard) or shard.endswith(INDEX_SUFFIX):
            raise PdiffError(
                f"{where}: the shard of {name!r} is {str(shard)[:60]!r}, expected a file beside the index."
            )
    return shards


def _of_shards(path: Path, where: str, key: str | None, ignore: Sequence[str]) -> dict[str, Tensor]:
    shards = read_index(path, where)
    state: dict[str, Tensor] = {}
    for shard in dict.fromkeys(shards.values()):
        file = path.parent / shard
        if not file.is_file():
            raise FileNotFoundError(f"{where} lists the shard {shard}, which is not there; put it beside the index.")
        part = _state_dict(_read(file, f"{where}: {shard}"), key, f"{where}: {shard}", ignore)
        if wrong := [name for name in part if shards.get(name) != shard]:
            raise PdiffError(f"{where}: {shard} holds {wrong[0]!r}, which the index does not say; they do not belong.")
        state |= part
    if missing := [name for name in shards if name not in state]:
        raise PdiffError(f"{where}: {shards[missing[0]]} lacks {missing[0]!r}, which the index says it holds.")
    return state


def _read(path: Path, where: str) -> Any:
    if kind_of(path) == "safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            with path.open("rb") as file:
                pickled = file.read(1) == b"\x80" or zipfile.is_zipfile(path)
            what = (
                "is a pickle (torch.save), not safetensors: call it .pt"
                if pickled
                else f"is truncated or not a safetensors file ({one_line(error)})"
            )
            raise PdiffError(f"{where} {what}.") from error
    _check_not_packed(path, where)
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


def _check_not_packed(path: Path, where: str) -> None:
    """Refuses a zip whose entries unpack to far more than the file; torch.save packs nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # no zip, or a damaged one, of which torch says so
    if unpacked > 2 * path.stat().st_size + _SPARE_BYTES:
        raise PdiffError(
            f"{where} has {path.stat().st_size} bytes and says that it unpacks to {unpacked}: refused; save it anew."
        )


def _state_dict(content: Any, key: str | None, where: str, ignore: Sequence[str]) -> dict[str, Tensor]:
    if key is not None:
        content = _inside(content, key, where)
    if not isinstance(content, Mapping):
        raise PdiffError(f"{where} holds a {type(content).__name__}, expected a state dict.")
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or len(name) > MOST_LETTERS:
            raise PdiffError(f"{where}: {shortened(name)} is no name of a tensor; expected a state dict.")
        if not isinstance(value, Tensor):
            if any(fnmatchcase(name, glob) for glob in ignore):
                continue
            inner = list(_keys_of_states(content)) or [key for key in content if isinstance(content[key], Mapping)]
            hint = f"if the state dict is inside, give its key: one of {inner[:8]}" if inner else ""
            hint = hint or f"if it is not needed, leave it out: ignore: [{name!r}]"
            raise PdiffError(f"{where}: {name!r} is a {type(value).__name__}, expected a tensor; {hint}.")
        state[name] = _plain(name, value, where)
    return state


def _inside(content: Any, key: str, where: str) -> Any:
    """What `content` holds under `key`, whose dots lead into inner dicts unless a key has them itself."""
    if isinstance(content, Mapping) and key in content:
        return content[key]
    first, dot, rest = key.partition(".")
    while dot:
        if isinstance(content, Mapping) and first in content:
            return _inside(content[first], rest, where)
        more, dot, rest = rest.partition(".")
        first = f"{first}.{more}"
    found = [str(each)[:60] for each in content][:8] if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise PdiffError(f"{where} has no {key!r}; it has {found}.")


def _keys_of_states(content: Mapping[Any, Any], prefix: str = "", depth: int = 1) -> Iterator[str]:
    """The keys of the dicts of tensors by name that lie inside `content`."""
    inner = [(f"{prefix}{key}", held) for key, held in content.items() if isinstance(held, Mapping)]
    for key, held in inner:
        if held and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in held.items()):
            yield key
        elif depth < _DEEPEST:
            yield from _keys_of_states(held, f"{key}.", depth + 1)


def _plain(name: str, tensor: Tensor, where: str) -> Tensor:
    """The tensor with numbers that torch can compare: dense, and 8-bit floats as float32, which holds them exactly."""
    problem = (
        "has no values (it is on the meta device)"
        if tensor.is_meta
        else f"is sparse ({str(tensor.layout).removeprefix('torch.')}); save it dense, with .to_dense()"
        if tensor.layout != torch.strided
        else "is quantized; save it with .dequantize()"
        if tensor.is_quantized
        else "is nested; save its parts"
        if tensor.is_nested
        else ""
    )
    if problem:
        raise PdiffError(f"{where}: tensor {name!r} {problem}.")
    tensor = tensor.detach().resolve_conj()
    small = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    whole = tensor.numel() <= tensor.untyped_storage().nbytes()  # else one number stands for many
    return tensor.to(torch.float32) if small and whole else tensor
