"""Checkpoints of many networks: K seeds are trained together from scratch, and hidden units are put into one order.

Under a launcher every process trains its share of the seeds; the rows are then joined in the order of the seeds. There
are as many shares as processes, or as there were when the collection was begun: a killed one goes on with any number.
Shapes: K networks, R networks of one part, P parameters.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.index import INDEX_NAME
from pdiff_hub.checkpoints.rows import pieces_of
from pdiff_hub.collect.alignment import align_to_mean, require_alignable
from pdiff_hub.collect.journal import CheckpointJournal, TrainingState, settings_of
from pdiff_hub.collect.population.batched_training import BatchedTrainer
from pdiff_hub.collect.population.training_groups import train_in_groups
from pdiff_hub.collect.whole_networks import require_shared, require_shared_start, whole_layout
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import build_network
from pdiff_hub.networks.dry_run import build_checked
from pdiff_hub.prediction.predictions import SplitImages, evaluate
from pdiff_hub.processes import alone_in, this_run
from pdiff_hub.safe_files import require_same_settings
from pdiff_hub.safe_files.lock import remove_stale_lock
from pdiff_hub.tasks import Task
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_SAMPLE = 16  # inputs on which alignment is checked
_SHARE = re.compile(r"seeds-\d+-of-(\d+)")


@dataclass(frozen=True)
class PopulationConfig:
    """Many networks are trained from independent seeds, then their hidden units are put into one order.

    Args:
        num_checkpoints (at least 2): how many networks are trained; the seeds are seed, seed + 1, ...
        epochs (at least 1): of each network's training.
        batch_size (at least 1): images per step of each network.
        learning_rate (above 0): of batched AdamW, with warm-up and cosine.
        weight_decay (at least 0): a strong one removes what is left of the initial weights, so that aligned networks
            are alike.
        label_smoothing (at least 0, below 1): of the loss that the networks are trained with.
        align: put hidden units into one order (git re-basin).
        align_rounds (at least 1): how often all networks are matched to a new mean network.
        networks_at_once (at least 1): how many are trained as one program; null takes as many as fit into 1 GiB with
            their weights, gradients and moments.

    Raises ValueError naming the option that is out of range.
    """

    num_checkpoints: int = 200
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 1.0
    label_smoothing: float = 0.1
    align: bool = True
    align_rounds: int = 4
    networks_at_once: int | None = None

    def __post_init__(self) -> None:
        for option, least in (
            ("num_checkpoints", 2),
            ("epochs", 1),
            ("batch_size", 1),
            ("align_rounds", 1),
            ("networks_at_once", 1),
        ):
            value = getattr(self, option)
            if option == "networks_at_once" and value is None:
                continue
            if type(value) is not int or value < least:
                raise PdiffError(f"{option} must be an integer from {least}, found {value!r}")
        if not self.learning_rate > 0:
            raise PdiffError(f"learning_rate must be above 0, found {self.learning_rate!r}")
        if not self.weight_decay >= 0:
            raise PdiffError(f"weight_decay must be from 0, found {self.weight_decay!r}")
        if not 0 <= self.label_smoothing < 1:
            raise PdiffError(f"label_smoothing must be from 0 and below 1, found {self.label_smoothing!r}")


def collect_population(
    task: Task,
    network_spec: dict[str, Any],
    select: str | Sequence[str],
    config: PopulationConfig,
    directory: Path,
    *,
    seed: int,
    device: str = "cpu",
    progress: bool = True,
) -> CheckpointDataset:
    """Trains K seeds from scratch and keeps the last weights of each, as a data set in `directory`.

    A killed run resumes when it is started again. Under a launcher, call it in every process.
    Raises ValueError for a selection that leaves trained tensors out (networks from scratch differ in all of them), a
    network that cannot be aligned, and a loss that is not finite.
    """
    here = this_run()  # before the first use of the device
    spec = dict(network_spec)
    network = build_checked(spec, seed=seed)
    layout = whole_layout(network, select, "population", "differs between networks trained from scratch")
    settings = {"collect": asdict(config), "network": spec, "task": task.spec, "seed": seed}
    if here.told((directory / INDEX_NAME).exists()):
        return _finished(directory, settings)
    require_shared_start(layout, network, lambda: build_network(spec, seed=seed + 1, pretrained=False))
    if config.align:
        require_alignable(network, task.inputs(task.validation, slice(0, _SAMPLE)))
    with alone_in(directory):
        if here.told((directory / INDEX_NAME).exists()):  # another run held the folder until now
            return _finished(directory, settings)
        inputs_NX = task.inputs(task.train).to(device)
        world = here.told(_begun_shares(directory, settings) or min(here.count, config.num_checkpoints))
        shares = [directory / f"seeds-{part}-of-{world}" for part in range(world)]
        for part in range(here.index, world, here.count):
            _train_share(task, spec, layout, config, shares[part], settings, part, world, inputs_NX, progress)
        here.wait()
        if here.is_main:
            _join(task, spec, layout, config, directory, shares, network, settings)
    return CheckpointDataset.from_pretrained(directory)


def _train_share(
    task: Task,
    spec: dict[str, Any],
    layout: ParamLayout,
    config: PopulationConfig,
    directory: Path,
    settings: dict[str, Any],
    part: int,
    world: int,
    inputs_NX: Tensor,
    progress: bool,
) -> None:
    seed = settings["seed"]
    journal = CheckpointJournal(directory, settings, layout)
    if journal.finished:
        return
    seeds = list(range(seed + part, seed + config.num_checkpoints, world))
    labels_N = task.train.labels_N.to(inputs_NX.device)
    augment = task.augment if any(task.spec["augment"].values()) else None
    network = build_network(spec, seed=seed, pretrained=False)
    frozen = layout.frozen_state(network.state_dict())

    def make(rows: range) -> BatchedTrainer:
        return BatchedTrainer(
            lambda each: build_network(spec, seed=each, pretrained=False).train(),
            seeds[rows.start : rows.stop],
            inputs_NX,
            labels_N,
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            label_smoothing=config.label_smoothing,
            augment=augment,
        )

    def keep(trainer: BatchedTrainer, rows: range) -> None:
        nonlocal frozen
        steps = config.epochs * (len(inputs_NX) // min(config.batch_size, len(inputs_NX)))
        frozen = _append(journal, trainer, seeds[rows.start : rows.stop], steps, task, network, layout, frozen)

    train_in_groups(
        journal,
        len(seeds),
        config.epochs,
        make,
        keep,
        at_once=config.networks_at_once,
        what="train population",
        progress=progress,
    )
    journal.finish(network=spec, task=task.spec, frozen=frozen, collect={"method": "population"})


def _append(
    journal: CheckpointJournal,
    trainer: BatchedTrainer,
    seeds: Sequence[int],
    step: int,
    task: Task,
    network: nn.Module,
    layout: ParamLayout,
    frozen: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Judges the trained networks and adds them to the journal. -> the frozen tensors of the first.

    A function of its own, so that its copy of the parameters is freed before the next networks are trained.
    """
    stacked = trainer.stacked_state()
    require_shared(layout, stacked)
    frozen = {name: stacked[name][0] for name in frozen}
    params_RP, split = layout.unstack(stacked), task.validation
    judged = evaluate(network, layout, frozen, params_RP, SplitImages(task, split), split.labels_N, with_loss=True)
    assert judged.loss_B is not None
    metadata = [
        {
            "run": f"seed-{seed}",
            "seed": seed,
            "step": step,
            "train_loss": float(loss),
            "validation_loss": float(judged.loss_B[row]),
            "validation_accuracy": float(judged.accuracy_B[row]),
        }
        for row, (seed, loss) in enumerate(zip(seeds, trainer.last_loss_K, strict=True))
    ]
    journal.append(params_RP, metadata, TrainingState(info={"done": len(seeds)}))
    return frozen


