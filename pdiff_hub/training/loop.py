"""One training loop for both stages: Accelerate, EMA, warm-up and cosine, atomic saves, exact resume.

Random numbers come from a generator on the training device, which is seeded by (seed, stage, step). They are drawn for
the whole batch of all processes, and each process takes its share. So a resumed run repeats nothing, two processes see
what one would see, and nothing is copied to or from the device within a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from pdiff_hub.errors import PdiffError
from pdiff_hub.progress import progress_bar
from pdiff_hub.training.saves import Progress, Saves
from pdiff_hub.training.steps import LossOf, Training, build_step

_DIVERGED = 10.0  # training has diverged if the loss is more than this many times its first average


@dataclass(frozen=True)
class LoopConfig:
    """The options of a stage that the loop needs; see `DiffusionConfig` for their meaning."""

    name: str
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    ema_decay: float
    save_every: int
    save_limit: int
    log_every: int


def build_accelerator(**options: Any) -> Accelerator:
    """An `Accelerator` that joins the processes of a launcher on CPUs too; by default it ignores them there.

    ValueError if it refuses its options: a precision that the device does not have, a tracker that it does not know.
    """
    try:
        return Accelerator(cpu=not torch.accelerator.is_available(), **options)
    except ValueError as error:
        raise PdiffError(f"accelerate refuses {options}: {error}") from error


@dataclass(frozen=True)
class Stopping:
    """When training ends before its last step, and which averaged weights are kept: those of the lowest loss.

    Losses within 2 % of the lowest cannot be told apart; of these measurements the middle one is taken. On the plateau
    copying grows with every step, so the first or the last would be a matter of chance (docs/measurements.md). If the
    loss before training is one of them, training gained nothing, and the weights from before it are kept. If what the
    chosen weights draw is less than 0.8 times as far from training data as held-out data is, it copies; if more than
    1.25 times, it misses what there is to learn. Then the lowest loss among earlier weights, or later ones, that do
    neither, and that is at most 5 % higher, decides instead; if there are none, among earlier ones that do not copy.

    Attributes:
        measure: `(model) -> losses` by name, of the model as it is then, the same in every process; "held_out" decides.
        every: steps between measurements. The first is made before training, and one after the last step.
        patience: measurements without a new lowest loss after which training ends; None never ends it, and keeps the
            last weights.
        nearness: `(model) -> distance of what it draws to training data, over that of held-out data`, the same in every
            process; 1 if it is not known. It falls with the steps.
    """

    measure: Callable[[nn.Module], dict[str, float]]
    every: int
    patience: int | None
    nearness: Callable[[nn.Module], float] = lambda model: 1.0


@dataclass(frozen=True)
class Trained:
    """What a loop found: the last average loss, and the steps and losses of all measurements of `Stopping`.

    kept: the step whose weights the model has; None if these are the last.
    """

    loss: float
    measured: list[dict[str, float]]
    kept: int | None


def share(batch: Tensor, accelerator: Accelerator) -> Tensor:
    """This process's part of a global batch."""
    size = len(batch) // accelerator.num_processes
    start = accelerator.process_index * size
    return batch[start : start + size]


