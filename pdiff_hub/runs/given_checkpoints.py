"""Checkpoints that were given in Python, instead of being collected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.index import INDEX_NAME
from pdiff_hub.collect.importing import ImportConfig
from pdiff_hub.collect.shared_tensors import first_difference, remedy
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks.dry_run import build_checked
from pdiff_hub.recipes import Recipe
from pdiff_hub.tasks import Task
from pdiff_hub.travelling.param_autoencoder import ParamLayout

States = Sequence[Mapping[str, Tensor] | nn.Module]
_PREFIX = "memory:checkpoints-"


def dataset_of(states: States, select: str | list[str], spec: Mapping[str, Any], task: Task) -> CheckpointDataset:
    """State dicts, or modules, as a data set.

    Args:
        select: as in `ParamLayout.from_module`.
        spec: the complete spec of the network.

    Raises:
        ValueError: anything else; a tensor that is missing, unexpected, mis-shaped or not finite; one that is not
            selected and not the same in all. The message says in which state dict (counted from 0).
    """
    if isinstance(states, Mapping) or not isinstance(states, Sequence) or not states:
        raise PdiffError(
            f"checkpoints is {type(states).__name__}, expected a CheckpointDataset, its folder or Hub id, or a list of "
            "state dicts."
        )
    dicts = [each.state_dict() if isinstance(each, nn.Module) else each for each in states]
    layout = ParamLayout.from_module(build_checked(spec, from_files=True), select)
    frozen: dict[str, Tensor] = {}
    for index, state in enumerate(dicts):
        if not isinstance(state, Mapping):
            raise PdiffError(f"checkpoint {index} is {type(state).__name__}, expected a state dict or a module.")
        own = layout.frozen_state(state)
        frozen = frozen or own
        if differs := first_difference(frozen, own):
            raise PdiffError(
                f"checkpoint {index}: tensor {differs!r} is not selected, but differs from that in checkpoint 0; "
                f"{remedy(own[differs])}."
            )
    return CheckpointDataset(
        layout.flatten(dicts),
        layout,
        network=spec,
        task=task.spec,
        frozen=frozen,
        metadata=[{"run": "given"}] * len(dicts),
        collect={"method": "given"},
    )


def recipe_of_given(recipe: Recipe, dataset: CheckpointDataset) -> Recipe:
    """The recipe, which says of these checkpoints that they were given."""
    return replace(recipe, method="import", collect=ImportConfig(source=_source_of(dataset)))


def were_given(config: object) -> bool:
    """Whether a recipe's `collect` says that its checkpoints were given in Python."""
    return isinstance(config, ImportConfig) and config.source.startswith(_PREFIX)


def keep_given(dataset: CheckpointDataset, directory: Path) -> None:
    """Saves checkpoints that are in memory only, so that other processes can open them."""
    if dataset.in_memory and not (directory / INDEX_NAME).exists():
        dataset.save_pretrained(directory)


def reopen_given(config: ImportConfig, directory: Path) -> CheckpointDataset:
    """The checkpoints that `keep_given` saved; ValueError if they are not there."""
    dataset = CheckpointDataset.from_pretrained(directory) if (directory / INDEX_NAME).exists() else None
    if dataset is None or _source_of(dataset) != config.source:
        raise PdiffError(
            f"the checkpoints {config.source!r} were given in Python and are not in {directory}: give them again, as "
            "PDiffTrainer(checkpoints=...)."
        )
    return dataset


def _source_of(dataset: CheckpointDataset) -> str:
    return f"{_PREFIX}{dataset.digest(len(dataset))[:12]}"
