"""The processes that a launcher starts for one piece of work, and what this one has to do of it.

`accelerate launch` and `torchrun` start one program several times. All its processes make the same calls in the same
order, so each knows its share without being told. Each works on its share of the networks; what they found, or wrote
into one file, is then put together. The first process, the main one, does what is done once, and writes what is shared.

A process that fails ends, and its launcher ends the others. So processes wait for each other as long as it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, get_int_from_env

from pdiff_hub import progress
from pdiff_hub.safe_files import lock

_Value = TypeVar("_Value")
# How long one waits for another, which may collect or draw alone meanwhile. By default it would be 10 to 30 minutes.
_LONGEST = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """This process is number `index` of `count`."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(self, number: int) -> range:
        """Which of 0..number-1 are this process's: they follow each other; none where there are more processes."""
        if self.count == 1:
            return range(number)
        with PartialState().split_between_processes(list(range(number))) as own:
            return range(own[0], own[-1] + 1) if own else range(0)

    def share_by_cost(self, costs: Sequence[float]) -> list[int]:
        """Which pieces of work are this process's, in their order. costs: about what each takes, in any unit."""
        loads, own = [0.0] * self.count, list[int]()
        for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
            least = loads.index(min(loads))
            loads[least] += costs[piece]
            if least == self.index:
                own.append(piece)
        return sorted(own)

    def gathered(self, own: _Value) -> list[_Value]:
        """What each process has, in their order. Tensors lie on the CPU: each process has its own GPU."""
        return [own] if self.count == 1 else list(gather_object([own]))

    def told(self, own: _Value) -> _Value:
        """What the main process has."""
        return own if self.count == 1 else broadcast_object_list([own])[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process through the block before the others, which find done there what it did."""
        with PartialState().main_process_first() if self.count > 1 else nullcontext():
            yield

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.count > 1:
            PartialState().wait_for_everyone()


def this_run() -> Processes:
    """This process, which joins the others when this is first called; alone if no launcher has started it.

    It comes before the first use of a GPU, because it gives each process its own: from then on that is "cuda". All
    processes but the main one show no progress.
    """
    if get_int_from_env(["WORLD_SIZE"], 1) == 1:
        return Processes()
    # With cpu=True, the processes of a launcher find each other on CPUs too.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_LONGEST)
    if state.process_index:
        progress.hide()
    return Processes(state.process_index, state.num_processes)


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """As `safe_files.lock.alone_in`, for all processes of this run: the main one holds it while all are in the block.

    Call it in every process.
    """
    here = this_run()
    with lock.alone_in(folder) if here.is_main else nullcontext():
        here.wait()
        yield
        here.wait()


def leave() -> None:
    """Ends what `this_run` began, when all processes are done."""
    if this_run().count > 1:
        this_run().wait()
        PartialState().destroy_process_group()


def is_of_another(error: Exception) -> bool:
    """Whether an error only says that another process has ended: torch has no type of its own for it on CPUs."""
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)
