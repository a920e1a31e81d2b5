"""Ours and open peers side by side: each trains on the same checkpoints and makes networks, which one judge judges.

Two sets: the last two norm layers of a ResNet-18 on digits (2,048 numbers, p-diff's own kind of task), and the whole
MLPs that come with digits-mlp3 (8,970 numbers). Peers run with their own settings, in processes of their own, from a
folder that you fetched (--peer-source) or from GitHub at a fixed commit (--fetch-peers): that code then runs as you.
Their seconds are of all steps of their settings, scaled up from the steps that were done. Unless --whole is given, a
peer trains as long as ours did, so its accuracy is that of an equal time, not what its authors would get.

This takes about five minutes on two idle cores, with the first set at hand:

    python benchmarks/peers.py --peer-source CLONE OTHER_CLONE --subset FOLDER
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness import ROOT, SHIPPED, Result, digits, main, result
from peers_job import Job, Made, run_peer
from peers_source import Found, add_source_options, find_peers
from peers_table import Quality, Side
from torch import Tensor

from pdiff_hub import PDiffPipeline, runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.distances import spread_ratio
from pdiff_hub.evaluation.evaluate import evaluate_networks
from pdiff_hub.evaluation.known_rows import split_known
from pdiff_hub.networks import build_network
from pdiff_hub.pipeline import sample
from pdiff_hub.records import Measurements
from pdiff_hub.reproduce.settings import Settings
from pdiff_hub.tasks import load_task
from pdiff_hub.training.config import DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline

_PART = "peers"
_ALL = "all of its training"
_JUDGED_ORIGINALS = 20


@dataclass(frozen=True, eq=False)
class Ours:
    """Our generator of one set, with what it was trained on, what was held out, and its seconds."""

    pipe: PDiffPipeline
    known: CheckpointDataset
    fresh: CheckpointDataset | None
    train_seconds: float
    sample_seconds: float
    params_BP: Tensor

    @property
    def name(self) -> str:
        layout = self.known.layout
        return f"{layout.num_params:,} numbers of {self.known.network['name']}, {len(self.known)} checkpoints"

    @property
    def is_whole(self) -> bool:
        """Whether whole networks are generated."""
        return not self.known.frozen

    def judged(self, params_BP: Tensor) -> Measurements:
        """As `pdiff run` judges, without its baselines; distances are to all originals, of which few are judged."""
        assert self.known.task is not None
        return evaluate_networks(
            build_network(self.known.network, pretrained=False),
            load_task(self.known.task),
            self.known,
            params_BP,
            deviation_r2=None,
            fresh=self.fresh,
            autoencoder=self.pipe.autoencoder,
            num_originals=_JUDGED_ORIGINALS,
        )

    def quality(self, params_BP: Tensor) -> Quality:
        """What networks are worth that somebody made."""
        measured = self.judged(params_BP)
        assert measured.audit is not None
        return _quality(measured, "generated", measured.audit.spread_ratio)

    def sides(self, networks: int) -> list[Side]:
        """Networks to compare with, and last ours."""
        measured, known = self.judged(self.params_BP), self.known
        assert measured.audit is not None
        compared = {}
        if self.fresh is not None:
            spread = spread_ratio(self.fresh.params_KP, known.params_KP) if len(self.fresh) > 1 else None
            compared["held-out checkpoints"] = _quality(measured, "fresh", spread)
        compared["tensors of their mean numbers"] = self.quality(_tensor_means(known).expand(2, -1))
        own = _quality(measured, "generated", measured.audit.spread_ratio)
        return [
            *(Side(self.name, system, "", networks, None, None, quality) for system, quality in compared.items()),
            Side(self.name, "ours", _ALL, networks, self.train_seconds, self.sample_seconds, own),
        ]


def _quality(measured: Measurements, name: str, spread: float | None) -> Quality:
    """That of the networks that are so called in what was measured."""
    accuracy, method = measured.accuracy[name], measured.methods[name]
    near, fresh_l2 = method.nearness, measured.methods["fresh"].nearest_l2 if "fresh" in measured.methods else None
    assert near is not None
    weight_ratio = method.nearest_l2 / fresh_l2 if fresh_l2 and method.nearest_l2 is not None else None
    return Quality(method.count, accuracy.mean, accuracy.best, near.copies, near.ratio, weight_ratio, spread)


def _tensor_means(dataset: CheckpointDataset) -> Tensor:
    """A network [P] in which every number is the mean of its tensor over all checkpoints."""
    mean_P = dataset.params_KP.mean(dim=0)
    for entry in dataset.layout.entries:
        mean_P[entry.start : entry.stop] = mean_P[entry.start : entry.stop].mean()
    return mean_P


def train_ours(dataset: CheckpointDataset, networks: int, steps: int, folder: Path) -> Ours:
    """Trains with the defaults (steps: of the denoiser) and makes networks."""
    began = time.perf_counter()
    train_pipeline(dataset, folder, diffusion=DiffusionConfig(steps=steps))
    pipe = PDiffPipeline.from_pretrained(folder)
    trained = time.perf_counter()
    params_BP = sample(pipe, networks, seed=0)
    sampled = time.perf_counter()
    known, fresh = split_known(dataset, pipe.autoencoder)
    return Ours(pipe, known, fresh, trained - began, sampled - trained, params_BP)


def train_peer(found: Found, ours: Ours, options: argparse.Namespace, folder: Path) -> tuple[Made, Side]:
    """Lets a peer train on what ours was trained on, and judges what it makes. RuntimeError if its process fails."""
    peer, networks = found.peer, options.networks
    timed_only = ours.is_whole and peer.slow_on_whole
    wanted = 0 if timed_only else min(networks, options.peer_networks) if peer.slow_on_whole else networks
    job = Job(
        str(found.folder),
        peer.whole_settings if ours.is_whole else peer.subset_settings,
        [(entry.name, list(entry.shape)) for entry in ours.known.layout.entries],
        wanted,
        None if options.whole else ours.train_seconds,
        torch.get_num_threads(),
    )
    made, params_BP = run_peer(ROOT / "benchmarks" / peer.script, job, ours.known.params_KP, folder)
    if params_BP is None:
        trained, quality = f"a few steps, timed ({_hours(made.train_seconds)} in all)", None
    else:
        trained = f"{digits(made.trained_seconds)} s" if _is_part(made) else _ALL
        quality = ours.quality(params_BP)
    sampling = networks * made.network_seconds
    return made, Side(ours.name, peer.name, trained, networks, made.train_seconds, sampling, quality)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours"


def _is_part(made: Made) -> bool:
    return any(stage.done < stage.steps for stage in made.stages)


def compared(found: Found, ours: Ours, options: argparse.Namespace, folder: Path) -> Result:
    """The seconds of a peer beside ours; `table` has the rest."""
    networks = options.networks
    try:
        made, side = train_peer(found, ours, options, folder)
    except RuntimeError as error:
        return _left_out(f"{found.peer.name}: {ours.name}", f"its process failed: {error}")
    steps = ", ".join(f"{stage.steps:,} {stage.name}" for stage in made.stages if stage.steps > 1)
    done = ", ".join(f"{stage.done:,} {stage.name}" for stage in made.stages if stage.steps > 1)
    version = f"commit {found.peer.short_commit}" if found.commit else "a folder of unknown version"
    entry = result(
        _PART,
        f"train on {ours.name}, and make {networks} networks",
        [ours.train_seconds + ours.sample_seconds],
        plain=f"{found.peer.name}: steps: {steps}" + (f"; scaled up from {done}" if _is_part(made) else ""),
        seconds_plain=[made.train_seconds + networks * made.network_seconds],
        note=f"{version}; {made.how}. {side.words()} Measured once.",
    )
    return replace(entry, sides=[asdict(side)])


def _left_out(what: str, why: str) -> Result:
    return Result(_PART, what, None, None, None, None, None, None, 0, note=f"Left out: {why}")


def measure(options: argparse.Namespace) -> Iterator[Result]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            found = find_peers(options.peer_source, fetch=options.fetch_peers, work=folder)
        except PdiffError as error:
            raise SystemExit(str(error)) from None
        for each in found:
            if each.folder is None:
                yield _left_out(each.peer.name, each.why)
        here = [each for each in found if each.folder is not None]
        if not here:
            return
        for number, dataset in enumerate(_sets(options, folder)):
            ours = train_ours(dataset, options.networks, options.steps, folder / f"ours-{number}")
            sides = ours.sides(options.networks)
            alone = result(
                _PART,
                f"train on {ours.name}, and make {options.networks} networks",
                [ours.train_seconds + ours.sample_seconds],
                note=f"{sides[-1].words()} Measured once.",
            )
            yield replace(alone, sides=[asdict(side) for side in sides])
            for place, each in enumerate(here):
                work = folder / f"set-{number}-{place}"
                work.mkdir()
                yield compared(each, ours, options, work)


def _sets(options: argparse.Namespace, folder: Path) -> Iterator[CheckpointDataset]:
    if options.subset is not None:
        yield CheckpointDataset.from_pretrained(options.subset)
    else:
        yield runs.collect(Settings("small").norms("digits", "resnet18"), folder / "subset")
    yield CheckpointDataset.from_pretrained(SHIPPED / "checkpoints")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_source_options(parser)
    parser.add_argument("--subset", type=Path, help="the set of 2,048 numbers; default: collected, about a minute")
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--peer-networks", type=int, default=20, help="that a slow peer makes to be judged")
    parser.add_argument("--steps", type=int, default=DiffusionConfig().steps, help="of our denoiser's training")
    parser.add_argument("--whole", action="store_true", help="let peers do all of their training: about an hour")


if __name__ == "__main__":
    main(_PART, measure, add_options)
