"""Trains many networks in groups that fit into memory, with progress and exact resume."""

from __future__ import annotations

import time
from collections.abc import Callable

from pdiff_hub.collect.journal import CheckpointJournal, TrainingState
from pdiff_hub.collect.population.batched_training import BatchedTrainer
from pdiff_hub.progress import progress_bar

_STATE_SECONDS = 20.0  # between saves of the training state: no more work than this is done twice
_MEMORY_BYTES = 2**30  # of weights, gradients and moments that are trained at once
_BYTES_PER_NUMBER = 16  # weight, gradient and two moments in float32


def train_in_groups(
    journal: CheckpointJournal,
    num_networks: int,
    epochs: int,
    make: Callable[[range], BatchedTrainer],
    keep: Callable[[BatchedTrainer, range], None],
    *,
    at_once: int | None,
    what: str,
    progress: bool,
) -> None:
    """Trains networks 0..num_networks-1 for `epochs` epochs, those first that the journal does not have yet.

    make: the trainer of the networks `range`. keep: adds them to the journal when they are trained. at_once: how many
    networks a group has; None takes as many as fit into 1 GiB with their weights, gradients and moments. what: names
    the progress bar.
    """
    at_once = at_once or max(1, _MEMORY_BYTES // (_BYTES_PER_NUMBER * journal.layout.num_params))
    bar = progress_bar(num_networks * epochs, what, "epoch", initial=journal.num_checkpoints * epochs, shown=progress)
    while journal.num_checkpoints < num_networks:
        rows = range(journal.num_checkpoints, min(journal.num_checkpoints + at_once, num_networks))
        trainer = make(rows)
        if (state := journal.state) is not None and state.tensors:
            trainer.load_training_state(state.tensors)
            bar.update(trainer.epoch * len(rows))
        saved = time.monotonic()
        while trainer.epoch < epochs:
            trainer.run_epoch()
            bar.update(len(rows))
            if time.monotonic() - saved > _STATE_SECONDS and trainer.epoch < epochs:
                journal.save_state(TrainingState(trainer.training_state()))
                saved = time.monotonic()
        keep(trainer, rows)
    bar.close()
