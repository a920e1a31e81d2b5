"""Networks by description, for tasks that nobody trained, beside the simple ways to get one.

Shapes: T seen tasks, U held-out ones, K seen networks, P parameters, D numbers of a condition, F features of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import PickedRows, Rows
from pdiff_hub.runs.requests.room import room
from pdiff_hub.runs.requests.task_networks import TaskNetworks
from pdiff_hub.seeds import derived_seed
from pdiff_hub.travelling.conditioner import ConditionSpec

_NEIGHBOURS = (1, 2, 3, 5, 10, 20)
_RIDGES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
_MOST_FEATURES = 2048  # of pairs; with more, the table of features is too large to be a simple way
_TRIED_TASKS = 60  # seen tasks, evenly spaced, by which a simple way's own choice is made; fewer of large networks,
_TRIED_NUMBERS = 2**27  # which together have at most so many parameters
_SCRATCH_RATE = 1e-2  # as families are collected


@dataclass(frozen=True, eq=False)
class SeenTasks:
    """What simple ways know: each seen task's condition [T,D], the mean of its networks [T,P], and the first of them,
    which are T rows that are read when they are asked for."""

    spec: ConditionSpec
    condition_TD: Tensor
    mean_TP: Tensor
    first: Rows

    @classmethod
    def of(cls, dataset: CheckpointDataset) -> SeenTasks:
        """The tasks of a data set with conditions, in the order of their conditions; reads its rows in slices of P."""
        assert dataset.conditions is not None and dataset.conditions_KD is not None
        condition_TD, task_K = torch.unique(dataset.conditions_KD, dim=0, return_inverse=True)
        count_T = torch.bincount(task_K, minlength=len(condition_TD))
        first_T = torch.full((len(condition_TD),), len(task_K)).scatter_reduce(
            0, task_K, torch.arange(len(task_K)), reduce="amin"
        )
        mean_TP = room(len(condition_TD), dataset.layout.num_params)
        step = max(1, (64 << 20) // (4 * len(dataset)))
        for start in range(0, dataset.layout.num_params, step):
            part_KS = dataset.read_slice(start, min(start + step, dataset.layout.num_params)).float()
            one = slice(start, start + part_KS.shape[1])
            sums_TS = torch.zeros(len(condition_TD), part_KS.shape[1]).index_add_(0, task_K, part_KS)
            mean_TP[:, one] = sums_TS / count_T[:, None]
        return cls(dataset.conditions, condition_TD, mean_TP, PickedRows(dataset.rows, first_T.tolist()))

    def channels(self, condition_ND: Tensor) -> Tensor:
        """Conditions as numbers of about -1 to 1, [N,D]."""
        return self.spec.channels(condition_ND)[:, :-1]

    def without(self, task: int) -> SeenTasks:
        """All but one task."""
        others = [row for row in range(len(self.condition_TD)) if row != task]
        return SeenTasks(self.spec, self.condition_TD[others], self.mean_TP[others], PickedRows(self.first, others))


def nearest(seen: SeenTasks, condition_UD: Tensor) -> Tensor:
    """A network of the seen task whose condition is nearest, [U,P]."""
    distance_UT = torch.cdist(seen.channels(condition_UD), seen.channels(seen.condition_TD))
    picked = PickedRows(seen.first, distance_UT.argmin(dim=1).tolist())
    return picked.read(0, picked.num_rows, 0, picked.num_params).float()


def average_of_nearest(seen: SeenTasks, condition_UD: Tensor, neighbours: int) -> Tensor:
    """The average of all networks of so many nearest seen tasks, [U,P]."""
    distance_UT = torch.cdist(seen.channels(condition_UD), seen.channels(seen.condition_TD))
    rows_Uk = distance_UT.topk(min(neighbours, len(seen.mean_TP)), largest=False).indices
    return torch.stack([seen.mean_TP[rows_k].mean(dim=0) for rows_k in rows_Uk])


def ridge(seen: SeenTasks, condition_UD: Tensor, strength: float, *, pairs: bool = False) -> Tensor:
    """Linear regression from conditions (and products of two of their numbers) to weights, [U,P]."""
    features_TF, features_UF = (_features(seen.channels(each), pairs) for each in (seen.condition_TD, condition_UD))
    gram_FF = features_TF.T @ features_TF + strength * torch.eye(features_TF.shape[1])
    return features_UF @ torch.linalg.solve(gram_FF, features_TF.T @ seen.mean_TP)


def interpolation(seen: SeenTasks, condition_UD: Tensor) -> Tensor:
    """Linear interpolation of the seen tasks next below and above, by a scalar condition; outside, the last one."""
    known_T, asked_U = seen.spec.values(seen.condition_TD), seen.spec.values(condition_UD)
    known_T, order_T = known_T.sort()
    above_U = torch.searchsorted(known_T, asked_U).clamp(0, len(known_T) - 1)
    below_U = (above_U - 1).clamp_min(0)
    width_U = (known_T[above_U] - known_T[below_U]).clamp_min(1e-12)
    share_U1 = ((asked_U - known_T[below_U]) / width_U).clamp(0, 1)[:, None]
    return torch.lerp(seen.mean_TP[order_T[below_U]], seen.mean_TP[order_T[above_U]], share_U1.float())


def simple_ways(seen: SeenTasks, condition_UD: Tensor, networks: TaskNetworks) -> dict[str, Tensor]:
    """Networks [U,P] of each simple way. What a way can choose is chosen on validation images of seen tasks."""

    def chosen(make: Callable[[SeenTasks, Tensor, float], Tensor], settings: Sequence[float]) -> Tensor:
        best = _best(make, settings, seen, networks)
        return make(seen, condition_UD, best)

    ways = {
        "nearest": nearest(seen, condition_UD),
        "average": chosen(lambda known, asked, number: average_of_nearest(known, asked, int(number)), _NEIGHBOURS),
        "ridge": chosen(ridge, _RIDGES),
    }
    if seen.spec.kind == "scalar":
        ways["interpolation"] = interpolation(seen, condition_UD)
    if _features(seen.channels(seen.condition_TD[:1]), True).shape[1] <= _MOST_FEATURES:
        ways["ridge_pairs"] = chosen(lambda known, asked, strength: ridge(known, asked, strength, pairs=True), _RIDGES)
    return ways


def further_training(
    starts: dict[str, Tensor], steps: Sequence[int], condition_UD: Tensor, networks: TaskNetworks, *, seed: int
) -> dict[str, Tensor]:
    """Accuracies [U] of networks that train on from each start, as "start_steps". All see the same batches.

    The learning rate is that of training from scratch for "scratch", and a third of it for others, which begin nearer.
    """
    rates = {name: _SCRATCH_RATE if name == "scratch" else _SCRATCH_RATE / 3 for name in starts}
    return {
        f"{name}_{number}": networks.accuracy(
            networks.trained(
                start, condition_UD, number, learning_rate=rates[name], seed=derived_seed(seed, "further training")
            ),
            condition_UD,
        )
        for name, start in starts.items()
        for number in steps
    }


def _features(channels_ND: Tensor, pairs: bool) -> Tensor:
    features = [channels_ND, torch.ones_like(channels_ND[:, :1])]
    if pairs:
        first, second = torch.triu_indices(channels_ND.shape[1], channels_ND.shape[1], offset=1)
        features.append(channels_ND[:, first] * channels_ND[:, second])
    return torch.cat(features, dim=1)


def _best(
    make: Callable[[SeenTasks, Tensor, float], Tensor],
    settings: Sequence[float],
    seen: SeenTasks,
    networks: TaskNetworks,
) -> float:
    """The setting with the highest mean accuracy on seen tasks, each made from all others."""
    num_tried = max(1, min(_TRIED_TASKS, len(seen.condition_TD), _TRIED_NUMBERS // seen.mean_TP.shape[1]))
    tried = torch.linspace(0, len(seen.condition_TD) - 1, num_tried).round().long()
    scores = []
    for setting in settings:
        made_nP = torch.cat(
            [make(seen.without(task), seen.condition_TD[task : task + 1], setting) for task in tried.tolist()]
        )
        scores.append(float(networks.accuracy(made_nP, seen.condition_TD[tried], networks.task.validation).mean()))
    return settings[max(range(len(settings)), key=scores.__getitem__)]
