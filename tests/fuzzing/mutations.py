"""Small damages and lies, each drawn from a seeded generator: what a stranger's folder may hold in place of ours.

A mutation changes one file of a folder. It knows three kinds of files from inside (JSON, YAML, the header of
safetensors), all others as bytes, and it may put another thing in a file's place: a folder, a link, a pipe, nothing.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

_DEEP = "[" * 3000 + "]" * 3000
_ALIASES = "&a0 [x,x,x,x,x,x,x,x,x]"
for _level in range(1, 9):
    _ALIASES = f"&a{_level} [{_ALIASES}" + f",*a{_level - 1}" * 8 + "]"


def mutate(folder: Path, random_: random.Random, canary: Path) -> str:
    """Changes one file of `folder`; returns what was done.

    canary: a file elsewhere, whose path some lies name; nothing may read it.
    """
    file = random_.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    inside = {
        ".json": _change_json,
        ".yaml": _change_yaml,
        ".safetensors": _change_safetensors,
    }.get(file.suffix)
    ways: list[Callable[[Path, random.Random, Path], str]] = [_change_bytes, _change_bytes, _change_thing]
    if inside is not None:
        ways += [inside] * 5
    return f"{file.relative_to(folder)}: {random_.choice(ways)(file, random_, canary)}"


def _lies(random_: random.Random, canary: Path) -> list[Any]:
    """Values of every type and many sizes."""
    return [
        None, True, False, 0, 1, -1, 2, 3, 7, 2.5, -0.5, 1e-300, 1e308, -1e308, float("nan"), float("inf"),
        10**6, 10**9, 10**12, 2**63, 10**30, "", "x", "0", "1e-3", "nan", "inf", "\ud800", "\x1b[31mred\x1b[0m", "[/x]",
        "[bold]loud[/bold]", "a" * 10_000, "\x00", "../../../canary", str(canary), "~", "/dev/zero", "os:system",
        "os.system", "os:abort", [], {}, [1], [[1]], {"x": 1}, [None], [1, "x"], [-1], [10**9] * 3, [0], {"name": "x"},
        "2024-01-01", [float("nan")], random_.random(), random_.randrange(100),
    ]  # fmt: skip


def _places(node: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every node below `node`, itself included."""
    found = [where]
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in list(children)[:200]:
        found += _places(child, (*where, key))
    return found


def _change_tree(tree: Any, random_: random.Random, canary: Path) -> tuple[Any, str]:
    """`tree` with one node replaced, removed, renamed, doubled or moved."""
    tree = copy.deepcopy(tree)
    places = _places(tree)
    depth = random_.randrange(1, 1 + max(len(place) for place in places)) if len(places) > 1 else 0
    place = random_.choice([each for each in places if len(each) == depth] or places)
    if not place:
        lie = random_.choice(_lies(random_, canary))
        return lie, f"all of it is {str(lie)[:40]!r}"
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    key, name = place[-1], ".".join(map(str, place))
    way = random_.randrange(6)
    if way == 0:
        del parent[key]
        return tree, f"{name} is removed"
    if way == 1 and isinstance(parent, dict):
        parent[random_.choice(["x", "__class__", "\ud800", key + "_", "a" * 3000])] = parent.pop(key)
        return tree, f"{name} has another name"
    if way == 2 and isinstance(parent, list):
        parent.extend([parent[key]] * random_.choice([1, 100]))
        return tree, f"{name} is there more than once"
    if way == 3:
        others = [each for each in places if each and each[: len(place)] != place and place[: len(each)] != each]
        if others:
            node = tree
            for each in random_.choice(others):
                node = node[each]
            parent[key] = copy.deepcopy(node)
            return tree, f"{name} is {str(node)[:40]!r}, which is another's value"
    lie = random_.choice(_lies(random_, canary))
    if isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool) and random_.random() < 0.4:
        lie = random_.choice([parent[key] + 1, parent[key] * 2, -parent[key], parent[key] * 10**9, float(parent[key])])
    parent[key] = lie
    return tree, f"{name} is {str(lie)[:40]!r}"