def run_loop(
    model: nn.Module,
    loss_of: LossOf,
    config: LoopConfig,
    directory: Path,
    accelerator: Accelerator,
    *,
    seed: int,
    captured: bool = False,
    stopping: Stopping | None = None,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
) -> Trained:
    """Trains `model` in place; at the end it holds averaged (EMA) weights: the last, or those that `stopping` keeps.

    `loss_of(model, generator)` is the mean loss over this process's share of one batch. The generator is on the
    accelerator's device; what is drawn from it must be drawn for all processes, and then cut by `share`. captured:
    whether a GPU may replay it (`steps.build_step`). Training resumes from the newest whole save in `directory`.
    Raises ValueError if the loss is not finite or diverges; the saves stay.
    """
    if config.batch_size % accelerator.num_processes:
        raise PdiffError(
            f"{config.name}.batch_size is {config.batch_size}, expected a multiple of the "
            f"{accelerator.num_processes} processes."
        )
    device_type = accelerator.device.type
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device_type in ("cpu", "cuda"),
    )
    # Not prepared: Accelerate would step it once per process.
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model)
    ema = EMAModel(plain.parameters(), decay=config.ema_decay, foreach=True)
    saves = Saves(directory, config.save_limit)
    if accelerator.is_main_process:
        saves.prune()
    accelerator.wait_for_everyone()
    progress = saves.read_newest(plain, optimizer, ema.shadow_params, accelerator)
    ema.optimization_step = progress.step
    step = build_step(
        Training(
            name=config.name,
            model=model,
            plain=plain,
            loss_of=loss_of,
            optimizer=optimizer,
            schedule=schedule,
            ema=ema,
            accelerator=accelerator,
            max_grad_norm=config.max_grad_norm,
            seed=seed,
        ),
        captured=captured,
    )
    model.train()
    window: list[Tensor] = []
    bar = progress_bar(
        config.steps,
        f"train {config.name}",
        "step",
        initial=progress.step,
        shown=accelerator.is_main_process,
        at_most=stopping is not None and stopping.patience is not None,
    )
    if stopping is not None and not progress.measured:
        _measure(plain, ema, stopping, progress, on_log)
    while progress.step < config.steps and not _stops(progress, stopping):
        window.append(step(progress.step))
        progress.step += 1
        bar.update()
        if stopping is not None and (progress.step % stopping.every == 0 or progress.step == config.steps):
            _measure(plain, ema, stopping, progress, on_log)
        last = progress.step == config.steps or _stops(progress, stopping)
        saving = last or progress.step % config.save_every == 0
        if saving or progress.step % config.log_every == 0:
            progress.loss = _average(window, accelerator)
            window.clear()
            _require_healthy(progress, config, directory)
            bar.set_postfix(loss=f"{progress.loss:.4f}")
            if on_log is not None:
                on_log(progress.step, {"loss": progress.loss})
        if saving:
            saves.write(progress, plain, optimizer, ema.shadow_params, accelerator)
    bar.close()
    ema.copy_to(plain.parameters())
    if stopping is None or stopping.patience is None:
        return Trained(progress.loss, progress.measured, None)

    def take(number: int) -> None:
        for parameter, best in zip(plain.parameters(), progress.candidates[number], strict=True):
            parameter.data.copy_(best)

    def nearness(number: int) -> float:
        take(number)
        return stopping.nearness(plain)

    kept = progress.chosen(nearness)
    take(kept)
    return Trained(progress.loss, progress.measured, int(progress.measured[kept]["step"]))


def _measure(
    model: nn.Module,
    ema: EMAModel,
    stopping: Stopping,
    progress: Progress,
    on_log: Callable[[int, dict[str, float]], None] | None,
) -> None:
    """Measures the averaged weights."""
    own = [parameter.detach().clone() for parameter in model.parameters()]  # `ema.store` would take them to the CPU
    ema.copy_to(model.parameters())
    with torch.no_grad():
        losses = stopping.measure(model)
        progress.add(losses, list(model.parameters()))
        for parameter, before in zip(model.parameters(), own, strict=True):
            parameter.copy_(before)
    if on_log is not None:
        on_log(progress.step, losses)


def _average(window: list[Tensor], accelerator: Accelerator) -> float:
    return float(accelerator.reduce(torch.stack(window).mean(), reduction="mean"))


def _require_healthy(progress: Progress, config: LoopConfig, directory: Path) -> None:
    average = progress.loss
    if math.isnan(progress.first_loss) and math.isfinite(average):
        progress.first_loss = average
    if not math.isfinite(average) or average > _DIVERGED * progress.first_loss:
        kept = max(Saves(directory).steps(), default=None)
        where = f"the last good state is kept in {kept.name}" if kept is not None else "no state was saved yet"
        raise PdiffError(
            f"{config.name}: the loss is {average:.4g} at step {progress.step}, after "
            f"{progress.first_loss:.4g} at the beginning; {where}. Lower {config.name}.learning_rate, "
            f"which is {config.learning_rate}, and start in a new folder."
        )


def any_saved(directory: Path) -> bool:
    """Whether a loop has saved a state in `directory`."""
    return bool(Saves(directory).steps())


def _stops(progress: Progress, stopping: Stopping | None) -> bool:
    """Whether the lowest held-out loss is too long ago."""
    if stopping is None or stopping.patience is None or not progress.measured:
        return False
    return len(progress.measured) - 1 - progress.index_of_lowest() >= stopping.patience
