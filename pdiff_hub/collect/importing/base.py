"""What files that hold the trained layers only leave out: the rest of the network that they were trained from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdiff_hub.collect.importing.config import HubFile
from pdiff_hub.collect.importing.sources import WHOLE_FILES, NoSuchHubFileError, at_home, download
from pdiff_hub.collect.importing.tensor_names import TensorNames
from pdiff_hub.collect.importing.weight_files import read_whole
from pdiff_hub.collect.shared_tensors import is_counter
from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer import is_repo_id
from pdiff_hub.travelling.param_autoencoder import FrozenEntry

NETWORK = "network"  # the network as its spec builds it, with its pretrained weights
_ON_HUB = re.compile(r"(?P<repo>[^@/]+/[^@/]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?")


class Base:
    """The rest of a network, read when it is first needed.

    Args:
        given: a file, a folder or a Hub id as `import_checkpoints` takes them, NETWORK, or None: the network's own
            weights if `pretrained`, else nothing.
        folder: where a file is sought before the current folder.
        names, key: how the file's tensors are named.
        build: makes the network from a seed.
        pretrained: whether it has pretrained weights by its spec.

    Attributes:
        file: the file of `given` on this machine; None if it is none.
        source: what was read, for the data set's description; None while nothing was needed.
    """

    def __init__(
        self,
        given: str | Path | None,
        folder: Path | None,
        names: TensorNames,
        key: str | None,
        build: Callable[[int], nn.Module] | None,
        pretrained: bool,
    ):
        self._given = given if given is not None or not pretrained or build is None else NETWORK
        self._names, self._key, self._build = names, key, build
        self.file = _local_file(str(given), folder) if given is not None and given != NETWORK else None
        self.source: dict[str, Any] | None = None
        self._hub = None if self.file or self._given in (None, NETWORK) else _hub_place(str(given))
        self._read: Mapping[str, Tensor] | None = None
        self._drawn: frozenset[str] = frozenset()

    def tensor(self, entry: FrozenEntry, where: str) -> tuple[Tensor, str]:
        """The tensor of a name that the file `where` lacks, and where it is from; ValueError if it is not to be had."""
        if is_counter(entry.name):  # files from before there were any lack them; torch fills in zeros too
            return torch.zeros(entry.shape, dtype=getattr(torch, entry.dtype)), where
        if self._given is None:
            raise PdiffError(
                f"{where}: missing tensor {entry.name!r}, which is not selected, but which every network needs; "
                f"expected shape {list(entry.shape)}. If the files hold the trained layers only, give as base the file "
                'or Hub id of the whole network that they were trained from ("network": as its spec builds it).'
            )
        if self._read is None:
            self._read, self.source = self._open()
        held = next((self._read[name] for name in (entry.name, *entry.tied) if name in self._read), None)
        if held is None:
            raise PdiffError(f"{where}: missing tensor {entry.name!r}, which the base {self._given} lacks too.")
        if entry.name in self._drawn:
            raise PdiffError(
                f"{where}: missing tensor {entry.name!r}, which the network draws at random when it is built, so it is "
                "not the one that the files were trained with; give as base the file or Hub id of the whole network."
            )
        return held, f"base {self._given}"

    def _open(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        if self._given == NETWORK:
            return self._own()
        if self.file is not None:
            path, label = self.file, self.file.name  # no path of this machine in what may be published
        else:
            assert self._hub is not None
            path, label = _downloaded(*self._hub)
        state = read_whole(path, f"base {self._given}", self._key)
        with path.open("rb") as file:
            return self._names.rest(state), {"file": label, "sha256": file_digest(file, "sha256").hexdigest()}

    def _own(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        if self._build is None:
            raise PdiffError('base is "network", and nothing builds it here; give build, or a file.')
        state, other = (self._build(seed).state_dict() for seed in (0, 1))
        self._drawn = frozenset(name for name, tensor in state.items() if not torch.equal(tensor, other[name]))
        return state, {"file": NETWORK}


def _local_file(given: str, folder: Path | None) -> Path | None:
    path = at_home(given)
    for each in [path] if folder is None else [folder / path, path]:
        if each.is_file():
            return each
        if each.is_dir():
            if file := next((each / name for name in WHOLE_FILES if (each / name).is_file()), None):
                return file
            raise FileNotFoundError(f"base {each} is a folder without {', '.join(WHOLE_FILES)}; name the file.")
    return None


def _hub_place(given: str) -> tuple[str, str | None, str | None]:
    """(repository, revision, file) of "user/name@revision/file"."""
    found = _ON_HUB.fullmatch(given)
    if found is None or not is_repo_id(found["repo"]):
        raise FileNotFoundError(
            f"base {given} is no file; expected one (sought in the folder of the checkpoints too), a Hub repository "
            f'id, perhaps as user/name@revision/file, or "{NETWORK}".'
        )
    return found["repo"], found["revision"], found["file"]


def _downloaded(repo: str, revision: str | None, file: str | None) -> tuple[Path, str]:
    """The file in the cache, and its name with the commit."""
    failure: Exception | None = None
    for name in WHOLE_FILES if file is None else (file,):
        try:
            path = download(repo, HubFile((), name), revision)
            commit = path.parents[name.count("/")].name
            return path, f"{repo}@{commit}/{name}"
        except NoSuchHubFileError as error:
            failure = failure or error
    assert failure is not None
    raise failure
