"""`convolve` runs many networks at once: it has the values and gradients of a grouped convolution, at all sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pdiff_hub.collect.population.convolutions import _by_patches, _dense, convolve

NETWORKS, BATCH = 3, 2
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    """A convolution, and maps [B,KC,H,W] that fit it."""
    kernel, stride, margin = draw(pairs), draw(pairs), draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    channels, outputs, bias = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.booleans())
    height, width = (draw(st.integers(max(1, size - 2 * pad), 5)) for size, pad in zip(kernel, margin, strict=True))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    maps = torch.randn(BATCH, NETWORKS * channels, height, width, dtype=torch.float64)
    return nn.Conv2d(channels, outputs, kernel, stride, margin, bias=bias), maps


@settings(max_examples=40, deadline=None)
@given(cases(), st.booleans())
def test_every_form_is_the_grouped_convolution(case: tuple[nn.Conv2d, Tensor], of_images: bool) -> None:
    layer, maps = case
    maps.requires_grad_(not of_images)
    weight = torch.randn(NETWORKS, *layer.weight.shape, dtype=torch.float64, requires_grad=True)
    bias = None
    if layer.bias is not None:
        bias = torch.randn(NETWORKS, layer.out_channels, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(
        maps,
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        layer.stride,
        layer.padding,
        groups=NETWORKS,
    )
    wanted = [each for each in (weight, bias, maps) if each is not None and each.requires_grad]
    gradient = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, wanted, gradient)
    for form in (convolve, _by_patches, _dense):
        values = form(layer, weight, bias, maps)
        torch.testing.assert_close(values, expected)
        for ours, theirs in zip(torch.autograd.grad(values, wanted, gradient), gradients, strict=True):
            torch.testing.assert_close(ours, theirs)
