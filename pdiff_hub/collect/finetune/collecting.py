"""Checkpoints of one network on one training path: train it (or load it), freeze all but the selection, train on and
keep one checkpoint every few steps (p-diff, arXiv 2402.13144, sec. 3.1).

A step depends only on the seed, the phase, the step number and the weights before it. So a killed run resumes from the
newest `TrainingState` of its journal. On a CPU it then ends in exactly the same data set.

Shapes: K checkpoints, P parameters.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.finetune.config import FinetuneConfig
from pdiff_hub.collect.finetune.image_batches import ImageBatches
from pdiff_hub.collect.finetune.run import FinetuneRun, trainable
from pdiff_hub.collect.journal import BackgroundJournal, CheckpointJournal, settings_of
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import NETWORK_NAMES, build_network, resolve_network
from pdiff_hub.networks.devices import multiplies_bf16
from pdiff_hub.networks.dry_run import build_checked
from pdiff_hub.progress import progress_bar
from pdiff_hub.safe_files import remove_unfinished, write_safetensors
from pdiff_hub.tasks import Task
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_PART_ROWS, _PART_BYTES = 20, 256 << 20  # a part is committed when it reaches either limit,
_STATE_SECONDS = 30.0  # or when the last one is this old: no more work than this is ever done twice


def collect_finetune(
    task: Task,
    network_spec: str | Mapping[str, Any],
    select: str | Sequence[str],
    config: FinetuneConfig,
    directory: str | Path,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    trained: Path | None = None,
    progress: bool = True,
) -> CheckpointDataset:
    """Trains one network and collects `config.num_checkpoints` checkpoints of its selected tensors in `directory`.

    The first phase trains the whole network. The second phase trains only the selected parameters and keeps everything
    else as it is: a module with running statistics that are not selected runs in eval mode, so it normalises with them
    and does not change them. So two checkpoints differ only in what is saved.

    Args:
        task: the network is trained on `train`, and each checkpoint is judged on `validation`.
        network_spec: as in `resolve_network`; `pretrained` weights are loaded when collecting starts. The data set
            keeps the complete spec: `build_network(dataset.network, pretrained=False)` downloads nothing.
        select: as in `ParamLayout.from_module`.
        directory: where the data set will be. If a run with the same arguments was stopped there, it is resumed without
            losing or repeating a checkpoint; if it had finished, its data set is only opened.
        seed: 0 or larger; decides all randomness. The caller's random number generators are left as they were.
        trained: a folder that keeps networks as the first phase leaves them. If it has the right one, the first phase
            is skipped. Runs that differ only in what they select, or in how they train on, share one network; the
            result is the same as without the folder.
        progress: show how far it is (`pdiff_hub.progress`).

    Returns:
        K rows in the order of training. `metadata[k]` has run, seed, step (of the second phase, counted from 1),
        train_loss (mean since the previous checkpoint), validation_loss (without label smoothing),
        validation_accuracy (a fraction).

    Raises:
        ValueError: bad options; nothing to train in the selection; a directory with checkpoints of other settings;
            training that diverges (committed checkpoints stay); a network that changes tensors outside the selection.
    """
    place = torch.empty(0, device=device).device  # with its index: "cuda" becomes "cuda:0"
    if config.mixed_precision == "auto":
        config = replace(config, mixed_precision=_precision(Path(directory), place))
    shape = {"in_channels": task.in_channels, "image_size": task.image_size, "num_classes": task.num_classes}
    spec = resolve_network(network_spec, **shape)
    network = build_checked(spec, seed=seed)
    layout = ParamLayout.from_module(network, select, config.buffers)
    if not trainable(network, layout):
        raise PdiffError(f"select={select!r} has no parameter of {spec['name']!r} that can be trained; select weights.")
    settings = {
        "method": "finetune",
        "seed": seed,
        "device": place.type,
        **_recorded(config),
        "network": spec,
        "select": layout.select,
        "task": task.spec["resolved"]["fingerprint"],
        "augment": task.spec["augment"],
        **({"normalize": task.spec["normalize"]} if "normalize" in task.spec else {}),
    }
    journal = CheckpointJournal(directory, settings, layout)
    if journal.finished:
        return CheckpointDataset.from_pretrained(directory)
    state = journal.state
    if state is None and spec.get("pretrained") is not None:
        network = build_network(spec, seed=seed)
    network = network.to(place)
    known = spec["name"] in NETWORK_NAMES  # a user's own network may do anything, so both below leave it alone
    if known:
        # Twice as fast on a CPU, but a network that calls .view would fail.
        for parameter in (each for each in network.parameters() if each.ndim == 4):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    images = ImageBatches(task, config.batch_size, seed, place)
    # A network that decides in Python what a step does would do the same at every step once it is captured.
    run = FinetuneRun(network, layout, images, config, captured=known and place.type == "cuda")
    # torch's generators are restored afterwards, and cuDNN uses only algorithms that always give the same result.
    with (
        torch.random.fork_rng([place.index] if place.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=True, deterministic=True),
    ):
        if state is not None:
            run.load(state)
        with BackgroundJournal(journal) as writer:
            if run.phase == "train":
                _trained_network(run, writer, progress, None if trained is None else trained / _trained_name(settings))
            _finetune(run, writer, journal.num_checkpoints, {"run": f"finetune-{seed}", "seed": seed}, progress)
    return journal.finish(
        network=spec, task=task.spec, frozen=layout.frozen_state(network.state_dict()), collect={"method": "finetune"}
    )


def _trained_network(run: FinetuneRun, writer: BackgroundJournal, shown: bool, file: Path | None) -> None:
    """Runs the first phase, or loads the network that another run's first phase has left in `file`."""
    if file is not None and file.exists():
        run.network.load_state_dict(load_file(file, device=str(run.images.device)))
        run.begin("finetune")
        return
    _train(run, writer, shown)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(file.parent, of=file.name)
        write_safetensors(file, run.network.state_dict())
    writer.save_state(run.state())  # only now: a run that goes on from it has no such file to write


