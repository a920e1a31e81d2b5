"""Who may import whom. Read from the source with `ast`, so imports inside functions count too.

A room is a module or a folder of `pdiff_hub`. It imports rooms of lower tiers only, never one beside it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pdiff_hub"

TIERS = [
    {"errors"},
    {"safe_files"},
    {"transfer", "travelling", "networks", "tasks"},
    {"checkpoints"},
    {"prediction"},
    {"collect", "training", "evaluation"},
    {"recipes"},
    {"pipeline"},
    {"runs"},
    {"hub"},
    {"reproduce"},
    {"cli"},
]
TIER = {room: height for height, rooms in enumerate(TIERS) for room in rooms}
# Rooms that may use less than their tier allows. The first travels to the Hub, where no sibling is installed.
ONLY = {"travelling": set[str](), "transfer": {"errors"}, "networks": {"errors"}, "tasks": {"errors"}}
TRAVELLING = ["travelling/param_autoencoder.py", "travelling/pipeline_pdiff.py"]

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported_modules(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Absolute dotted names of all that `module` imports; `from a import b` gives `a.b`, which may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                above = parents[: len(parents) - (node.level - 1)]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(file: str) -> set[str]:
    parts = ["pdiff_hub", *Path(file).with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    return set(imported_modules((PACKAGE / file).read_text(encoding="utf-8"), module, is_package))


def room_of(file: str) -> str:
    return Path(file).with_suffix("").parts[0]


def sibling_rooms(file: str) -> set[str]:
    """The other rooms that a file imports; a name that is no file belongs to `pdiff_hub` itself and is no room."""
    inside = {name.split(".")[1] for name in imports_of(file) if name.startswith("pdiff_hub.")}
    existing = {name for name in inside if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}
    return existing - {room_of(file)}


def test_the_reader_sees_every_form_of_import() -> None:
    source = """
import pdiff_hub.tasks as t
from pdiff_hub import cli
from . import beside
from ..networks import logits
def f():
    from ..hub import push
    if True:
        import torch
"""
    assert set(imported_modules(source, "pdiff_hub.collect.module")) == {
        "pdiff_hub.tasks",
        "pdiff_hub.cli",
        "pdiff_hub.collect.beside",
        "pdiff_hub.networks.logits",
        "pdiff_hub.hub.push",
        "torch",
    }
    assert set(imported_modules("from .small import a", "pdiff_hub.networks", True)) == {"pdiff_hub.networks.small.a"}


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_imports_point_down(file: str) -> None:
    room = room_of(file)
    assert room in TIER, f"{file} is in no tier: give it one above, and a line in the README's layout"
    below = {other for other, height in TIER.items() if height < TIER[room]}
    wrong = sibling_rooms(file) - ONLY.get(room, below)
    assert not wrong, f"{file} imports {sorted(wrong)}, which is not below {room}"


@pytest.mark.parametrize("file", TRAVELLING)
def test_travelling_files_need_only_torch_and_diffusers(file: str) -> None:
    found = {name.split(".")[0] for name in imports_of(file)}
    assert found <= {*sys.stdlib_module_names, "torch", "diffusers"}


def test_no_drawer_for_everything() -> None:
    names = {
        path.stem
        for folder in ("pdiff_hub", "examples", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_pipelines_hold_data_only() -> None:
    listed = subprocess.run(["git", "ls-files", "pipelines"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: which files belong to the repository is not known")
    assert [name for name in listed.stdout.splitlines() if name.endswith(".py")] == []
