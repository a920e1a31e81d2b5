"""Networks that are trained from a start of their own are collected whole: no frozen rest could be shared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pdiff_hub.errors import PdiffError
from pdiff_hub.travelling.param_autoencoder import ParamLayout


def whole_layout(network: nn.Module, select: str | Sequence[str], method: str, why: str) -> ParamLayout:
    """The layout that `select` names; ValueError if it leaves out a trained tensor.

    method: the `collect.method` that asks. why: ends the sentence "it leaves out TENSOR, which ...".
    """
    layout = ParamLayout.from_module(network, select if isinstance(select, str) else list(select))
    if left := [entry.name for entry in layout.frozen if getattr(torch, entry.dtype).is_floating_point]:
        raise PdiffError(
            f"select={select!r} leaves out {left[0]!r}, which {why}; use select: all with collect.method: {method}."
        )
    return layout