def _precision(directory: Path, place: torch.device) -> str:
    """What "auto" is: as the set in `directory` was begun, perhaps on another machine; else what is faster here."""
    begun = settings_of(directory)
    if begun is not None:
        return str(begun.get("mixed_precision", "no"))
    return "bf16" if multiplies_bf16(place) else "no"


def _recorded(config: FinetuneConfig) -> dict[str, Any]:
    """The options that decide the checkpoints; without mixed precision if it is not used, so that older sets go on."""
    options = asdict(config)
    if config.mixed_precision == "no":
        del options["mixed_precision"]
    return options


def _trained_name(settings: Mapping[str, Any]) -> str:
    """A file name that depends only on the settings of the first phase."""
    second = ("num_checkpoints", "save_every", "finetune_learning_rate", "buffers", "select")
    first = {key: value for key, value in settings.items() if key not in second}
    return f"trained-{hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()[:12]}.safetensors"


def _train(run: FinetuneRun, writer: BackgroundJournal, shown: bool) -> None:
    """Completes the first phase; leaves `run` at the start of the second phase, whose state is not yet saved."""
    per_epoch, saved = run.images.steps_per_epoch, time.monotonic()
    loss, first = torch.zeros((), device=run.images.device), run.step
    with progress_bar(run.num_train_steps, "train the network", "step", initial=run.step, shown=shown) as bar:
        while run.step < run.num_train_steps:
            loss += run.take_step()
            bar.update()
            old = time.monotonic() - saved >= _STATE_SECONDS
            if old or run.step % per_epoch == 0:
                bar.set_postfix(loss=f"{run.checked_mean(loss, first):.4f}")
                loss, first = torch.zeros_like(loss), run.step
            if old:
                writer.save_state(run.state())
                saved = time.monotonic()
    run.begin("finetune")


def _finetune(run: FinetuneRun, writer: BackgroundJournal, start: int, row: Mapping[str, Any], shown: bool) -> None:
    """Completes the second phase, of which `start` checkpoints are done, and commits parts on the way."""
    total, every = run.config.num_checkpoints, run.config.save_every
    most = max(1, min(_PART_ROWS, _PART_BYTES // (4 * run.layout.num_params)))
    params_RP, metadata = torch.empty(0, run.layout.num_params), list[dict[str, Any]]()
    saved = time.monotonic()
    with progress_bar(total, "collect", "checkpoint", initial=start, shown=shown) as bar:
        for number in range(start + 1, total + 1):
            loss, first = torch.zeros((), device=run.images.device), run.step
            for _ in range(every):
                loss += run.take_step()
            train_loss = run.checked_mean(loss, first)
            validation_loss, accuracy = run.validate()
            if not metadata:  # new memory for a new part: the previous part may still be on its way to the disk
                params_RP = torch.empty(most, run.layout.num_params)
            params_RP[len(metadata)] = run.params()
            metadata.append(
                {
                    **row,
                    "step": run.step,
                    "train_loss": train_loss,
                    "validation_loss": validation_loss,
                    "validation_accuracy": accuracy,
                }
            )
            bar.set_postfix(loss=f"{train_loss:.4f}", accuracy=f"{accuracy:.4f}")
            bar.update()
            if number == total or len(metadata) >= most or time.monotonic() - saved >= _STATE_SECONDS:
                run.check_frozen()
                writer.append(params_RP[: len(metadata)], metadata, run.state())
                metadata, saved = [], time.monotonic()
