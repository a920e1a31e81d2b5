"""Layers of K networks at once, faster than what `torch.func.vmap` makes of them by itself.

`BatchedOps` changes, without a word in the network's own code, what is slow on a CPU when each network has weights of
its own:

- a convolution, which `vmap` turns into one of many groups: where the map is small it becomes a batched matrix product
  over patches;
- a linear layer: the product adds the bias itself, and its gradient has the weight's memory layout, not another;
- pooling in the default memory format: with channels innermost it is vectorised.

Shapes: K networks, B batch, I and O channels in and out, H and W height and width, Y and X of the padded map, R rows
(images, or images and positions), J inputs of a row, T taps of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Pair = int | tuple[int, ...]

_POOLS = (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d)
# Numbers in one network's patches. Where there are more, cutting them out costs more than the grouped convolution.
_MAX_PATCHES = 2**18


class BatchedOps(TorchFunctionMode):
    """While active, the layers above run batched inside of one `vmap` over networks; all else runs as it was.

    Results and gradients (taken outside of the `vmap`) agree with `vmap`'s own to float rounding.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and args and args[0].dim() > 1:
            return _linear(*args, **kwargs)
        if func is F.conv2d and args and args[0].dim() == 4:
            return _conv2d(*args, **kwargs)
        if func in _POOLS and args and args[0].dim() == 4 and not kwargs.get("return_indices", False):
            return _Pool.apply(lambda images: func(images, *args[1:], **kwargs), args[0])
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = _Linear.apply(input, weight, bias)
    return result


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    strides = _pair(stride)
    if groups != 1 or isinstance(padding, str) or _pair(dilation) != (1, 1):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    pads = _pair(padding)
    batch, channels, *size = input.shape
    kernel = weight.shape[-2:]
    out = [(size[d] + 2 * pads[d] - kernel[d]) // strides[d] + 1 for d in (0, 1)]
    if batch * channels * math.prod(kernel) * math.prod(out) > _MAX_PATCHES:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    result: Tensor = _Conv2d.apply(input, weight, bias, strides, pads)
    return result


class _UnderVmap(torch.autograd.Function):
    """Carries a `vmap` rule. Gradients are autograd's of what the rule computes, so `backward` is never called."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise NotImplementedError("BatchedOps is for exactly one vmap, with gradients taken outside of it")


class _Linear(_UnderVmap):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return F.linear(*arguments)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], rows: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        rows, weight_KOJ, bias_KO = _all_leading(info, in_dims, rows, weight, bias)
        out_KRO = _Product.apply(rows.flatten(1, -2), weight_KOJ, bias_KO)
        return out_KRO.unflatten(1, rows.shape[1:-1]), 0


class _Conv2d(_UnderVmap):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return F.conv2d(*arguments)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        strides: tuple[int, int],
        pads: tuple[int, int],
    ) -> tuple[Tensor, int]:
        images, weight_KOIHW, bias_KO = _all_leading(info, in_dims, images, weight, bias)
        # A patch is laid out as it lies in a map whose channels are innermost.
        weight_KOJ = weight_KOIHW.permute(0, 1, 3, 4, 2).flatten(2)
        images_KBYXI = F.pad(images.permute(0, 1, 3, 4, 2), (0, 0, pads[1], pads[1], pads[0], pads[0])).contiguous()
        patches_KBHWJ = _Patches.apply(images_KBYXI, tuple(weight.shape[-2:]), strides)
        out_KRO = _Product.apply(patches_KBHWJ.flatten(1, 3), weight_KOJ, bias_KO)
        return out_KRO.unflatten(1, patches_KBHWJ.shape[1:4]).movedim(-1, 2), 0


class _Pool(_UnderVmap):
    @staticmethod
    def forward(pool: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        return pool(images)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], pool: Callable[[Tensor], Tensor], images: Tensor
    ) -> tuple[Tensor, int]:
        (images_KBCHW,) = _all_leading(info, in_dims[1:], images)
        merged = images_KBCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return pool(merged).unflatten(0, images_KBCHW.shape[:2]), 0


class _Product(torch.autograd.Function):
    """rows_KRJ @ weight_KOJ^T + bias_KO, with gradients in the memory layout of what they are of."""

    @staticmethod
    def forward(ctx: Any, rows_KRJ: Tensor, weight_KOJ: Tensor, bias_KO: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows_KRJ, weight_KOJ)
        if bias_KO is None:
            return torch.bmm(rows_KRJ, weight_KOJ.transpose(1, 2))
        return torch.baddbmm(bias_KO[:, None], rows_KRJ, weight_KOJ.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, grad_KRO: Tensor) -> tuple[Tensor | None, ...]:
        rows_KRJ, weight_KOJ = ctx.saved_tensors
        return (
            torch.bmm(grad_KRO, weight_KOJ) if ctx.needs_input_grad[0] else None,
            torch.bmm(grad_KRO.transpose(1, 2), rows_KRJ) if ctx.needs_input_grad[1] else None,
            grad_KRO.sum(1) if ctx.needs_input_grad[2] else None,
        )


class _Patches(torch.autograd.Function):
    """The patches under a kernel: images_KBYXI -> patches_KBHWJ, J = kernel height x width x I."""

    @staticmethod
    def forward(ctx: Any, images_KBYXI: Tensor, kernel: tuple[int, int], strides: tuple[int, int]) -> Tensor:
        num_networks, batch, height, width, channels = images_KBYXI.shape
        ctx.shape, ctx.kernel, ctx.strides = images_KBYXI.shape, kernel, strides
        step_K, step_B, step_Y, step_X, _ = images_KBYXI.stride()
        out_height, out_width = (height - kernel[0]) // strides[0] + 1, (width - kernel[1]) // strides[1] + 1
        # One row of a patch is contiguous, so that it is copied in one go.
        size = (num_networks, batch, out_height, out_width, kernel[0], kernel[1] * channels)
        step = (step_K, step_B, strides[0] * step_Y, strides[1] * step_X, step_Y, 1)
        return images_KBYXI.as_strided(size, step).flatten(4)

    @staticmethod
    def backward(ctx: Any, grad_KBHWJ: Tensor) -> tuple[Tensor, None, None]:
        (rows, columns), strides = ctx.kernel, ctx.strides
        grad_KBYXI = grad_KBHWJ.new_zeros(ctx.shape)
        step_K, step_B, step_Y, step_X, _ = grad_KBYXI.stride()
        by_row = grad_KBHWJ.unflatten(4, (rows, -1))
        # Patches whose rows do not overlap are added together: every `apart`-th one.
        apart = math.ceil(columns / strides[1])
        for row in range(rows):
            for first in range(min(apart, by_row.shape[3])):
                part = by_row[:, :, :, first::apart, row]
                step = (step_K, step_B, strides[0] * step_Y, strides[1] * apart * step_X, 1)
                grad_KBYXI.as_strided(part.shape, step, row * step_Y + first * strides[1] * step_X).add_(part)
        return grad_KBYXI, None, None


def _all_leading(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor | None) -> list[Any]:
    """Each tensor as [K, ...], whether the networks have their own (`in_dims` says where) or share it (None)."""
    return [
        tensor
        if tensor is None
        else tensor.expand(info.batch_size, *tensor.shape)
        if dim is None
        else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


def _pair(value: Pair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])
