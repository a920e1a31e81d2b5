"""Where the code of a named function lies. It is found without importing it, so that it can be compared first."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import file_digest
from importlib.machinery import PathFinder
from pathlib import Path

from pdiff_hub.networks.factory import module_of, on_the_path


@dataclass(frozen=True)
class Source:
    """What importing a module by its name runs.

    Attributes:
        folder: the folder that Python finds its outermost package in.
        files: the sha256 (hex) of the file of each package on the way and, last, of the module, by real path. What
            these files import is not among them.
    """

    folder: str
    files: Mapping[str, str]

    @property
    def file(self) -> Path:
        """The module's own."""
        return Path([*self.files][-1])


def source_of(name: str, folder: str | None = None) -> Source | None:
    """What calling the function `name` ("package.module:function") imports.

    folder: searched last, as `factory.search_too` makes the import itself do.

    None if Python does not find the module; if it is no file of Python source, or another one of this name is imported
    already; and for `__main__`, which is another module in each process.
    """
    module_name = module_of(name)
    if module_name is None or module_name.split(".")[0] == "__main__":
        return None
    files, found = dict[str, str](), list(_found(module_name, folder))
    if len(found) <= module_name.count(".") or found[-1].file is None:
        return None
    for each in found:
        loaded = sys.modules.get(each.name)
        if loaded is not None and _real(getattr(loaded, "__file__", None)) != _real(each.file):
            return None
        if each.file is not None:
            try:
                with open(each.file, "rb") as opened:
                    files[_real(each.file)] = file_digest(opened, "sha256").hexdigest()
            except OSError:
                return None
    first = found[0].folders[0] if found[0].folders else found[0].file
    return Source(os.path.dirname(_real(first)), files)


@dataclass(frozen=True)
class _Found:
    """A module, or a package with the folders of its modules. file: None for a package that is only a folder."""

    name: str
    file: str | None
    folders: list[str]


def _found(module_name: str, folder: str | None) -> Iterator[_Found]:
    """What Python finds for each package on the way to a module, and for the module; fewer if one is no source file."""
    name, folders = "", list[str]()
    for part in module_name.split("."):
        name = f"{name}.{part}".lstrip(".")
        with on_the_path([] if folder is None else [folder]):
            try:
                # Of a name without dots, this imports nothing.
                spec = PathFinder.find_spec(part, folders) if folders else importlib.util.find_spec(part)
            except (ImportError, ValueError):
                return
            if spec is None:
                return
            folders = [*(spec.submodule_search_locations or ())]
        if spec.has_location and spec.origin is not None and spec.origin.endswith(".py"):
            yield _Found(name, spec.origin, folders)
        elif not spec.has_location and len(folders) == 1:  # in several, its modules would be in one of them
            yield _Found(name, None, folders)
        else:
            return
        if not folders:
            return


def _real(path: str | None) -> str:
    return "" if path is None else os.path.realpath(path)
