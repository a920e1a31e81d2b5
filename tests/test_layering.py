"""Which rooms may import which (`package_map.py` reads the source): imports point down, and none is by string."""

from __future__ import annotations

import subprocess
import sys

import package_map
import pytest
from package_map import (
    FILES,
    PACKAGE,
    circles,
    file_graph,
    floors,
    imported_modules,
    imports_by_name,
    imports_of,
    room_graph,
    room_of,
)

ROOT = PACKAGE.parent
# A room imports rooms of lower tiers only, and no other room of its own tier.
TIERS = [
    {"errors", "progress", "seeds", "travelling"},
    {"safe_files", "transfer"},
    {"networks", "processes", "tasks"},
    {"checkpoints", "exporting", "records"},
    {"prediction", "training"},
    {"collect", "evaluation"},
    {"ensembles", "recipes"},
    {"pipeline"},
    {"runs", "hub"},
    {"reproduce"},
    {"cli"},
]
TIER = {room: height for height, rooms in enumerate(TIERS) for room in rooms}
# Rooms that use less than their tier allows, so that they can be used, and read, alone.
ONLY = {room: {"errors"} for room in ("safe_files", "transfer")}
ONLY |= {"processes": {"progress", "safe_files"}}
ONLY |= {"networks": {"errors", "transfer"}, "tasks": {"errors", "progress", "transfer"}}
TRAVELLING = [file for file in FILES if room_of(file) == "travelling"]
# `__init__.py` imports the public names by string, but TYPE_CHECKING shows the same imports to the map. The factory
# imports modules that a user names.
BY_NAME = {"__init__.py", "networks/factory.py"}


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
    by_name = ("importlib.import_module('x')", "from importlib import import_module as i", "__import__('x')")
    assert all(list(imports_by_name(text)) for text in by_name)


def test_the_map_finds_circles_and_floors() -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set[str](), "d": {"e"}, "e": {"d"}}
    assert circles(graph) == [["d", "e"]]
    assert floors({name: graph[name] for name in "abc"}) == {"a": 3, "b": 2, "c": 1}


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_imports_point_down(file: str) -> None:
    room = room_of(file)
    assert room in TIER, f"{file} is in no tier: give it one above, and a line in the README's layout"
    below = {other for other, height in TIER.items() if height < TIER[room]}
    others = {room_of(other) for other in file_graph()[file]} - {room}
    assert others <= ONLY.get(room, below), (
        f"{file} imports {sorted(others - ONLY.get(room, below))}, which {room} must not"
    )


def test_no_files_import_each_other() -> None:
    assert circles(file_graph()) == [] and circles(room_graph()) == []


def test_a_house_of_few_rooms_and_floors() -> None:
    assert len(room_graph()) <= 24 and max(floors(room_graph()).values()) <= 10


@pytest.mark.parametrize("file", [file for file in FILES if file not in BY_NAME])
def test_nothing_is_imported_by_string(file: str) -> None:
    assert list(imports_by_name((PACKAGE / file).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("file", TRAVELLING)
def test_travelling_files_need_only_torch_and_diffusers(file: str) -> None:
    found = {name.split(".")[0] for name in imports_of(file)}
    assert found <= {*sys.stdlib_module_names, "torch", "diffusers"}


def test_files_stay_short() -> None:
    lines = {file: len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    # One file each, since what travels to the Hub fetches no others.
    assert lines.pop("travelling/param_autoencoder.py") < 665 and lines.pop("travelling/pipeline_pdiff.py") < 500
    assert [file for file, count in lines.items() if count > 400] == []


def test_the_map_prints_itself() -> None:
    done = subprocess.run([sys.executable, package_map.__file__], capture_output=True, text=True, check=True)
    assert "circles of files: none" in done.stdout and "floor 1: errors" in done.stdout


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
