"""A peer at the sizes of the axis of parameters: DeepWeightFlow, which also has principal components.

Its code is run from a folder that the user gave (`peers_source`), on the checkpoints that ours was measured on. The
other peer that can be run here has no settings for these sizes: a step of it took 46 s at 39,600 numbers (authors.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from growth_axes import CHECKPOINTS
from growth_points import KeptPoints, Point
from growth_process import Seconds, run
from growth_stages import save_vits, vit_params
from peers_job import Job, run_peer
from peers_source import PEERS, find_peers

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError

PEER = next(peer for peer in PEERS if peer.script == "peers_flow.py")
LARGEST = 2e7  # numbers of a network; its components hold several times all checkpoints in memory
_NETWORK = "network"


def work(folder: Path, source: str) -> Seconds:
    """Let the peer fit its components to the saved checkpoints, do a few steps of its flow, and make one network."""
    dataset = CheckpointDataset.from_pretrained(folder / "checkpoints")
    tensors = [(entry.name, list(entry.shape)) for entry in dataset.layout.entries]
    job = Job(source, PEER.whole_settings, tensors, networks=0, seconds=None, threads=torch.get_num_threads())
    made, _ = run_peer(Path(__file__).with_name(PEER.script), job, dataset.params_KP, folder)
    return {stage.name: stage.whole_seconds for stage in made.stages} | {_NETWORK: made.network_seconds}


def measure_peer(
    sources: Sequence[Path], fetch: bool, sizes: Sequence[float], work_dir: Path, known: Mapping[str, Any]
) -> list[Point]:
    """The peer's points, smallest first. Those kept in `work_dir` are not measured again.

    None if no sources are given and nothing is to be fetched; PdiffError if its code is not found in them.
    """
    if not sources and not fetch:
        return []
    folder = work_dir / "peer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        (found,) = (each for each in find_peers(sources, fetch=fetch, work=folder) if each.peer is PEER)
        if found.folder is None:
            raise PdiffError(f"{PEER.name}: {found.why}")
        kept = KeptPoints(work_dir / "peer.json")
        settings = {"peer": PEER.name, "commit": found.commit, "checkpoints": CHECKPOINTS, "machine": dict(known)}
        points = []
        for asked in (size for size in sizes if size <= LARGEST):
            point = kept.find(settings, asked)
            if point is None:
                checkpoints = folder / "size"
                run(save_vits, checkpoints, asked, CHECKPOINTS)
                seconds = run(work, checkpoints, str(found.folder)).seconds
                shutil.rmtree(checkpoints)
                now = datetime.now(UTC).isoformat(timespec="seconds")
                point = Point(asked, vit_params(asked), seconds, {}, now)
                kept.keep(settings, point)
            points.append(point)
        return points
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def peer_rows(ours: Sequence[Point], peer: Sequence[Point]) -> list[list[str]]:
    """Rows of text, header first: what both do at each size, in seconds."""
    theirs = {point.x: point.seconds for point in peer}
    rows = [["parameters", "components, ours (s)", "theirs (s)", "a network, ours (s)", "theirs (s)"]]
    for point in ours:
        if point.x in theirs:
            pairs = (("fit autoencoder", "components"), ("sample", _NETWORK))
            numbers = [each for own, other in pairs for each in (point.seconds[own], theirs[point.x][other])]
            rows.append([f"{point.x:,}", *(f"{number:,.3g}" for number in numbers)])
    return rows


def about(peer: Sequence[Point]) -> list[str]:
    """What the page says above that table."""
    flow = [point.seconds["flow"] for point in peer]
    return [
        f"{PEER.name} ({PEER.url}, {PEER.short_commit}), in a process of its own, with its settings for an MLP on "
        "MNIST and the checkpoints of the table above. *Components*: ours are all of stage one, read and written slice "
        "by slice, with the held-out R2; theirs are fitted in memory, which ends the table. *A network*: ours opens "
        "the pipeline, samples and writes a file; theirs samples one in memory. Its flow does not see the network's "
        f"size: all its steps would take {min(flow):,.0f} to {max(flow):,.0f} s, scaled up from 50."
    ]
