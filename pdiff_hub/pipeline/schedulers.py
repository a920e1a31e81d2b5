"""Opening the scheduler of a pipeline. Its steps are tried first: many a wrong one fails only at a later step."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from pdiff_hub.errors import PdiffError, one_line
from pdiff_hub.records.component_configs import require_numbers
from pdiff_hub.safe_files import read_json
from pdiff_hub.safe_files.tensors import all_finite
from pdiff_hub.travelling.pipeline_pdiff import INDEX, SamplingError, require_one_call, reverse_process

MOST_TRAIN_TIMESTEPS = 1_000_000
_MOST_TRIED = 250
_CHANCES = ("betas", "alphas", "alphas_cumprod")  # of a schedule, numbers from 0 to 1


def load_scheduler(name: str, folder: Path, steps: int, latent_channels: int) -> SchedulerMixin:
    """The scheduler of the pipeline in `folder`, whose class is called `name`.

    steps: what it is tried with, on noise of so many channels. PdiffError if diffusers has no such scheduler, if the
    configuration describes none, or if the steps fail or do not end with finite numbers.
    """
    kind = _scheduler_class(name, folder / INDEX)
    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    _check_config(kind, config, file)
    try:
        scheduler: SchedulerMixin = kind.from_config(config)
    except Exception as error:  # a made-up config can make a constructor raise anything
        raise PdiffError(f"{file} describes no {name} ({one_line(error)}).") from error
    most = scheduler.config.num_train_timesteps
    if steps > most:
        raise PdiffError(
            f"{folder / INDEX}: default_num_inference_steps is {steps}, expected at most the {most} of {file}."
        )
    try:
        require_finite_schedule(scheduler)
        require_one_call(scheduler)
        noise = torch.randn(1, latent_channels, 4, generator=torch.Generator().manual_seed(0))
        generators = [torch.Generator().manual_seed(0)]
        end = reverse_process(copy.deepcopy(scheduler), noise, min(steps, _MOST_TRIED), generators, _answer)
        if not all_finite(end):
            raise SamplingError(f"its {steps} steps end with NaN or infinity.")
    except SamplingError as error:
        raise PdiffError(f"the {name} that {file} describes cannot sample: {error}") from error
    return scheduler


def require_finite_schedule(scheduler: SchedulerMixin) -> None:
    """SamplingError names what in a schedule is not finite, or no number from 0 to 1 where it has to be."""
    for name in _CHANCES:
        found = getattr(scheduler, name, None)
        if found is None:
            continue
        numbers = torch.as_tensor(found).double()
        if not all_finite(numbers) or bool((numbers < 0).any()) or bool((numbers > 1).any()):
            raise SamplingError(f"its {name} are not all from 0 to 1; restore the file.")


def _answer(sample: Tensor, times: Tensor) -> Tensor:
    """What a U-Net might predict."""
    return sample / 2


def _scheduler_class(name: str, index: Path) -> Any:
    # Only names of schedulers are looked up: looking up another one would import what has that name.
    kind: Any = getattr(diffusers, name, None) if name in _known() else None
    if not isinstance(kind, type) or not issubclass(kind, SchedulerMixin):
        raise PdiffError(
            f"{index} names the scheduler {name!r}, which diffusers does not have. "
            f"The nearest known one is {difflib.get_close_matches(name, _known(), n=1, cutoff=0.0)[0]!r}."
        )
    return kind


def _known() -> list[str]:
    return [each for each in dir(diffusers) if each.endswith("Scheduler")]


def _check_config(kind: Any, config: Mapping[str, Any], file: Path) -> None:
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= MOST_TRAIN_TIMESTEPS:
        raise PdiffError(f"{file}: num_train_timesteps is {steps!r}, expected 1 to {MOST_TRAIN_TIMESTEPS:,}.")
    named = config.get("_class_name", kind.__name__)
    if named not in _known():  # another scheduler's is fine: they share most settings
        raise PdiffError(f"{file} is of a {str(named)[:60]!r}, expected a scheduler; restore the file.")
    if config.get("quantization_config") is not None:
        raise PdiffError(f"{file} has a quantization_config, which no scheduler has; restore the file.")
    defaults = {name: each.default for name, each in inspect.signature(kind.__init__).parameters.items()}
    for name, value in config.items():
        # Some have limits that are infinite by default, which are written as such.
        unlimited = isinstance(value, float) and math.isinf(value) and value == defaults.get(name)
        require_numbers(value, f"{file}: {name!r}", finite=not unlimited)
        # No setting of a scheduler is larger, and some make a list of this length.
        if isinstance(value, int) and abs(value) > MOST_TRAIN_TIMESTEPS:
            raise PdiffError(f"{file}: {name!r} is {value:,}, expected at most {MOST_TRAIN_TIMESTEPS:,}.")
