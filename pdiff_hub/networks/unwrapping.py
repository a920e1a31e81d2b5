"""Makes a plain network of what a user's factory returns: no wrappers, all weights there, fit for float32 images."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pdiff_hub.errors import PdiffError, one_line

_PACKAGE, _TORCH = (str(Path(file).parents[depth]) for file, depth in ((__file__, 1), (str(torch.__file__), 0)))
_MOST_LETTERS = 200  # of an error of the network's own


def plain(network: nn.Module, name: str, image: Sequence[int]) -> nn.Module:
    """The network in train mode, on the CPU (or the meta device), as the rest of the package works with networks.

    - The network inside `torch.compile` or `DataParallel` takes their place: the names of its tensors are its own.
      Inside the network, such wrappers keep their names, and only pass on.
    - Lazy layers get their shapes from an image of the task.
    - A network in another dtype stays in it. If it cannot take float32 images, they are converted on their way in.

    Args:
        name: of the network, for errors.
        image: [channels, height, width] of the task.

    Raises:
        ValueError: a scripted network, a lazy layer that is never called, a network that is lazy or in another dtype
            and cannot take such images.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise PdiffError(
            f"network {name!r} is scripted (torch.jit), so its weights cannot be exchanged; return the network from "
            "before torch.jit.script or torch.jit.trace"
        )
    while (inner := _wrapped(network)) is not None:
        network = inner[1]
    passing: dict[int, nn.Module] = {}  # by the wrapper, which may be used in several places
    for parent in list(network.modules()):
        if parent._compiled_call_impl is not None:
            parent._compiled_call_impl = None  # of `network.compile()`
        for child, module in list(parent._modules.items()):
            if module is not None and (inner := _wrapped(module)) is not None:
                parent._modules[child] = passing.setdefault(id(module), _Passing(*inner))
    if any(tensor.device.type not in ("cpu", "meta") for tensor in _tensors(network)):
        network.to("cpu")
    if any(map(is_lazy, _tensors(network))) or _other_dtype(network) is not None:
        _try_out(network, name, image)
    network.train()  # a user's own `train` may forget to return the network
    return network


def cannot_take(name: str, shape: Sequence[int], error: Exception) -> PdiffError:
    """The error to raise for a network that fails on images of this shape [N, C, H, W]."""
    return PdiffError(
        f"network {name!r} cannot take images {list(shape)} [number, channels, height, width], which the task has: "
        f"{described(error)}; let its factory take in_channels and image_size, which come from the task, or set the "
        "task's image_size"
    )


def described(error: Exception) -> str:
    """A user's error in few words, with the last line of his own code that it came through."""
    return f"{type(error).__name__}: {one_line(error, _MOST_LETTERS)}{place_of(error)}"


def place_of(error: Exception) -> str:
    """The last line of a user's own code that an error came through, as " (FILE, line NUMBER)"; empty if none did."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_PACKAGE, _TORCH, "<"))
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


class _Passing(nn.Module):
    """Stands for a wrapper inside a network, so that its tensors keep their names."""

    def __init__(self, attribute: str, inner: nn.Module):
        super().__init__()
        self._attribute = attribute
        self.add_module(attribute, inner)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.get_submodule(self._attribute)(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if (inner := vars(self).get("_modules", {}).get(vars(self).get("_attribute"))) is None:
                raise
            return getattr(inner, name)


def _wrapped(module: nn.Module) -> tuple[str, nn.Module] | None:
    """The attribute and the network inside `torch.compile` or a parallel wrapper; None for anything else."""
    parallel = isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
    attribute = "module" if parallel else "_orig_mod"  # torch._dynamo, which has the class, takes a second to import
    inner = module._modules.get(attribute)
    return None if inner is None or isinstance(module, _Passing) else (attribute, inner)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _other_dtype(network: nn.Module) -> torch.dtype | None:
    """The dtype of all the network's float parameters, if it is one and not float32."""
    dtypes = {tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()}
    return None if len(dtypes) != 1 or dtypes == {torch.float32} else dtypes.pop()


@torch.no_grad()
def _try_out(network: nn.Module, name: str, image: Sequence[int]) -> None:
    """Gives lazy layers their shapes, and finds out whether the network takes float32 images."""
    network.eval()  # statistics stay as they are
    inputs = torch.zeros(1, *image, device="meta" if any(t.is_meta for t in _tensors(network)) else None)
    try:
        try:
            network(inputs)
        except RuntimeError:  # what torch raises for tensors of different dtypes, and for much else
            if _other_dtype(network) is None:
                raise
            network.register_forward_pre_hook(_converted)
            network(inputs)
    except Exception as error:  # a user's own code may raise anything
        raise cannot_take(name, inputs.shape, error) from error
    if lazy := [key for key, tensor in network.state_dict(keep_vars=True).items() if is_lazy(tensor)]:
        raise PdiffError(
            f"network {name!r} has a lazy layer that is not called for an image of the task, so its tensor {lazy[0]!r} "
            "has no shape; remove the layer, or give its size"
        )


def _converted(network: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments in the dtype that the network's parameters have now: a copy of it may have been converted."""
    dtype = next(tensor.dtype for tensor in network.parameters() if tensor.is_floating_point())
    return tuple(
        each.to(dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in arguments
    )
