"""A start for the networks of a family: one trunk that all seen tasks train together, each with its own last layer.

From such a start, networks of different tasks differ by little more than their last layers, so that more is known of
those of other tasks (docs/measurements.md, "Asking"; Caruana 1997, "Multitask Learning").
Shapes: T tasks, B images of each, X one input, D numbers of a condition, c answers.
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
from pdiff_hub.networks.watching import watch
from pdiff_hub.progress import progress_bar
from pdiff_hub.seeds import generator_of
from pdiff_hub.tasks import Task

_FEWEST = 4  # images of each task in a step, where each sees its own


def last_layer(network: nn.Module, inputs_BX: Tensor) -> set[str]:
    """The names of the parameters of the layer that runs last on these inputs, weights and bias; empty if none runs."""
    ran: list[str] = []
    owners = {name: each for name, each in network.named_modules() if any(True for _ in each.parameters(recurse=False))}
    watch(network, inputs_BX, owners, lambda name, _: ran.append(name))
    layer = f"{ran[-1]}." if ran and ran[-1] else ""
    return {name for name, _ in network.named_parameters() if ran and name.startswith(layer)}


def train_trunk(
    network: nn.Module,
    family: Family,
    condition_TD: Tensor,
    task: Task,
    steps: int,
    *,
    images: int,
    learning_rate: float,
    seed: int,
    progress: bool = True,
) -> None:
    """Trains `network`, in place and where it is, on all these tasks at once, by so many steps of AdamW.

    Each task has a last layer of its own; the network gets their mean. A step takes so many `images`. Where tasks see
    the same ones, as subsets of classes do, these go through the trunk once for all tasks. Elsewhere the tasks share
    them out, at least four for each.

    Raises:
        ValueError: a network of one layer, or whose last layer is frozen; one with active dropout, or that `vmap`
            cannot run; a loss that is not finite.
    """
    require_no_dropout(network)
    device, what = next(network.parameters()).device, type(network).__name__
    batches = _Batches(family, condition_TD.to(device), task, images, device)
    own = last_layer(network, task.inputs(task.train, slice(0, 2)).to(device))
    parameters: dict[str, Tensor] = {name: each for name, each in network.named_parameters() if each.requires_grad}
    trunk = {name: each for name, each in parameters.items() if name not in own}
    heads_T = {
        name: each.detach().expand(len(condition_TD), *each.shape).clone().requires_grad_()
        for name, each in parameters.items()
        if name in own
    }
    if not trunk or not heads_T:
        raise PdiffError(
            f"a {what} has no trunk that tasks could share: expected parameters to train in its last layer "
            f"({', '.join(sorted(own)) or 'none was found'}) and in layers before it; use trunk_steps: 0."
        )
    buffers = dict(network.named_buffers())
    # Images of its own change a network's running statistics in its own way; the mean is kept, as of the last layers.
    each_its_own = None if batches.shared else 0

    def one(trunk: dict[str, Tensor], head: dict[str, Tensor], kept: dict[str, Tensor], inputs_BX: Tensor) -> Tensor:
        return logits(functional_call(network, {**trunk, **head, **kept}, (inputs_BX,)))

    together = vmap(one, in_dims=(None, 0, each_its_own, each_its_own))
    optimizer = torch.optim.AdamW([*trunk.values(), *heads_T.values()], lr=learning_rate, weight_decay=0.0)
    schedule, bar = cosine_with_warm_up(optimizer, steps), progress_bar(steps, "train trunk", "step", shown=progress)
    network.train()
    for step in range(steps):
        inputs, labels_TB = batches.draw(generator_of(seed, "trunk", step))
        kept = dict(buffers)
        if not batches.shared:
            kept = {name: each.expand(len(condition_TD), *each.shape).clone() for name, each in buffers.items()}
        try:
            logits_TBc = together(trunk, heads_T, kept, inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise PdiffError(
                f"a {what} cannot be trained for many tasks at once ({error}); use trunk_steps: 0."
            ) from error
        loss = F.cross_entropy(logits_TBc.flatten(0, 1).float(), labels_TB.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if not batches.shared:
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
    """The images and labels of all tasks, as they see them.

    Attributes:
        shared: whether all tasks see the same images, so that only their labels differ.
    """

    def __init__(self, family: Family, condition_TD: Tensor, task: Task, images: int, device: torch.device) -> None:
        self._family, self._condition_TD, self._task, self._device = family, condition_TD, task, device
        self._augments = any(task.spec["augment"].values())
        inputs_TBX, _ = self._seen(task.inputs(task.train, slice(0, 2)), task.train.labels_N[:2], shared=True)
        self.shared = inputs_TBX.stride(0) == 0 and len(condition_TD) > 1
        self._drawn = images if self.shared else len(condition_TD) * max(_FEWEST, images // len(condition_TD))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images, [B,X] if tasks share them and otherwise [T,B,X], and labels [T,B]."""
        split = self._task.train
        index_N = torch.randint(len(split), (self._drawn,), generator=generator)
        inputs_NX = self._task.inputs(split, index_N)
        if self._augments:
            inputs_NX = self._task.augment(inputs_NX, generator)
        inputs_TBX, labels_TB = self._seen(inputs_NX, split.labels_N[index_N], shared=self.shared)
        if self.shared and inputs_TBX.stride(0) != 0:
            raise PdiffError(
                "the family's view gives tasks the same images at first and others later; expected it to decide by the "
                "conditions alone."
            )
        return inputs_TBX[0] if self.shared else inputs_TBX, labels_TB

    def _seen(self, inputs_NX: Tensor, labels_N: Tensor, *, shared: bool) -> tuple[Tensor, Tensor]:
        """What the tasks see of these images, [T,B,X], and labels [T,B], which they share or share out."""
        tasks = len(self._condition_TD)
        both = (each.to(self._device) for each in (inputs_NX, labels_N))
        inputs_TBX, labels_TB = (
            each.expand(tasks, *each.shape) if shared else each.unflatten(0, (tasks, -1)) for each in both
        )
        return self._family.view(inputs_TBX, labels_TB, self._condition_TD)