def _join(
    task: Task,
    spec: dict[str, Any],
    layout: ParamLayout,
    config: PopulationConfig,
    directory: Path,
    shares: list[Path],
    network: nn.Module,
    settings: dict[str, Any],
) -> None:
    """Joins the shares in the order of the seeds, aligns them, saves them in `directory`, and removes the shares."""
    params_KP = torch.empty(config.num_checkpoints, layout.num_params)
    metadata: list[dict[str, Any]] = [{}] * config.num_checkpoints
    frozen: dict[str, Tensor] = {}
    for part in reversed(range(len(shares))):  # one is open at a time; `frozen` is that of the first
        share = CheckpointDataset.from_pretrained(shares[part])
        metadata[part :: len(shares)], frozen = share.metadata, share.frozen
        own_RP = params_KP[part :: len(shares)]
        for first, start, params_RS in pieces_of(share.rows, 0, len(share)):
            own_RP[first : first + len(params_RS), start : start + params_RS.shape[1]] = params_RS
        del share
    collect: dict[str, Any] = {"method": "population", "settings": settings}
    if config.align:
        sample_NX = task.inputs(task.validation, slice(0, _SAMPLE))
        info = align_to_mean(
            network, params_KP, layout, sample_NX, frozen=frozen, rounds=config.align_rounds, seed=settings["seed"]
        )
        collect["alignment"] = info.to_dict()
    dataset = CheckpointDataset(
        params_KP, layout, network=spec, task=task.spec, frozen=frozen, metadata=metadata, collect=collect
    )
    dataset.save_pretrained(directory)
    _remove_shares(directory, settings)


def _finished(directory: Path, settings: dict[str, Any]) -> CheckpointDataset:
    dataset = CheckpointDataset.from_pretrained(directory)
    require_same_settings(directory, dataset.collect.get("settings", {}), settings)
    if this_run().is_main:
        _remove_shares(directory, settings)  # a kill may have come after the data set was saved, but before this
        remove_stale_lock(directory)
    return dataset


def _begun_shares(directory: Path, settings: dict[str, Any]) -> int:
    """In how many shares this collection was begun, 0 if it was not."""
    found = [(match, share) for share in directory.glob("seeds-*") if (match := _SHARE.fullmatch(share.name))]
    begun = [int(match[1]) for match, share in found if _is_share_of(share, settings) and any(share.iterdir())]
    return max(begun, default=0)


def _remove_shares(directory: Path, settings: dict[str, Any]) -> None:
    """Removes the shares of this collection, of any number of processes, and no other folder that is called so."""
    for share in directory.glob("seeds-*-of-*"):
        if _SHARE.fullmatch(share.name) and not share.is_symlink() and _is_share_of(share, settings):
            share.rename(directory / f".removed-{share.name}")  # a kill while files are removed leaves this name
    for share in directory.glob(".removed-seeds-*-of-*"):
        shutil.rmtree(share, ignore_errors=True)


def _is_share_of(share: Path, settings: dict[str, Any]) -> bool:
    """Whether the collection with these settings wrote `share`, whole or in parts. An empty folder is nobody's."""
    if not share.is_dir() or not any(share.iterdir()):
        return share.is_dir()
    try:
        found = settings_of(share)
    except (OSError, PdiffError):
        return False
    return found == json.loads(json.dumps(settings))
