"""What a run keeps of the code of the user's functions that it called: the file of each, as text to be read.

It lies in the run's folder and goes with the pipeline, so that whoever gets that can see how its network is built.
Nothing imports or runs it from there.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from pdiff_hub.networks.sources import source_of
from pdiff_hub.recipes import Recipe, functions_of
from pdiff_hub.records import RunFolder
from pdiff_hub.safe_files import open_regular, replacing
from pdiff_hub.transfer import require_own

_MOST_BYTES = 1 << 20  # more is no text that somebody would read


def keep_sources(directory: Path, recipe: Recipe) -> None:
    """Copies the files of the modules that `recipe` names, in place of those that an earlier run has kept.

    What is in an installed package is not copied, nor what is no file of Python source, or more than 1 MiB.
    """
    folder = RunFolder(directory)
    for old in folder.sources():
        require_own(old, directory).unlink()
    for name in functions_of(recipe).values():
        source = source_of(name)
        if source is None or _is_installed(source.file):
            continue
        with open_regular(source.file) as opened:
            content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            continue
        target = require_own(folder.source(name), directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            temporary.write_bytes(content)


def _is_installed(file: Path) -> bool:
    """Whether a file belongs to Python or to a package in it, which others install rather than copy."""
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(file.is_relative_to(Path(place).resolve()) for place in places if place)