def _change_json(file: Path, random_: random.Random, canary: Path) -> str:
    if random_.random() < 0.04:
        file.write_text('{"a":' * 3000 + "1" + "}" * 3000)
        return "3,000 levels of JSON"
    tree, what = _change_tree(json.loads(file.read_text(encoding="utf-8")), random_, canary)
    file.write_text(json.dumps(tree), encoding="utf-8")
    return what


def _change_yaml(file: Path, random_: random.Random, canary: Path) -> str:
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    if random_.random() < 0.3 and isinstance(tree, dict):
        key = random_.choice(list(tree))
        text = random_.choice(
            [_ALIASES, _DEEP, "!!bool maybe", "!!python/object/apply:os.abort []", "{a: b", "&x [*x]", "*.pt", "1e-3"]
        )
        rest = yaml.safe_dump({name: value for name, value in tree.items() if name != key})
        file.write_text(f"{rest}\n{key}: {text}\n", encoding="utf-8")
        return f"{key} is {text[:40]!r}"
    tree, what = _change_tree(tree, random_, canary)
    file.write_bytes(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))
    return what


def _change_safetensors(file: Path, random_: random.Random, canary: Path) -> str:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, numbers = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    way = random_.randrange(4)
    if way == 0 and len(numbers) >= 4:
        place = 4 * random_.randrange(len(numbers) // 4)
        lie = random_.choice([float("nan"), float("inf"), float("-inf")])
        numbers[place : place + 4] = struct.pack("<f", lie)
        what = f"the number at byte {place} is {lie}"
    elif way == 1 and (names := [name for name in header if name != "__metadata__"]):
        name = random_.choice(names)
        others = {"F32": ["I32", "U32"], "I64": ["F64", "U64"], "F16": ["BF16", "I16"], "BF16": ["F16"]}
        header[name]["dtype"] = random_.choice(others.get(header[name]["dtype"], ["U8", "X9"]))
        what = f"{name} claims to be {header[name]['dtype']}"
    else:
        header, what = _change_tree(header, random_, canary)
    packed = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(packed)) + packed + numbers)
    return what


def _change_bytes(file: Path, random_: random.Random, canary: Path) -> str:
    del canary
    content = bytearray(file.read_bytes())
    size = len(content)
    place = random_.randrange(min(size, 300) if random_.random() < 0.5 else size) if size else 0
    way = random_.randrange(6)
    if way == 0:
        content, what = content[:place], f"cut at byte {place}"
    elif way == 1 and size:
        for _ in range(random_.choice([1, 1, 4, 50])):
            content[random_.randrange(size)] ^= 1 << random_.randrange(8)
        what = "bits are flipped"
    elif way == 2:
        content[place : place + 16] = bytes(16)
        what = f"zeros from byte {place}"
    elif way == 3:
        content += random_.randbytes(random_.choice([1, 100, 5000]))
        what = "more bytes at its end"
    elif way == 4:
        content[:8] = random_.choice([b"\xff" * 8, struct.pack("<Q", 2**40), b"PK\x03\x04abcd", b"\x80\x04cos\n.", b""])
        what = "another beginning"
    else:
        content[place:place] = random_.randbytes(random_.choice([1, 7]))
        what = f"more bytes at {place}"
    file.write_bytes(content)
    return what


def _change_thing(file: Path, random_: random.Random, canary: Path) -> str:
    content = file.read_bytes()
    others = [each for each in sorted(file.parent.iterdir()) if each.is_file() and each != file]
    file.unlink()
    way = random_.randrange(8)
    if way == 0:
        return "removed"
    if way == 1:
        file.mkdir()
        return "a folder"
    if way == 2:
        os.mkfifo(file)
        return "a pipe"
    if way == 3:
        target = random_.choice([file, Path("/dev/zero"), Path("/nowhere")])
        file.symlink_to(target)
        return f"a link to {'itself' if target == file else target.name}"
    if way == 4:
        file.write_bytes(b"")
        return "empty"
    if way == 5 and others:
        other = random_.choice(others)
        file.write_bytes(other.read_bytes())
        return f"what {other.name} holds"
    if way == 6:
        file.write_bytes(gzip.compress(content))
        return "compressed"
    file.write_text("<html><body>404</body></html>")
    return "a page of HTML"
