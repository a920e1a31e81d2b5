"""`PDiffCallback`: what a run calls while it works, in the habits of transformers' `TrainerCallback`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdiff_hub.errors import PdiffError, require
from pdiff_hub.progress import listening
from pdiff_hub.records import Results

if TYPE_CHECKING:
    from pdiff_hub.runs.arguments import PDiffArguments


class PDiffStopped(PdiffError):
    """A callback has set `control.should_stop`. What was done is kept; the same run goes on when it is called again."""


@dataclass
class PDiffState:
    """Where a run is.

    Attributes:
        stage: "collect", "train", "generate" or "evaluate".
        work: what is done in it, such as "train diffusion"; a stage may do several things, one after the other.
        step, num_steps: of this work. Training may end before the last one.
        loss: the last that is known of it; None if it has none.
    """

    stage: str = ""
    work: str = ""
    step: int = 0
    num_steps: int = 0
    loss: float | None = None


@dataclass
class PDiffControl:
    """What a callback can ask for. should_stop: end now, with `PDiffStopped`; a later call goes on from there."""

    should_stop: bool = False


class PDiffCallback:
    """Base class of callbacks; override what is of interest. What it raises ends the run, which can then go on."""

    def on_stage_begin(self, args: PDiffArguments, state: PDiffState, control: PDiffControl) -> None:
        """A stage begins that is not done already."""

    def on_stage_end(self, args: PDiffArguments, state: PDiffState, control: PDiffControl) -> None:
        """A stage is done."""

    def on_step_end(self, args: PDiffArguments, state: PDiffState, control: PDiffControl) -> None:
        """A step is done of the work of the stage: of training, or a checkpoint that was collected, for instance."""

    def on_evaluate(self, args: PDiffArguments, state: PDiffState, control: PDiffControl, results: Results) -> None:
        """Networks were judged; everything is written."""


class Calls:
    """Calls callbacks one after the other, and ends the run if one of them asks for it."""

    def __init__(self, callbacks: Sequence[PDiffCallback], args: PDiffArguments):
        require(isinstance(callbacks, Sequence), "callbacks", callbacks, "a list of them")
        for callback in callbacks:
            if not isinstance(callback, PDiffCallback):
                raise PdiffError(
                    f"callbacks holds {callback!r}, expected objects of subclasses of PDiffCallback (not the class)."
                )
        self._callbacks, self._args = list(callbacks), args
        self._state, self._control = PDiffState(), PDiffControl()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Calls callbacks around a stage and after each step in it."""
        self._state = PDiffState(stage=name)
        self._call("on_stage_begin")
        with listening(self._step):
            yield
        self._call("on_stage_end")

    def evaluated(self, results: Results) -> None:
        """Calls `on_evaluate`."""
        for callback in self._callbacks:
            callback.on_evaluate(self._args, self._state, self._control, results)

    def _step(self, work: str, step: int, num_steps: int, beside: Mapping[str, object]) -> None:
        state = self._state
        state.work, state.step, state.num_steps = work, step, num_steps
        state.loss = float(str(beside["loss"])) if "loss" in beside else None
        self._call("on_step_end")

    def _call(self, event: str) -> None:
        for callback in self._callbacks:
            getattr(callback, event)(self._args, self._state, self._control)
        if self._control.should_stop:
            self._control.should_stop = False
            state = self._state
            place = f"step {state.step} of {state.work!r}" if state.work else f"stage {state.stage!r}"
            raise PDiffStopped(f"a callback stopped the run at {place}; call it again to go on.")
