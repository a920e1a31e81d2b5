"""Where checkpoints come from: files of a folder, in natural order, or one file in revisions on the Hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection
from pathlib import Path

from pdiff_hub.collect.importing.config import HubFile, require_pattern
from pdiff_hub.collect.importing.weight_files import INDEX_SUFFIX, KINDS, index_of, kind_of, read_index
from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer import pull

SUFFIXES = (".safetensors", ".pt", ".pth")
# Taken only if a folder has none of the former: training leaves other files under these names too.
MORE_SUFFIXES = (".bin", ".ckpt", ".tar", "")
WHOLE_FILES = tuple(
    f"{name}{more}" for name in ("model.safetensors", "pytorch_model.bin") for more in ("", INDEX_SUFFIX)
)


class NoSuchHubFileError(FileNotFoundError):
    """The repository has no such file."""


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts "step-2" before "step-10", and "a/2" before "a/10/b"; different names never tie ("7", "07")."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(text), "") if text.isdecimal() else (1, 0, text) for text in parts], name


def at_home(path: str | Path) -> Path:
    """The path with `~` replaced by the user's home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PdiffError(
            f"{path} begins with the home folder of a user that is not known; write the path out."
        ) from error


def file_names(folder: Path, pattern: str | None, others: Collection[Path]) -> list[str]:
    """The checkpoints in `folder`, without the files `others`, in natural order; an index stands for its shards."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; to read revisions of a Hub repository, give `revisions`.")
    if pattern is not None:
        require_pattern(pattern)
    there = [file for file in folder.glob(pattern or "*") if file.is_file() and file.resolve() not in others]
    files = _by_pattern(there, pattern) if pattern is not None else _by_suffix(folder, there)
    files = list(dict.fromkeys(index_of(file) or file for file in files))
    if not files:
        wanted = pattern or f"checkpoint ({', '.join((*SUFFIXES, *MORE_SUFFIXES[:-1]))})"
        raise FileNotFoundError(
            f'{folder} has no {wanted}; files in folders below it need a pattern, e.g. "*/model.safetensors".'
        )
    return sorted((file.relative_to(folder).as_posix() for file in files), key=natural_key)


def hub_names(repo_id: str, hub: HubFile) -> list[str]:
    """What the revisions' files are called in errors and metadata."""
    if not hub.revisions or len(set(hub.revisions)) < len(hub.revisions):
        raise PdiffError(f"revisions of {repo_id} are {list(hub.revisions)}; expected different ones, and some.")
    return [f"{repo_id}@{revision}/{hub.filename}" for revision in hub.revisions]


def download(repo_id: str, hub: HubFile, revision: str | None) -> Path:
    """The file of one revision in the client's cache, with its shards if it is an index of some."""

    def get(names: list[str]) -> Path:
        try:
            return pull(
                repo_id,
                repo_type="model",
                what="checkpoint",
                required=names[0],
                revision=revision,
                token=hub.token,
                cache_dir=hub.cache_dir,
                local_files_only=hub.local_files_only,
                allow_patterns=[glob.escape(name) for name in names],
            )
        except PdiffError as error:
            raise NoSuchHubFileError(
                f"{hub.filename} of {repo_id} at revision {revision or 'main'!r} is not there ({error}); give as "
                f"filename what the file is called there, such as {WHOLE_FILES[2]} or {WHOLE_FILES[1]}."
            ) from error
        except OSError as error:
            raise FileNotFoundError(
                f"{hub.filename} of {repo_id} at revision {revision or 'main'!r} could not be had from the Hub "
                f"({error})."
            ) from error

    path = get([hub.filename]) / hub.filename
    if path.name.endswith(INDEX_SUFFIX):
        folder = hub.filename.rpartition("/")[0]
        shards = dict.fromkeys(read_index(path, f"{repo_id}@{revision or 'main'}/{hub.filename}").values())
        path = get([hub.filename, *(f"{folder}/{shard}".lstrip("/") for shard in shards)]) / hub.filename
    return path


def _by_pattern(files: list[Path], pattern: str) -> list[Path]:
    for file in files:
        if file.suffix not in SUFFIXES and kind_of(file) is None:
            raise PdiffError(f"{file} is matched by pattern {pattern!r}, but is none of {KINDS}.")
    return files


def _by_suffix(folder: Path, there: list[Path]) -> list[Path]:
    """Files with the usual suffixes; or else with others, if they hold weights. All must be of one kind."""
    files = [file for file in there if file.suffix in SUFFIXES]
    if not files:
        files = [
            file
            for file in there
            if not file.name.startswith(".")
            and (file.suffix in MORE_SUFFIXES or file.name.endswith(INDEX_SUFFIX))
            and kind_of(file)
        ]
    kinds = {"safetensors" if file.suffix == ".safetensors" else "pt" for file in files}
    if len(kinds) > 1:
        raise PdiffError(
            f'{folder} has both .safetensors and .pt/.pth files; choose with pattern, e.g. "*.safetensors".'
        )
    suffixes = sorted({file.suffix for file in files if kind_of(file) != "index"} - set(SUFFIXES))
    if len(suffixes) > 1:
        found = ", ".join(suffix or "no suffix" for suffix in suffixes)
        raise PdiffError(f'{folder} has files with {found}; choose with pattern, e.g. "*{suffixes[-1]}".')
    return files
