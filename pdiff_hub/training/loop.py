"""One training loop for both stages: Accelerate, EMA, warm-up and cosine, atomic saves, exact resume.

Random numbers come from a generator on the training device, which is seeded by (seed, stage, step). They are drawn for
the whole batch of all processes, and each process takes its share. So a resumed run repeats nothing, two processes see
what one would see, and nothing is copied to or from the device within a step.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files import disk_errors_of
from pdiff_hub.seeds import derived_seed

_PLATEAU = 0.02  # held-out losses that differ by less cannot be told apart
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
    loss before training is one of them, training gained nothing, and the weights from before it are kept.

    Attributes:
        measure: `(model) -> losses` by name, of the model as it is then, the same in every process; "held_out" decides.
        every: steps between measurements. The first is made before training, and one after the last step.
        patience: measurements without a new lowest loss after which training ends; None never ends it, and keeps the
            last weights.
    """

    measure: Callable[[nn.Module], dict[str, float]]
    every: int
    patience: int | None


class _Progress:
    """The step reached, the first and the last average loss, and what was measured; saved with the rest of the state.

    candidates: by number of the measurement, the averaged weights whose held-out loss is among the lowest.
    """

    def __init__(self) -> None:
        self.step = 0
        self.first_loss = self.loss = math.nan
        self.measured: list[dict[str, float]] = []
        self.candidates: dict[int, list[Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def index_of_lowest(self) -> int:
        """The measurement with the lowest held-out loss, the first if there are several."""
        losses = [each["held_out"] for each in self.measured]
        return losses.index(min(losses))

    def add(self, losses: dict[str, float], weights: Sequence[Tensor]) -> None:
        """Adds a measurement of averaged weights, and keeps a copy of those that are among the lowest."""
        self.measured.append({"step": float(self.step), **losses})
        most = (1 + _PLATEAU) * self.measured[self.index_of_lowest()]["held_out"]
        self.candidates = {n: kept for n, kept in self.candidates.items() if self.measured[n]["held_out"] <= most}
        if losses["held_out"] <= most:
            self.candidates[len(self.measured) - 1] = [each.detach().cpu().clone() for each in weights]

    def kept(self) -> int:
        """The measurement whose weights are kept: the middle one of the lowest, or that before training."""
        return 0 if 0 in self.candidates else sorted(self.candidates)[len(self.candidates) // 2]

    def stops(self, stopping: Stopping | None) -> bool:
        """Whether the lowest held-out loss is too long ago."""
        if stopping is None or stopping.patience is None or not self.measured:
            return False
        return len(self.measured) - 1 - self.index_of_lowest() >= stopping.patience


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
    loss_of: Callable[[nn.Module, torch.Generator], Tensor],
    config: LoopConfig,
    directory: Path,
    accelerator: Accelerator,
    *,
    seed: int,
    stopping: Stopping | None = None,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
) -> Trained:
    """Trains `model` in place; at the end it holds averaged (EMA) weights: the last, or those that `stopping` keeps.

    `loss_of(model, generator)` is the mean loss over this process's share of one batch. The generator is on the
    accelerator's device; what is drawn from it must be drawn for all processes, and then cut by `share`. Training
    resumes from the newest whole save in `directory`. `accelerator` must be new, because it saves all that it has
    prepared. Raises ValueError if the loss is not finite or diverges; the saves stay.
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
    progress = _Progress()
    accelerator.register_for_checkpointing(schedule, ema, progress)
    if accelerator.is_main_process:
        _prune(directory, config.save_limit)
    accelerator.wait_for_everyone()
    newest = max(_saves(directory), default=None)
    if newest is not None:
        accelerator.load_state(str(newest))
    ema.to(accelerator.device)  # `load_state` puts what is not prepared into the CPU's memory
    model.train()
    generator = torch.Generator(accelerator.device)
    window: list[Tensor] = []
    bar = tqdm(
        total=config.steps,
        initial=progress.step,
        desc=f"train {config.name}",
        unit="step",
        disable=None if accelerator.is_main_process else True,
    )
    if stopping is not None and not progress.measured:
        _measure(plain, ema, stopping, progress, on_log)
    while progress.step < config.steps and not progress.stops(stopping):
        loss = loss_of(model, generator.manual_seed(derived_seed(seed, config.name, progress.step)))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        ema.step(plain.parameters())
        progress.step += 1
        bar.update()
        window.append(loss.detach())
        if stopping is not None and (progress.step % stopping.every == 0 or progress.step == config.steps):
            _measure(plain, ema, stopping, progress, on_log)
        last = progress.step == config.steps or progress.stops(stopping)
        saving = last or progress.step % config.save_every == 0
        if saving or progress.step % config.log_every == 0:
            progress.loss = _average(window, accelerator)
            window.clear()
            _require_healthy(progress, config, directory)
            bar.set_postfix(loss=f"{progress.loss:.4f}")
            if on_log is not None:
                on_log(progress.step, {"loss": progress.loss})
        if saving:
            _save(accelerator, directory, progress.step, config.save_limit)
    bar.close()
    ema.copy_to(plain.parameters())
    if stopping is None or stopping.patience is None:
        return Trained(progress.loss, progress.measured, None)
    kept = progress.kept()
    for parameter, best in zip(plain.parameters(), progress.candidates[kept], strict=True):
        parameter.data.copy_(best)
    return Trained(progress.loss, progress.measured, int(progress.measured[kept]["step"]))


def _measure(
    model: nn.Module,
    ema: EMAModel,
    stopping: Stopping,
    progress: _Progress,
    on_log: Callable[[int, dict[str, float]], None] | None,
) -> None:
    """Measures the averaged weights."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    with torch.no_grad():
        losses = stopping.measure(model)
        progress.add(losses, list(model.parameters()))
    ema.restore(model.parameters())
    if on_log is not None:
        on_log(progress.step, losses)


def _average(window: list[Tensor], accelerator: Accelerator) -> float:
    return float(accelerator.reduce(torch.stack(window).mean(), reduction="mean"))


def _require_healthy(progress: _Progress, config: LoopConfig, directory: Path) -> None:
    average = progress.loss
    if math.isnan(progress.first_loss) and math.isfinite(average):
        progress.first_loss = average
    if not math.isfinite(average) or average > _DIVERGED * progress.first_loss:
        kept = max(_saves(directory), default=None)
        where = f"the last good state is kept in {kept.name}" if kept is not None else "no state was saved yet"
        raise PdiffError(
            f"{config.name}: the loss is {average:.4g} at step {progress.step}, after "
            f"{progress.first_loss:.4g} at the beginning; {where}. Lower {config.name}.learning_rate, "
            f"which is {config.learning_rate}, and start in a new folder."
        )


def any_saved(directory: Path) -> bool:
    """Whether a loop has saved a state in `directory`."""
    return bool(_saves(directory))


def _saves(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-????????"))


def _prune(directory: Path, limit: int) -> None:
    """Removes what a killed save has left, and all but the newest `limit` saves."""
    shutil.rmtree(directory / "unfinished", ignore_errors=True)
    for old in _saves(directory)[:-limit]:
        shutil.rmtree(old)


def _save(accelerator: Accelerator, directory: Path, step: int, limit: int) -> None:
    """Writes the state into a temporary folder and renames it: a killed save leaves a whole save or none."""
    target, unfinished = directory / f"step-{step:08d}", directory / "unfinished"
    if accelerator.is_main_process:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    with disk_errors_of(target, lambda: "the saves before it stay"):
        accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if target.exists():
            shutil.rmtree(target)
        os.replace(unfinished, target)
        _prune(directory, limit)
    accelerator.wait_for_everyone()
