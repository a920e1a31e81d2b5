"""Sampling on a GPU without waiting for Python: the U-Net's call is captured, and noise is drawn before the steps.

The numbers are those of the CPU, to float tolerance: noise comes from the same generators, one per network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pdiff_hub.networks.capturing import Replayed
from pdiff_hub.networks.devices import free_bytes
from pdiff_hub.pipeline.calling import TypedPipeline

_ROOM = 2 << 30  # bytes of networks that are made at once, at most
_LARGER_BATCHES = 16  # than on a CPU, in networks and in memory: they take a GPU hardly longer
_WORTH_CAPTURING = 16  # steps: capturing costs as much time as five of them
_BLOCK = 16  # normal numbers that a generator of the CPU makes at once
_AHEAD = 1 << 26  # numbers that are drawn ahead, at most

Ask = Callable[[Tensor, Tensor], Tensor]


class SamplesOnGpus(TypedPipeline):
    """Samples as `TypedPipeline` does, with a GPU's habits where the noise is on one."""

    _cannot_be_captured = False

    def default_batch_size(self, output_type: str = "state_dict") -> int:
        """How many networks a call makes at once by default; this bounds memory, on a GPU and beside it."""
        size: int = super().default_batch_size(output_type)
        device = self._execution_device
        if device.type == "cpu":
            return size
        if output_type == "latent":
            return _LARGER_BATCHES * size
        room = min(free_bytes(device) // 16, _ROOM) // (8 * self.autoencoder.layout.num_params)
        return max(size, min(_LARGER_BATCHES * size, room))

    def _denoise(
        self, noise: Tensor, generators: Any, ask: Any, steps: int, callback: Any, names: Any, keep: bool, bar: Any
    ) -> list[Tensor]:
        if noise.device.type != "cuda":
            return list(super()._denoise(noise, generators, ask, steps, callback, names, keep, bar))
        with DrawnAhead(generators, noise.shape[1:], steps, noise.device) as drawn:
            asked = ReplayedAsk(ask) if steps >= _WORTH_CAPTURING and not self._cannot_be_captured else ask
            path = list(super()._denoise(noise, drawn.generators, asked, steps, callback, names, keep, bar))
        self._cannot_be_captured |= isinstance(asked, ReplayedAsk) and asked.failed  # tried, and said, once
        return path


class DrawnAhead(TorchFunctionMode):
    """While it is active, what one generator is asked for on the CPU is noise that lies on the device already.

    A scheduler draws each step's noise from the generators of all networks one by one, and then waits until it is on
    the device. Here each network's noise for all steps is drawn at once, and is there before the first.

    At its end the generators are where the scheduler would have left them.

    generators: what the scheduler is to be given instead of one per network.
    """

    def __init__(
        self, generators: Sequence[torch.Generator], shape: Sequence[int], steps: int, device: torch.device
    ) -> None:
        super().__init__()
        self._each, self._shape, self._device = list(generators), tuple(shape), device
        self._steps = max(1, min(steps, _AHEAD // (len(self._each) * torch.Size(shape).numel())))
        self._ahead_TNCL: list[Tensor] = []
        self.generators = [torch.Generator()]  # only asked for by name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replaces calls of `torch.randn` with this object's generator, and nothing else."""
        kwargs = kwargs or {}
        if func is torch.randn and kwargs.get("generator") is self.generators[0]:
            size = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            return self._draw(tuple(size), kwargs.get("dtype"))
        return func(*args, **kwargs)

    def _draw(self, size: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
        if size != (len(self._each), *self._shape):  # of a scheduler that draws other things than noise
            each = [
                torch.randn(size[1:], generator=generator, dtype=dtype, device=generator.device).to(self._device)
                for generator in self._each
            ]
            return torch.stack(each)
        if not self._ahead_TNCL:
            self._before = [each.get_state() for each in self._each]
            drawn_TNCL = draw_steps(self._each, self._shape, self._steps, dtype)
            if self._device.type == "cuda":
                drawn_TNCL = drawn_TNCL.pin_memory()
            self._ahead_TNCL = list(drawn_TNCL.to(self._device, non_blocking=True).unbind())
        return self._ahead_TNCL.pop(0)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if unused := len(self._ahead_TNCL):
            for generator, state in zip(self._each, self._before, strict=True):
                generator.set_state(state)
            if unused < self._steps:
                draw_steps(self._each, self._shape, self._steps - unused, self._ahead_TNCL[0].dtype)


def draw_steps(
    generators: Sequence[torch.Generator], shape: Sequence[int], steps: int, dtype: torch.dtype | None
) -> Tensor:
    """[T,N,*shape]: what `steps` calls of `torch.randn(shape, generator=each)` would give each network."""
    whole = torch.Size(shape).numel() % _BLOCK == 0 and all(each.device.type == "cpu" for each in generators)
    if whole:  # then one call gives the same numbers as one call per step (a test)
        each = [torch.randn(steps, *shape, generator=generator, dtype=dtype) for generator in generators]
        return torch.stack(each, dim=1)
    one_by_one = (
        [torch.randn(*shape, generator=each, dtype=dtype, device=each.device).cpu() for _ in range(steps)]
        for each in generators
    )
    return torch.stack([torch.stack(drawn) for drawn in one_by_one], dim=1)


class ReplayedAsk:
    """`ask` for samples [B,C,L] at time steps [B], captured at the first call, when their types are known."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._replayed: Replayed | None = None

    @property
    def failed(self) -> bool:
        """Whether it could not be captured, so that `ask` is called."""
        return self._replayed is not None and not self._replayed.is_captured

    def __call__(self, sample: Tensor, times: Tensor) -> Tensor:
        """What `ask` predicts."""
        if self._replayed is None:
            self._replayed = Replayed("sample: the U-Net's call", self._ask, sample, times, exclusive=False)
        return self._replayed(sample, times)
