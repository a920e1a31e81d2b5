"""One convolution of K networks, each on its own maps, in the form that is fastest for its sizes.

A grouped convolution works for all sizes, but is slow in the first and the last layers of a small network. There a
matrix product is faster. The first layer takes images, which have few channels and need no gradient: their patches are
laid out once per batch (twice as fast on digits). The last layers may take maps with fewer pixels than the kernel: each
output pixel then depends on all input pixels, as in a dense layer (1.6 times as fast).
Shapes: K networks, B batch, C channels in, O channels out, H, W pixels, T taps of a kernel (C x height x width).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_TAPS = 16  # at 27 (3 x 3 taps, three channels) the patches cost what the product saves
_FEW_PIXELS = 4  # at 9 the dense matrix costs more than the product saves; its size grows with the square


def convolve(layer: nn.Conv2d, weight_KOCHW: Tensor, bias_KO: Tensor | None, maps: Tensor) -> Tensor:
    """Maps [B,KC,H,W] -> [B,KO,H,W], by weights [K,O,C,height,width]; `layer` has one group and pads with zeros."""
    height, width = layer.kernel_size
    if _is_plain(layer):
        if not maps.requires_grad and weight_KOCHW[0, 0].numel() <= _FEW_TAPS:
            return _by_patches(layer, weight_KOCHW, bias_KO, maps)
        rows, columns = maps.shape[-2:]
        if rows < height and columns < width and rows * columns <= _FEW_PIXELS:
            return _dense(layer, weight_KOCHW, bias_KO, maps)
    return F.conv2d(
        maps,
        weight_KOCHW.flatten(0, 1),
        None if bias_KO is None else bias_KO.flatten(),
        layer.stride,
        layer.padding,
        layer.dilation,
        groups=len(weight_KOCHW),
    )


def _is_plain(layer: nn.Conv2d) -> bool:
    """Whether the padding is a number of pixels (not "same") and the kernel is not dilated."""
    return not isinstance(layer.padding, str) and layer.dilation == (1, 1)


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(layer.padding, str)
    return layer.padding[0], layer.padding[1]


def _by_patches(layer: nn.Conv2d, weight_KOCHW: Tensor, bias_KO: Tensor | None, maps: Tensor) -> Tensor:
    """The convolution as a product of weights [K,O,T] and patches [K,T,B x pixels]."""
    num_networks, outputs = weight_KOCHW.shape[:2]
    (height, width), (down, right), (above, beside) = layer.kernel_size, layer.stride, _padding(layer)
    padded = F.pad(maps, (beside, beside, above, above))
    windows = padded.unfold(2, height, down).unfold(3, width, right).unflatten(1, (num_networks, -1))
    batch, _, _, rows, columns = windows.shape[:5]
    patches_KTM = windows.permute(1, 2, 5, 6, 0, 3, 4).reshape(num_networks, -1, batch * rows * columns)
    weight_KOT = weight_KOCHW.flatten(2)
    values_KOM = (
        torch.bmm(weight_KOT, patches_KTM)
        if bias_KO is None
        else torch.baddbmm(bias_KO[..., None], weight_KOT, patches_KTM)
    )
    return values_KOM.view(num_networks * outputs, batch, rows, columns).transpose(0, 1)


def _dense(layer: nn.Conv2d, weight_KOCHW: Tensor, bias_KO: Tensor | None, maps: Tensor) -> Tensor:
    """The convolution as a product of maps [K,B,C x pixels] and a matrix [K,C x pixels,O x pixels]."""
    num_networks, outputs, channels, height, width = weight_KOCHW.shape
    batch, _, rows_in, columns_in = maps.shape
    (down, right), (above, beside) = layer.stride, _padding(layer)
    rows, columns = (rows_in + 2 * above - height) // down + 1, (columns_in + 2 * beside - width) // right + 1
    # Input pixel (a, b) reaches output pixel (i, j) by tap (a - down i + above, b - right j + beside). If there is no
    # such tap, the weight is 0. So the weights of each (i, j) are a window of the kernel in a margin of zeros.
    top, left = max(0, (rows - 1) * down - above), max(0, (columns - 1) * right - beside)
    bottom, end = max(0, rows_in + above - height), max(0, columns_in + beside - width)
    padded = F.pad(weight_KOCHW, (left, end, top, bottom))
    windows = [
        padded[..., top + above - down * i :, left + beside - right * j :][..., :rows_in, :columns_in]
        for i in range(rows)
        for j in range(columns)
    ]
    matrix = torch.stack(windows, 2)  # [K,O,pixels out,C,H,W]
    matrix = matrix.permute(0, 3, 4, 5, 1, 2).reshape(num_networks, channels * rows_in * columns_in, -1)
    maps_KBF = maps.reshape(batch, num_networks, -1).transpose(0, 1)
    if bias_KO is None:
        values = torch.bmm(maps_KBF, matrix)
    else:
        values = torch.baddbmm(bias_KO.repeat_interleave(rows * columns, 1)[:, None], maps_KBF, matrix)
    return values.transpose(0, 1).reshape(batch, num_networks * outputs, rows, columns)
