"""The peers that can be run here, and where their code comes from: a folder that the user gave, or GitHub if asked.

Nothing of theirs is kept in this repository. Code is taken at one commit, the one whose figures we know; a folder
without git is taken as it is. The peer's code runs as the user who gives it: give none that you do not trust.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdiff_hub.errors import PdiffError, one_line

_FETCH_SECONDS = 120
_LEAST_COMMIT = 12  # letters of a commit that a page shows


@dataclass(frozen=True)
class Peer:
    """A peer.

    Attributes:
        name: on the page. script: our script in benchmarks/ that runs it.
        url, commit: where its code is. parts: the files and folders of it that are run.
        subset_settings, whole_settings: its own settings for a part of a network, and for a whole one.
        slow_on_whole: whether whole networks take it days, so that only a few steps are timed.
    """

    name: str
    script: str
    url: str
    commit: str
    parts: tuple[str, ...]
    subset_settings: str
    whole_settings: str
    slow_on_whole: bool

    def is_in(self, folder: Path) -> bool:
        """Whether the folder holds its code."""
        return all((folder / part).exists() for part in self.parts)

    @property
    def short_commit(self) -> str:
        return self.commit[:_LEAST_COMMIT]


PEERS = (
    Peer(
        "p-diff, its authors' code",
        "peers_pdiff.py",
        "https://github.com/NUS-HPC-AI-Lab/Neural-Network-Diffusion",
        "0ecca89fe6cdf4faaecad7d563c5e70d7c2a3d36",
        ("model", "workspace", "dataset/__init__.py"),
        "main.cifar100_resnet18",
        "full.cifar10_mlp",
        slow_on_whole=True,
    ),
    Peer(
        "DeepWeightFlow, its authors' code",
        "peers_flow.py",
        "https://github.com/NNeuralDynamics/DeepWeightFlow",
        "eeb79fdc93ea64ad87a1db6ab253f7f1e4a13dd1",
        ("flowmatching",),
        "mlp_mnist",
        "mlp_mnist",
        slow_on_whole=False,
    ),
)


@dataclass(frozen=True)
class Found:
    """A peer with the folder that holds its code; a `commit` of None is unknown. Without a folder, `why` says why."""

    peer: Peer
    folder: Path | None
    commit: str | None = None
    why: str = ""


def add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--peer-source",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders with the code of peers that you fetched: a checkout, a bare git folder, or plain files. That "
        "code is run as you, so give only what you trust",
    )
    parser.add_argument(
        "--fetch-peers", action="store_true", help="clone peers that are not given from GitHub, and run that code"
    )


def source_options(options: argparse.Namespace) -> list[str]:
    """The same options again, for another command line."""
    given = ["--peer-source", *map(str, options.peer_source)] if options.peer_source else []
    return [*given, *(["--fetch-peers"] if options.fetch_peers else [])]


def find_peers(sources: Sequence[Path], *, fetch: bool, work: Path, peers: Sequence[Peer] = PEERS) -> list[Found]:
    """Each peer with its code, unpacked into `work` where it comes from git. PdiffError for a folder with no peer."""
    for source in sources:
        if not source.is_dir():
            raise PdiffError(f"--peer-source: {source} is not a folder; give one that holds the code of a peer.")
        if not any(peer.is_in(source) or _has_commit(source, peer.commit) for peer in peers):
            known = " or ".join(f"{peer.url} at {peer.short_commit}" for peer in peers)
            raise PdiffError(f"--peer-source: {source} holds none of the peers; give a clone of {known}.")
    return [_find(peer, sources, fetch, work / f"peer-{number}") for number, peer in enumerate(peers)]


def _find(peer: Peer, sources: Sequence[Path], fetch: bool, work: Path) -> Found:
    for source in sources:
        if _has_commit(source, peer.commit):
            return Found(peer, _unpacked(source, peer, work), peer.commit)
    for source in sources:
        if peer.is_in(source):
            return Found(peer, source.resolve())
    if not fetch:
        why = f"its code is not here: clone {peer.url} and give the folder with --peer-source, or add --fetch-peers."
        return Found(peer, None, why=why)
    clone = work.with_suffix(".git")
    try:
        _git(clone.parent, "init", "--quiet", "--bare", str(clone))
        _git(clone, "fetch", "--quiet", "--depth", "1", peer.url, peer.commit)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None)
        reason = one_line(RuntimeError(said.decode(errors="replace") if said else str(error)))
        return Found(peer, None, why=f"git could not fetch {peer.url}: {reason}")
    return Found(peer, _unpacked(clone, peer, work), peer.commit)


def _git(folder: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=_FETCH_SECONDS).stdout


def _has_commit(folder: Path, commit: str) -> bool:
    # Without this look git would answer for a repository further up, such as this one.
    if not ((folder / ".git").exists() or (folder / "objects").is_dir()):
        return False
    try:
        _git(folder, "cat-file", "-e", f"{commit}^{{commit}}")
    except (OSError, subprocess.SubprocessError):  # no git here, or no such commit: plain files are looked for next
        return False
    return True


def _unpacked(folder: Path, peer: Peer, work: Path) -> Path:
    """The parts that are run, of the peer's commit, in `work`; data files that a clone may lack are not needed."""
    with tarfile.open(fileobj=io.BytesIO(_git(folder, "archive", "--format=tar", peer.commit, *peer.parts))) as archive:
        archive.extractall(work, filter="data")
    return work.resolve()
