"""`BackgroundJournal`: a `CheckpointJournal` that writes on its own thread while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from torch import Tensor

from pdiff_hub.collect.journal.journal import CheckpointJournal, TrainingState


class BackgroundJournal:
    """Takes the same calls as `journal`, but writes in the background, in the order given. A context manager.

    There is one write at a time: a call waits for the write before it, not for its own. States are copied on the call,
    so training may change them in place afterwards. The next call, or the end of the block, raises the error of a
    failed write. A kill leaves what was committed before, as with the journal itself.
    """

    def __init__(self, journal: CheckpointJournal):
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._writing: Future[None] | None = None

    def append(self, params_RP: Tensor, metadata: Sequence[Mapping[str, Any]], state: TrainingState) -> None:
        """As `CheckpointJournal.append`; params_RP must not be changed afterwards."""
        self._begin(self._journal.append, params_RP, metadata, _copy(state))

    def save_state(self, state: TrainingState) -> None:
        """As `CheckpointJournal.save_state`."""
        self._begin(self._journal.save_state, _copy(state))

    def _begin(self, write: Callable[..., None], *given: Any) -> None:
        self._finish()
        self._writing = self._thread.submit(write, *given)

    def _finish(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> BackgroundJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:  # otherwise the error of the block itself is raised
                self._finish()
        finally:
            self._thread.shutdown(wait=True)


def _copy(state: TrainingState) -> TrainingState:
    return TrainingState(
        {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.tensors.items()}, state.info
    )
