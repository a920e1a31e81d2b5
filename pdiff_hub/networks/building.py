"""Making modules when others make some too, and making them without memory when a file says what to make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pdiff_hub.errors import PdiffError

one_at_a_time = RLock()
"""Held while a module is made. What decides how it is made is the whole process's and not the thread's: torch's random
numbers and its note of the default device; the initialisers and the default dtype, which transformers replaces while it
opens a model."""

# A constructor calls torch some 6 times per tensor (transformers' up to 14), and a call takes up to 40 microseconds.
_CALLS_PER_TENSOR, _MORE_CALLS, _MOST_CALLS = 40, 2000, 60_000


@contextmanager
def sketching(num_tensors: int) -> Iterator[None]:
    """Modules that are made in this block have shapes and no numbers, so that a false claim of a size costs no memory.

    num_tensors: how many there should be. PdiffError ends a constructor that goes on and on making more.
    """
    most = min(_CALLS_PER_TENSOR * num_tensors + _MORE_CALLS, _MOST_CALLS)
    gradients = torch.is_grad_enabled()
    try:
        with one_at_a_time, torch.device("meta"), _Ending(most, num_tensors):
            yield
    finally:
        # Initialisers turn gradients off and on again, and the second call may be the one that is ended.
        torch.set_grad_enabled(gradients)


class _Ending(TorchFunctionMode):
    """Ends whatever calls torch too often in this thread."""

    def __init__(self, most: int, num_tensors: int):
        super().__init__()
        self._left, self._num_tensors = most, num_tensors

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._left -= 1
        if self._left < 0:
            raise PdiffError(f"it has many more layers than the {self._num_tensors} tensors that are stored")
        return func(*args, **(kwargs or {}))
