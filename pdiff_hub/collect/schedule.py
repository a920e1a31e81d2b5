"""The learning rate schedule of networks that are trained to be collected: linear warm-up, then half a cosine."""

from __future__ import annotations

from diffusers.optimization import get_cosine_schedule_with_warmup
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

_WARM_UP = 0.1  # share of all steps


def cosine_with_warm_up(optimizer: Optimizer, num_steps: int, done: int = 0) -> LambdaLR:
    """The schedule for a training of `num_steps` steps, of which the first `done` have been taken.

    Resuming after a kill needs no saved state of the schedule: pass a fresh optimiser, or one that already had it.
    """
    warm_up = round(_WARM_UP * num_steps)
    if warm_up == 1:  # diffusers' warm-up begins at a rate of 0: that step would only be lost
        warm_up = 0
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))  # a tensor would change with the rate
    return get_cosine_schedule_with_warmup(optimizer, warm_up, num_steps, last_epoch=done - 1)
