"""A start for the networks of a family: one trunk that all seen tasks train together, each with its own last layer.

From such a start, networks of different tasks differ by little more than their last layers, so that more is known of
those of other tasks (docs/measurements.md, "Asking"; Caruana 1997, "Multitask Learning").
Shapes: T seen tasks, G of them in one step, B images of each, X one input, D numbers of a condition, c answers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pdiff_hub.collect.family.family import Family
from pdiff_hub.collect.population.network_stack import require_no_dropout
from pdiff_hub.collect.schedule import cosine_with_warm_up
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import logits
from pdiff_hub.progress import progress_bar
from pdiff_hub.seeds import generator_of
from pdiff_hub.tasks import Task

_IMAGES = 512  # that pass through the trunk in one step
_TASKS = 256  # at most, in one step


def last_layer(network: nn.Module) -> set[str]:
    """The names of the parameters of the last layer, its weights and its bias."""
    names = [name for name, _ in network.named_parameters()]
    layer = names[-1].rpartition(".")[0]
    return {name for name in names if name.rpartition(".")[0] == layer}


def train_trunk(
    network: nn.Module,
    family: Family,
    condition_TD: Tensor,
    task: Task,
    steps: int,
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: bool = True,
) -> None:
    """Trains `network`, in place and where it is, on all these tasks at once, by so many steps of AdamW.

    Each task has a last layer of its own; the network gets their mean. Where tasks see the same images, as subsets of
    classes do, 512 images go through the trunk in one step, once for all tasks. Elsewhere a step takes as many tasks,
    drawn at random, as have so many images with `batch_size` images each.

    Raises:
        ValueError: a network with active dropout, or that `vmap` cannot run; a loss that is not finite.
    """
    require_no_dropout(network)
    tasks = _Batches(family, condition_TD, task, batch_size)
    device, total = next(network.parameters()).device, len(condition_TD)
    own = last_layer(network)
    parameters: dict[str, Tensor] = {name: each for name, each in network.named_parameters() if each.requires_grad}
    trunk = {name: each for name, each in parameters.items() if name not in own}
    heads_T = {
        name: each.detach().expand(total, *each.shape).clone().requires_grad_()
        for name, each in parameters.items()
        if name in own
    }
    buffers = dict(network.named_buffers())
    # Images of its own change a network's running statistics in its own way; the mean is kept, as of the last layers.
    each_its_own = None if tasks.share_images else 0

    def one(trunk: dict[str, Tensor], head: dict[str, Tensor], kept: dict[str, Tensor], inputs_BX: Tensor) -> Tensor:
        return logits(functional_call(network, {**trunk, **head, **kept}, (inputs_BX,)))

    together = vmap(one, in_dims=(None, 0, each_its_own, each_its_own))
    optimizer = torch.optim.AdamW([*trunk.values(), *heads_T.values()], lr=learning_rate, weight_decay=0.0)
    schedule, bar = cosine_with_warm_up(optimizer, steps), progress_bar(steps, "train trunk", "step", shown=progress)
    network.train()
    for step in range(steps):
        rows_G, inputs, labels_GB = tasks.draw(generator_of(seed, "trunk", step))
        kept = dict(buffers)
        if not tasks.share_images:
            kept = {name: each.expand(len(rows_G), *each.shape).clone() for name, each in buffers.items()}
        head = {name: each[rows_G.to(device)] for name, each in heads_T.items()}
        try:
            logits_GBc = together(trunk, head, kept, inputs.to(device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise PdiffError(f"a {type(network).__name__} cannot be trained for many tasks at once: {error}") from error
        loss = F.cross_entropy(logits_GBc.flatten(0, 1).float(), labels_GB.flatten().to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if not tasks.share_images:
            for name, each in buffers.items():
                each.copy_(kept[name].double().mean(dim=0) if each.is_floating_point() else kept[name][0])
        bar.update()
    bar.close()
    with torch.no_grad():
        for name, heads in heads_T.items():
            parameters[name].copy_(heads.mean(dim=0))
    if steps and not bool(loss.isfinite()):
        raise PdiffError(
            f"training the trunk of all tasks diverged: the loss is {float(loss.detach())}; lower learning_rate (it is "
            f"{learning_rate})."
        )


class _Batches:
    """The images and labels of some tasks, as they see them.

    Attributes:
        share_images: whether all tasks see the same images, so that only their labels differ.
    """

    def __init__(self, family: Family, condition_TD: Tensor, task: Task, batch_size: int) -> None:
        self._family, self._condition_TD, self._task = family, condition_TD, task
        self._augments = any(task.spec["augment"].values())
        few_1BX = task.inputs(task.train, slice(0, 2)).expand(1, -1, -1, -1, -1)
        seen_1BX, _ = family.view(few_1BX, task.train.labels_N[:2].expand(1, -1), condition_TD[:1])
        self.share_images = seen_1BX.data_ptr() == few_1BX.data_ptr()
        self._images = _IMAGES if self.share_images else min(batch_size, _IMAGES)
        self._num_tasks = min(len(condition_TD), _TASKS if self.share_images else _IMAGES // self._images)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Which tasks [G], their images ([B,X] if they share them, otherwise [G,B,X]) and their labels [G,B]."""
        split, tasks = self._task.train, self._num_tasks
        rows_G = torch.randperm(len(self._condition_TD), generator=generator)[:tasks]
        index_N = torch.randint(len(split), (self._images * (1 if self.share_images else tasks),), generator=generator)
        inputs_NX, labels_N = self._task.inputs(split, index_N), split.labels_N[index_N]
        if self._augments:
            inputs_NX = self._task.augment(inputs_NX, generator)
        inputs_GBX = (
            inputs_NX.expand(tasks, *inputs_NX.shape) if self.share_images else inputs_NX.unflatten(0, (tasks, -1))
        )
        labels_GB = labels_N.expand(tasks, -1) if self.share_images else labels_N.unflatten(0, (tasks, -1))
        inputs_GBX, labels_GB = self._family.view(inputs_GBX, labels_GB, self._condition_TD[rows_G])
        return rows_G, inputs_GBX[0] if self.share_images else inputs_GBX, labels_GB
