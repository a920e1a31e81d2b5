"""Layers of K networks at once, faster than what `torch.func.vmap` makes of them by itself.

Inside `vmap` a convolution with one weight per network becomes a grouped convolution. What makes that slow on a CPU,
`BatchedOps` changes without a word in the network's own code:

- pooling in the default memory format takes longer than the convolution before it: here the channels of all networks
  lie innermost (`channels_last`), where pooling is vectorised;
- a convolution over a map of a few pixels spends most of its time on padding: there it becomes one matrix product, with
  the kernel laid out for every pair of an input and an output pixel;
- the bias of a linear layer is added by the matrix product itself, not in a second pass over its result.

Shapes: K networks, B batch, I and O channels in and out, H and W height and width, P and Q pixels in and out, T taps of
a kernel, R rows, M = K * I or K * O channels of all networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Pair = int | tuple[int, ...]


class BatchedOps(TorchFunctionMode):
    """While active, `linear`, `conv2d` and `max_pool2d` under one `vmap` run merged over networks; all else as it was.

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
        if func is F.max_pool2d and args and args[0].dim() == 4 and not kwargs.get("return_indices", False):
            return _max_pool2d(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # torch's names: they may be keywords
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
    result: Tensor = _Conv2d.apply(input, weight, bias, stride, padding, dilation, groups)
    return result


def _max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    result: Tensor = _MaxPool2d.apply(input, kernel_size, stride, padding, dilation, ceil_mode)
    return result


class _ForVmapOnly(torch.autograd.Function):
    """Carries a `vmap` rule. Gradients are autograd's of what the rule computes, so `backward` is never called."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise NotImplementedError(
            "BatchedOps is for networks under exactly one vmap, differentiated from outside of it"
        )


class _Linear(_ForVmapOnly):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return F.linear(*arguments)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], rows: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        rows = _leading(rows, in_dims[0], info.batch_size)
        rows_KRI = rows.flatten(1, -2)
        weight_KIO = _leading(weight, in_dims[1], info.batch_size).transpose(1, 2)
        if bias is None:
            out_KRO = torch.bmm(rows_KRI, weight_KIO)
        else:
            bias_KO = _leading(bias, in_dims[2], info.batch_size)
            out_KRO = torch.baddbmm(bias_KO[:, None], rows_KRI, weight_KIO)
        return out_KRO.unflatten(1, rows.shape[1:-1]), 0


class _Conv2d(_ForVmapOnly):
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
        stride: Pair,
        padding: Pair | str,
        dilation: Pair,
        groups: int,
    ) -> tuple[Tensor, int]:
        num_networks = info.batch_size
        weight_KOIHW = _leading(weight, in_dims[1], num_networks)
        bias_KO = None if bias is None else _leading(bias, in_dims[2], num_networks)
        num_pixels, num_taps = images.shape[-2] * images.shape[-1], weight.shape[-2] * weight.shape[-1]
        # 2 x 2 pixels cost 4 products a channel pair as a matrix, and 9 as a padded 3 x 3 convolution.
        if groups == 1 and 2 * num_pixels < num_taps:
            images_KBIHW = _leading(images, in_dims[0], num_networks)
            return _conv2d_as_matrix(images_KBIHW, weight_KOIHW, bias_KO, stride, padding, dilation), 0
        merged_BMHW = F.conv2d(
            _channels_of_all(images, in_dims[0], num_networks),
            weight_KOIHW.flatten(0, 1),
            None if bias_KO is None else bias_KO.flatten(),
            stride,
            padding,
            dilation,
            groups * num_networks,
        )
        return merged_BMHW.unflatten(1, (num_networks, -1)), 1


class _MaxPool2d(_ForVmapOnly):
    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return F.max_pool2d(*arguments)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], images: Tensor, *options: Any) -> tuple[Tensor, int]:
        merged_BMHW = F.max_pool2d(_channels_of_all(images, in_dims[0], info.batch_size), *options)
        return merged_BMHW.unflatten(1, (info.batch_size, -1)), 1


def _leading(tensor: Tensor, dim: int | None, num_networks: int) -> Tensor:
    """[K, ...], whether the networks have their own (`dim` is where) or share one (None)."""
    return tensor.expand(num_networks, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _channels_of_all(images: Tensor, dim: int | None, num_networks: int) -> Tensor:
    """[B, M, H, W] with the channels of all networks innermost in memory; no copy where they lie so already."""
    images_BMHW = _leading(images, dim, num_networks).movedim(0, 1).flatten(1, 2)
    return images_BMHW.contiguous(memory_format=torch.channels_last)


def _conv2d_as_matrix(
    images_KBIHW: Tensor,
    weight_KOIHW: Tensor,
    bias_KO: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
) -> Tensor:
    num_networks, batch, channels, height, width = images_KBIHW.shape
    taps_TPHW = _taps(height, width, tuple(weight_KOIHW.shape[-2:]), stride, padding, dilation).to(images_KBIHW)
    taps_TX, (out_height, out_width) = taps_TPHW.flatten(1), taps_TPHW.shape[-2:]
    kernel_KOIPQ = (weight_KOIHW.flatten(3) @ taps_TX).unflatten(3, (height * width, -1))
    matrix_KPIQO = kernel_KOIPQ.permute(0, 3, 2, 4, 1).flatten(3, 4).flatten(1, 2)
    pixels_KBX = images_KBIHW.permute(0, 1, 3, 4, 2).reshape(num_networks, batch, height * width * channels)
    out_KBHWO = torch.bmm(pixels_KBX, matrix_KPIQO).view(num_networks, batch, out_height, out_width, -1)
    if bias_KO is not None:
        out_KBHWO = out_KBHWO + bias_KO[:, None, None, None]
    return out_KBHWO.movedim(-1, 2)


@lru_cache(maxsize=64)
def _taps(
    height: int, width: int, kernel: tuple[int, int], stride: Pair, padding: Pair | str, dilation: Pair
) -> Tensor:
    """[T, P, H, W]: 1 where a kernel's tap carries an input pixel to an output pixel, found by convolving unit images
    with unit kernels."""
    num_taps, num_pixels = kernel[0] * kernel[1], height * width
    units_P1HW = torch.eye(num_pixels).view(num_pixels, 1, height, width)
    units_T1HW = torch.eye(num_taps).view(num_taps, 1, *kernel)
    return F.conv2d(units_P1HW, units_T1HW, None, stride, padding, dilation).transpose(0, 1)
