"""The tensors in what a module returns: a tensor, or dicts, lists and tuples of such."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def map_tensors(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The output with every tensor in it changed."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, dict):
        return {key: map_tensors(part, change) for key, part in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output)(map_tensors(part, change) for part in output)
    return output


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors in an output, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for part in output.values():
            yield from tensors_in(part)
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from tensors_in(part)
