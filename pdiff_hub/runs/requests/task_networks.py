"""Many networks of one architecture, each on a task of its own: what they answer, and how they train.

Shapes: N networks, b of them at once, P parameters, n images, B batch, D numbers of a condition, c answers, X an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pdiff_hub.collect.family import Family
from pdiff_hub.networks import logits
from pdiff_hub.prediction.predictions import SplitImages
from pdiff_hub.seeds import generator_of
from pdiff_hub.tasks import Split, Task
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_BYTES = 256 << 20  # for the networks of one vmap, with gradients, and their images
_IMAGES = 512


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples, each network's own: inputs [N,n,X] as networks take them, labels [N,n]."""

    inputs_NnX: Tensor
    labels_Nn: Tensor


@dataclass(frozen=True, eq=False)
class TaskNetworks:
    """Networks of `layout` on the tasks of `family`; work is done where `network` is. They run in eval mode."""

    network: nn.Module
    layout: ParamLayout
    frozen: dict[str, Tensor]
    task: Task
    family: Family

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def accuracy(self, params_NP: Tensor, condition_ND: Tensor, split: Split | None = None) -> Tensor:
        """Share of right answers [N]; on the test images unless another split is given."""
        split = split or self.task.test
        right_N = torch.zeros(len(params_NP), dtype=torch.float64)
        for rows, log_bnc, labels_bn in self.answers(params_NP, condition_ND, split):
            right_N[rows] += (log_bnc.argmax(dim=2) == labels_bn).double().sum(dim=1)
        return right_N / len(split)

    @torch.no_grad()
    def answers(self, params_NP: Tensor, condition_ND: Tensor, split: Split) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """For some networks and images at a time: which networks, log probabilities [b,n,c] and labels [b,n] as each
        network's task has them, on the CPU."""
        images = SplitImages(self.task, split)
        for rows in self._groups(len(params_NP)):
            params_bP, condition_bD = params_NP[rows].to(self.device), condition_ND[rows].to(self.device)
            for start in range(0, len(images), _IMAGES):
                inputs_nX = images[start : start + _IMAGES].to(self.device)
                labels_n = split.labels_N[start : start + _IMAGES].to(self.device)
                seen = self.family.view(
                    inputs_nX.expand(len(params_bP), *inputs_nX.shape),
                    labels_n.expand(len(params_bP), -1),
                    condition_bD,
                )
                yield rows, self._logits(params_bP, seen[0]).log_softmax(dim=2).cpu(), seen[1].cpu()

    def trained(
        self,
        params_NP: Tensor,
        condition_ND: Tensor,
        steps: int,
        *,
        learning_rate: float,
        seed: int,
        batch_size: int = 64,
    ) -> Tensor:
        """The networks [N,P] after so many steps of AdamW on their own tasks' training images, with a cosine schedule.

        Each network has its own batches.
        """
        split, total = self.task.train, len(self.task.train)
        orders = [
            torch.randint(total, (steps, batch_size), generator=generator_of(seed, "request", row))
            for row in range(len(params_NP))
        ]

        def batch(rows: slice, step: int) -> Examples:
            index_bB = torch.stack([order[step] for order in orders[rows]])
            inputs_bBX = self.task.inputs(split, index_bB.flatten()).unflatten(0, index_bB.shape)
            labels_bB, condition_bD = split.labels_N[index_bB], condition_ND[rows]
            return Examples(*self.family.view(inputs_bBX, labels_bB, condition_bD))

        groups = self._groups(len(params_NP))
        return torch.cat([self._train(params_NP[rows], partial(batch, rows), steps, learning_rate) for rows in groups])

    def fitted(
        self,
        params_NP: Tensor,
        examples: Examples,
        steps: int,
        *,
        learning_rate: float,
        trained_P: Tensor | None = None,
    ) -> Tensor:
        """The networks [N,P] after so many steps of AdamW on all of their examples.

        trained_P: which numbers, bool, are trained; None: all.
        """

        def batch(rows: slice, _: int) -> Examples:
            return Examples(examples.inputs_NnX[rows], examples.labels_Nn[rows])

        parts = []
        for rows in self._groups(len(params_NP)):
            parts.append(self._train(params_NP[rows], partial(batch, rows), steps, learning_rate, trained_P=trained_P))
        return torch.cat(parts)

    def log_likelihood(self, params_NP: Tensor, examples: Examples) -> Tensor:
        """Of each network for its own examples, summed over them; [N]."""
        log_Nnc = self.log_probabilities(params_NP, examples.inputs_NnX)
        return log_Nnc.gather(2, examples.labels_Nn[:, :, None]).sum(dim=(1, 2))

    @torch.no_grad()
    def log_probabilities(self, params_NP: Tensor, inputs_NnX: Tensor) -> Tensor:
        """Of each network for its own inputs, [N,n,c], on the CPU."""
        parts = [
            self._logits(params_NP[rows].to(self.device), inputs_NnX[rows].to(self.device)).log_softmax(dim=2).cpu()
            for rows in self._groups(len(params_NP))
        ]
        return torch.cat(parts)

    def _train(
        self,
        params_bP: Tensor,
        batch: Callable[[int], Examples],
        steps: int,
        learning_rate: float,
        *,
        trained_P: Tensor | None = None,
    ) -> Tensor:
        weights_bP = params_bP.to(self.device).clone().requires_grad_()
        optimizer = torch.optim.AdamW([weights_bP], lr=learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            examples = batch(step)
            labels_bn = examples.labels_Nn.to(self.device)
            with torch.enable_grad():
                logits_bnc = self._logits(weights_bP, examples.inputs_NnX.to(self.device))
                loss_n = F.cross_entropy(logits_bnc.flatten(0, 1), labels_bn.flatten(), reduction="none")
                # A network's loss depends on its own weights alone, so the sum gives each its own gradient.
                (gradient_bP,) = torch.autograd.grad(loss_n.view_as(labels_bn).mean(dim=1).sum(), weights_bP)
            if trained_P is not None:
                gradient_bP[:, ~trained_P] = 0.0
            weights_bP.grad = gradient_bP
            optimizer.step()
            schedule.step()
        return weights_bP.detach().cpu()

    def _logits(self, params_bP: Tensor, inputs_bnX: Tensor) -> Tensor:
        def one(state: dict[str, Tensor], inputs_nX: Tensor) -> Tensor:
            return logits(functional_call(self.network, {**self.frozen, **state}, (inputs_nX,)))

        answers_bnc: Tensor = vmap(one)(self.layout.stack(params_bP), inputs_bnX)
        return answers_bnc.float()

    def _groups(self, num: int) -> Iterator[slice]:
        image = self.task.inputs(self.task.train, slice(0, 1)).numel()
        size = max(1, _BYTES // (4 * (4 * self.layout.num_params + 8 * _IMAGES * image)))
        for start in range(0, num, size):
            yield slice(start, min(start + size, num))
