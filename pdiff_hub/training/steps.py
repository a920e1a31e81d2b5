"""One step of training: as PyTorch runs it, or captured once on a GPU and replayed.

Both draw the same random numbers, from a generator that is seeded by (seed, stage, step), and change the same tensors:
the weights, the optimiser's moments and the averaged weights (EMA). So saves fit both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pdiff_hub.networks.capturing import Replay, captured_or_said, moments_of, say_not_captured, warmed_up_for_nothing
from pdiff_hub.seeds import derived_seed

LossOf = Callable[[nn.Module, torch.Generator], Tensor]


@dataclass(frozen=True)
class Training:
    """What a step changes, and how: all of it in place.

    model: as Accelerate prepared it. plain: the same without what Accelerate wraps around it. name: of the stage.
    """

    name: str
    model: nn.Module
    plain: nn.Module
    loss_of: LossOf
    optimizer: Any
    schedule: LambdaLR
    ema: EMAModel
    accelerator: Accelerator
    max_grad_norm: float
    seed: int

    def rates(self, done: int) -> list[float]:
        """The learning rate of each group of parameters in the step after `done` steps."""
        bases, factors = self.schedule.base_lrs, self.schedule.lr_lambdas
        return [float(base) * factor(done) for base, factor in zip(bases, factors, strict=True)]

    def seed_of(self, done: int) -> int:
        """Of the random numbers of the step after `done` steps."""
        return derived_seed(self.seed, self.name, done)

    def descend(self, generator: torch.Generator) -> Tensor:
        """Loss, gradients and the optimiser's step; gives the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_of(self.model, generator)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return loss.detach()


def build_step(training: Training, *, captured: bool) -> Callable[[int], Tensor]:
    """`step(done)` takes the step after `done` steps and gives the mean loss over this process's share, a new tensor.

    captured: whether it may be captured, where there is a GPU: `loss_of` must read nothing but tensors on it. With
    several processes, and with fp16, whose scale is decided on the CPU, it is not, and a warning says so.
    """
    accelerator = training.accelerator
    if not captured or accelerator.device.type != "cuda":
        return EagerStep(training)
    if accelerator.num_processes == 1 and accelerator.scaler is None:
        return CapturedStep(training)
    reason = "several processes share it" if accelerator.num_processes > 1 else "of fp16"
    say_not_captured(f"train {training.name}: a step", reason)
    return EagerStep(training)


class EagerStep:
    """A step as PyTorch runs it."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._generator = torch.Generator(training.accelerator.device)

    def __call__(self, done: int) -> Tensor:
        """See `build_step`."""
        training = self._training
        for group, rate in zip(training.optimizer.param_groups, training.rates(done), strict=True):
            group["lr"] = rate
        loss = training.descend(self._generator.manual_seed(training.seed_of(done)))
        training.ema.step(training.plain.parameters())
        return loss


class CapturedStep:
    """A step that is captured at its first call. What differs from step to step is put into tensors before it.

    If it cannot be captured, a warning says why, and steps are taken as `EagerStep` takes them.
    """

    def __init__(self, training: Training) -> None:
        self._training, self._device = training, training.accelerator.device
        self._generator = torch.Generator(self._device)
        self._averaging = torch.zeros((), device=self._device)
        self._loss = torch.zeros((), device=self._device)
        for group, rate in zip(training.optimizer.param_groups, training.rates(0), strict=True):
            group["lr"] = torch.tensor(rate, device=self._device)
            group["capturable"] = self._device.type == "cuda"
        self._take: Replay | None = None
        self._instead: EagerStep | None = None

    def __call__(self, done: int) -> Tensor:
        """See `build_step`."""
        training = self._training
        if self._take is None and self._instead is None:
            self._prepare(done)
        if self._instead is not None:
            return self._instead(done)
        assert self._take is not None
        self._fill(done)
        self._take()
        training.ema.optimization_step = done + 1
        return self._loss.clone()

    def _fill(self, done: int) -> None:
        training = self._training
        for group, rate in zip(training.optimizer.param_groups, training.rates(done), strict=True):
            group["lr"].fill_(rate)
        self._averaging.fill_(1 - training.ema.get_decay(done + 1))
        self._generator.manual_seed(training.seed_of(done))

    def _prepare(self, done: int) -> None:
        self._fill(done)
        what = f"train {self._training.name}: a step"
        with warmed_up_for_nothing(self._tensors):
            self._take = captured_or_said(what, self._run, self._device, generators=[self._generator])
        if self._take is None:
            self._instead = EagerStep(self._training)

    def _run(self) -> None:
        training = self._training
        self._loss.copy_(training.descend(self._generator))
        averaged: list[Tensor] = training.ema.shadow_params
        weights: list[Tensor] = list(training.plain.parameters())
        # As `EMAModel.step`, but with a decay that is a tensor: a number would be that of the captured step for ever.
        with torch.no_grad():
            difference = torch._foreach_sub(averaged, weights)
            torch._foreach_mul_(difference, self._averaging)
            torch._foreach_sub_(averaged, difference)

    def _tensors(self) -> list[Tensor]:
        training = self._training
        return [*training.plain.parameters(), *training.ema.shadow_params, *moments_of(training.optimizer)]
