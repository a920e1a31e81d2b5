"""Work on a GPU, captured once as a CUDA graph and replayed: Python then starts one graph, not hundreds of kernels.

The networks here are small, so that starting their kernels one by one takes longer than running them: a training step
of 10 ms on an H200 waited for Python nine tenths of the time (docs/many-devices.md). CUDA graphs:
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_ONE_AT_A_TIME = threading.Lock()  # a capture begins by waiting for the device, which ends another one
_WARM_UPS = 3  # kernels choose their algorithms and allocate workspaces in the first calls, as PyTorch's page has it

Replay = Callable[[], None]


def capture(
    run: Callable[[], None], device: torch.device, *, generators: Sequence[torch.Generator] = (), exclusive: bool = True
) -> Replay:
    """Calls `run` a few times to warm up, captures one more call, and gives the function that replays it.

    A replay repeats the same kernels on the same memory: `run` reads tensors that the caller fills before each replay,
    and writes its results into tensors that stay. What it changes has been changed by the warm-up too.

    generators: on the device, those that `run` draws from, beside torch's own. A replay draws what `run` would: with
    the seed and the position that the generator has then.
    exclusive: whether nothing else may use the device's memory meanwhile. False if other threads work on the device.

    RuntimeError, with the reason, if a call waits for the device, or does what else a graph cannot hold.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    mode = "global" if exclusive else "thread_local"
    current = torch.cuda.current_stream(device)
    try:
        with _ONE_AT_A_TIME, torch.cuda.graph(graph, stream=stream, capture_error_mode=mode):
            run()
    except RuntimeError as error:
        torch.cuda.set_stream(current)  # if the end of a capture fails, torch stays on its stream,
        default = torch.cuda.default_generators[stream.device_index]  # and some versions leave this one capturing
        seed = default.initial_seed()
        default.graphsafe_set_state(torch.Generator(stream.device))
        default.manual_seed(seed)
        raise RuntimeError(str(error.__context__ or error)) from error
    return graph.replay


def captured_or_said(what: str, run: Callable[[], None], device: torch.device, **options: Any) -> Replay | None:
    """As `capture`, but None, and a warning that says why, where `run` cannot be captured: then call it."""
    try:
        return capture(run, device, **options)
    except RuntimeError as error:
        say_not_captured(what, f"capturing it failed ({' '.join(str(error).split())[:200]})")
        return None


def say_not_captured(what: str, reason: str) -> None:
    """Warns that steps start their kernels one by one."""
    warnings.warn(f"{what} is not captured as a CUDA graph, so it takes longer, because {reason}.", stacklevel=3)


@contextmanager
def warmed_up_for_nothing(tensors: Callable[[], Sequence[Tensor]]) -> Iterator[None]:
    """Undoes what a warm-up of training steps does to `tensors()`: weights, averages and an optimiser's moments.

    Moments that the optimiser makes meanwhile become 0, as AdamW begins with them.
    """
    before = [(tensor, tensor.detach().clone()) for tensor in tensors()]
    try:
        yield
    finally:
        known = {id(tensor) for tensor, _ in before}
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
            for tensor in tensors():
                if id(tensor) not in known:
                    tensor.zero_()


def moments_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that an optimiser has made so far: moments and numbers of steps."""
    return [value for state in optimizer.state.values() for value in state.values()]


class Replayed:
    """Calls `function(*tensors)`, which gives a tensor, for tensors like `examples`: captured here, replayed later.

    Where it cannot be captured, a warning says why, and it is called.

    what: for that warning. changed: gives the tensors that a call changes; warming up leaves them as they are. options:
    of `capture`.
    """

    def __init__(
        self,
        what: str,
        function: Callable[..., Tensor],
        *examples: Tensor,
        changed: Callable[[], Sequence[Tensor]] = lambda: (),
        **options: Any,
    ) -> None:
        self._function, self._inputs = function, [each.clone() for each in examples]
        with warmed_up_for_nothing(changed):
            self._replay = captured_or_said(what, self._run, examples[0].device, **options)

    @property
    def is_captured(self) -> bool:
        """Whether calls are replayed."""
        return self._replay is not None

    def __call__(self, *tensors: Tensor) -> Tensor:
        """A new tensor at every call, so that it may be kept."""
        if self._replay is None:
            return self._function(*tensors)
        for own, given in zip(self._inputs, tensors, strict=True):
            own.copy_(given)
        self._replay()
        return self._output.clone()

    def _run(self) -> None:
        self._output = self._function(*self._inputs)
