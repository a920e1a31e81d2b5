"""The state of a training loop on disk: safetensors and JSON, so that reading it back can run no code.

A save is a folder `step-XXXXXXXX`: the model, `state.safetensors` (the optimiser's moments, the averaged weights and
those that may be kept) and `progress.json`, written last. What follows from the step is not stored: the learning rate,
and how many averages were taken. All random numbers follow from it, too (`loop`).
"""

from __future__ import annotations

import bisect
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pdiff_hub.errors import PdiffError
from pdiff_hub.records.training_summary import PLATEAU
from pdiff_hub.safe_files import read_json, write_json, write_safetensors
from pdiff_hub.safe_files.checking import checked

_MODEL, _STATE, _PROGRESS = "model.safetensors", "state.safetensors", "progress.json"
_HARDLY_WORSE = 0.05  # weights are kept up to this, in case that those of the plateau draw too near, or too far away
_COPIES, _FAR = 0.8, 1.25  # times as far from training data as held-out data is


@dataclass(frozen=True)
class _Progress:
    """What `progress.json` holds. scale: of the gradients, with fp16, and the steps since it last changed."""

    step: int
    first_loss: float
    loss: float
    measured: list[dict[str, float]]
    scale: tuple[float, int] | None = None


@dataclass
class Progress:
    """The step reached, the first and the last average loss, and what was measured.

    candidates: by number of the measurement, the averaged weights whose held-out loss is low enough to be kept.
    """

    step: int = 0
    first_loss: float = math.nan
    loss: float = math.nan
    measured: list[dict[str, float]] = field(default_factory=list)
    candidates: dict[int, list[Tensor]] = field(default_factory=dict)

    def index_of_lowest(self) -> int:
        """The measurement with the lowest held-out loss, the first if there are several."""
        losses = [each["held_out"] for each in self.measured]
        return losses.index(min(losses))

    def add(self, losses: dict[str, float], weights: Sequence[Tensor]) -> None:
        """Adds a measurement of averaged weights, and keeps a copy of those that may be chosen."""
        self.measured.append({"step": float(self.step), **losses})
        low = self.within()
        self.candidates = {number: kept for number, kept in self.candidates.items() if number in low}
        if len(self.measured) - 1 in low:
            self.candidates[len(self.measured) - 1] = [each.detach().cpu().clone() for each in weights]

    def within(self, share: float = _HARDLY_WORSE) -> set[int]:
        """The measurements whose held-out loss is higher than the lowest by at most this share."""
        if not self.measured:
            return set()
        most = (1 + share) * self.measured[self.index_of_lowest()]["held_out"]
        return {number for number, each in enumerate(self.measured) if each["held_out"] <= most}

    def chosen(self, nearness: Callable[[int], float]) -> int:
        """The measurement whose weights are kept.

        nearness: how far what the weights of a measurement draw lies from training data, beside held-out data, which
            is at 1; 1 if that is not known.
        """
        plateau = sorted(self.within(PLATEAU))
        middle = 0 if plateau[0] == 0 else plateau[len(plateau) // 2]
        found = nearness(middle) if middle else 1.0
        if _COPIES <= found <= _FAR:
            return middle
        copies = found < _COPIES
        others = [number for number in sorted(self.candidates) if (number < middle if copies else number > middle)]
        # What is drawn comes nearer with every step, so the first that is near enough is found by halving.
        first_near = bisect.bisect_left(others, True, key=lambda number: nearness(number) <= _FAR)
        first_copy = bisect.bisect_left(others, True, key=lambda number: nearness(number) < _COPIES)
        right = others[first_near:first_copy] or (others[:first_copy] if copies else [])  # far ones are no copies
        return min(right, key=lambda number: self.measured[number]["held_out"]) if right else middle


@dataclass(frozen=True)
class Saves:
    """The saves of one loop in `directory`, of which the newest `limit` stay."""

    directory: Path
    limit: int = 1

    def steps(self) -> list[Path]:
        """The whole saves, the newest last."""
        return sorted(self.directory.glob("step-" + 8 * "[0-9]"))

    def prune(self) -> None:
        """Removes what a killed save has left, and all but the newest `limit` saves."""
        shutil.rmtree(self.directory / "unfinished", ignore_errors=True)
        for old in self.steps()[: -self.limit]:
            shutil.rmtree(old)

    def write(
        self,
        progress: Progress,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        averaged: Sequence[Tensor],
        accelerator: Accelerator,
    ) -> None:
        """Writes into a temporary folder and renames it: a killed save leaves a whole save or none."""
        if accelerator.is_main_process:
            target, unfinished = self.directory / f"step-{progress.step:08d}", self.directory / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write_safetensors(unfinished / _MODEL, model.state_dict())
            write_safetensors(unfinished / _STATE, _tensors(progress, optimizer, averaged))
            scale = None
            if accelerator.scaler is not None:
                state = accelerator.scaler.state_dict()
                scale = (state["scale"], state["_growth_tracker"])
            write_json(
                unfinished / _PROGRESS,
                asdict(_Progress(progress.step, progress.first_loss, progress.loss, progress.measured, scale)),
            )
            if target.exists():
                shutil.rmtree(target)
            os.replace(unfinished, target)
            self.prune()
        accelerator.wait_for_everyone()

    def read_newest(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        averaged: Sequence[Tensor],
        accelerator: Accelerator,
    ) -> Progress:
        """Puts the newest save into model, optimiser and averages, and gives its progress; a new one if there is none.

        PdiffError for a save of an older version, and for one that is damaged or of another loop.
        """
        newest = max(self.steps(), default=None)
        if newest is None:
            return Progress()
        remedy = f"remove {self.directory}, and training begins again."
        if not (newest / _PROGRESS).is_file():
            raise PdiffError(
                f"{newest} was saved by an older version of this package, as Python pickles, which can run code and "
                f"are not read; {remedy}"
            )
        found = checked(_Progress, read_json(newest / _PROGRESS), str(newest / _PROGRESS), remedy)
        try:
            weights, state = load_file(newest / _MODEL), load_file(newest / _STATE)
        except (OSError, SafetensorError) as error:
            raise PdiffError(f"{newest} is damaged ({error}); {remedy}") from error
        progress = Progress(found.step, found.first_loss, found.loss, found.measured)
        if any(
            not {"step", "held_out", "train"} <= each.keys() or not all(map(math.isfinite, each.values()))
            for each in found.measured
        ):
            raise PdiffError(f"{newest / _PROGRESS}: 'measured' is wrong; {remedy}")
        own = model.state_dict()
        expected = {f"model.{name}": (tensor.dtype, tensor.shape) for name, tensor in own.items()}
        for index, average in enumerate(averaged):
            like = (average.dtype, average.shape)
            names = [f"averaged.{index}", *(f"candidate.{number}.{index}" for number in progress.within())]
            if f"optimizer.{index}.step" in state:  # there are none of a parameter that the loss does not depend on
                names += [f"optimizer.{index}.{moment}" for moment in _MOMENTS]
                expected[f"optimizer.{index}.step"] = (torch.float32, torch.Size())
            expected |= dict.fromkeys(names, like)
        tensors = {**{f"model.{name}": tensor for name, tensor in weights.items()}, **state}
        wrong = [name for name in {**expected, **tensors} if expected.get(name) != _like(tensors.get(name))]
        wrong += [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if wrong or progress.step != int(newest.name.removeprefix("step-")):
            raise PdiffError(f"{newest} is damaged or of other settings (see {min(wrong, default='step')!r}); {remedy}")
        model.load_state_dict(weights)
        groups = optimizer.state_dict()["param_groups"]
        moments = {
            index: {name: state[f"optimizer.{index}.{name}"] for name in ("step", *_MOMENTS)}
            for index in range(len(averaged))
            if f"optimizer.{index}.step" in state
        }
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for index, average in enumerate(averaged):
            average.copy_(state[f"averaged.{index}"])
        if accelerator.scaler is not None and found.scale is not None:
            scale, tracker = found.scale
            accelerator.scaler.load_state_dict(
                {**accelerator.scaler.state_dict(), "scale": scale, "_growth_tracker": tracker}
            )
        progress.candidates = {
            number: [state[f"candidate.{number}.{index}"] for index in range(len(averaged))]
            for number in sorted(progress.within())
        }
        return progress


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _like(tensor: Tensor | None) -> tuple[torch.dtype, torch.Size] | None:
    return None if tensor is None else (tensor.dtype, tensor.shape)


def _tensors(progress: Progress, optimizer: torch.optim.Optimizer, averaged: Sequence[Tensor]) -> dict[str, Tensor]:
    tensors = {f"averaged.{index}": average for index, average in enumerate(averaged)}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": moments[name] for name in ("step", *_MOMENTS)}
    for number, weights in progress.candidates.items():
        tensors |= {f"candidate.{number}.{index}": each for index, each in enumerate(weights)}
    return tensors
