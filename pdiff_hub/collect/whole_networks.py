"""Networks that are trained from a start of their own are collected whole: no frozen rest could be shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pdiff_hub.collect.shared_tensors import first_difference, is_counter, remedy
from pdiff_hub.errors import PdiffError
from pdiff_hub.travelling.param_autoencoder import ParamLayout


def whole_layout(network: nn.Module, select: str | Sequence[str], method: str, why: str) -> ParamLayout:
    """The layout that `select` names; ValueError if it leaves out a trained tensor, or for a complex one.

    method: the `collect.method` that asks. why: ends the sentence "it leaves out TENSOR, which ...".
    """
    layout = ParamLayout.from_module(network, select if isinstance(select, str) else list(select))
    state = network.state_dict()
    if left := [entry.name for entry in layout.frozen if _may_differ(state[entry.name])]:
        raise PdiffError(
            f"select={select!r} leaves out {left[0]!r}, which {why}; use select: all with collect.method: {method}."
        )
    if pairs := [entry.name for entry in layout.entries if state[entry.name].is_complex()]:
        raise PdiffError(
            f"tensor {pairs[0]!r} is {state[pairs[0]].dtype}, and collect.method: {method} trains real numbers only; "
            "use finetune or import."
        )
    return layout


def require_shared_start(layout: ParamLayout, network: nn.Module, build_another: Callable[[], nn.Module]) -> None:
    """ValueError if networks begin with different tensors that cannot be generated, such as integers drawn at random.

    build_another: makes the network of another seed; it is called only if there are such tensors.
    """
    if any(not is_counter(entry.name) for entry in layout.frozen):
        states = [layout.frozen_state(each.state_dict()) for each in (network, build_another())]
        require_shared(layout, {name: torch.stack([state[name] for state in states]) for name in states[0]})


def require_shared(
    layout: ParamLayout, stacked: Mapping[str, Tensor], shared: Mapping[str, Tensor] | None = None
) -> None:
    """ValueError names a tensor [K, ...] outside the layout that is not the same in all K networks, and not a counter.

    shared: what the networks must have; None: what the first has.
    """
    names = [entry.name for entry in layout.frozen]
    shared = shared or {name: stacked[name][0] for name in names}
    for row in range(len(stacked[names[0]]) if names else 0):
        if name := first_difference(shared, {name: stacked[name][row] for name in names}):
            raise PdiffError(
                f"tensor {name!r} differs between the networks, which start from seeds of their own or change it in "
                f"training; {remedy(shared[name])}."
            )


def _may_differ(tensor: Tensor) -> bool:
    """Not for what is empty, a mask (with infinities), or an integer, which is compared once it is there."""
    return tensor.is_floating_point() and tensor.numel() > 0 and not bool(torch.isinf(tensor.float()).any())
