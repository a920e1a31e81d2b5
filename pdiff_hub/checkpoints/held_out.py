"""The networks of held-out tasks lie beside a data set, and must be of other tasks than its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.travelling.conditioner import ConditionSpec
from pdiff_hub.travelling.param_autoencoder import ParamLayout


class TaskNetworks(Protocol):
    """A set of networks, each for a task of its own: what a `CheckpointDataset` says of them."""

    layout: ParamLayout
    network: Any
    task: Any
    collect: Any
    frozen: dict[str, Tensor]
    metadata: list[dict[str, Any]]
    conditions: ConditionSpec | None
    conditions_KD: Tensor | None


def require_unseen(seen: TaskNetworks, unseen: TaskNetworks) -> None:
    """PdiffError if `unseen` was not collected with `seen`, or holds a task that `seen` holds too.

    Sets from elsewhere, and folders that were written into twice, may call unseen what was seen.
    """
    alike = ("layout", "network", "task", "conditions")
    different = [name for name in alike if getattr(seen, name) != getattr(unseen, name)]
    if seen.collect.get("settings") != unseen.collect.get("settings"):
        different.append("settings of the collection")
    if not _same(seen.frozen, unseen.frozen):
        different.append("frozen tensors")
    if different or seen.conditions_KD is None or unseen.conditions_KD is None:
        what = ", ".join(different) or "conditions"
        raise PdiffError(
            f"the networks of held-out tasks were not collected with the data set ({what} differ); give both of one "
            "collection."
        )
    groups, held_out_groups = ([row.get("run") for row in each.metadata] for each in (seen, unseen))
    if None in groups or None in held_out_groups:
        raise PdiffError(
            "some networks do not name the group of their task (the column `run`), so nobody can tell whether what is "
            "held out was seen; give the sets as they were collected."
        )
    if found := leaked(groups, seen.conditions_KD, held_out_groups, unseen.conditions_KD):
        raise PdiffError(
            f"the networks of held-out tasks hold {found[0]!r}, which the data set holds too; give tasks that it has "
            "not seen."
        )


def leaked(seen: Iterable[Any], seen_TD: Tensor, held_out: Sequence[Any], held_out_UD: Tensor) -> list[Any]:
    """The held-out groups, and conditions as tuples, that are among the seen ones."""
    known = {*seen, *map(tuple, seen_TD.tolist())}
    return [each for each in (*held_out, *map(tuple, held_out_UD.tolist())) if each in known]


def _same(seen: Mapping[str, Tensor], unseen: Mapping[str, Tensor]) -> bool:
    return seen.keys() == unseen.keys() and all(torch.equal(tensor, unseen[name]) for name, tensor in seen.items())
