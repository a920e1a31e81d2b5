"""One pass of a network that is watched: which modules run, in which order, and what they give.

Shapes: B batch, X the shape of one input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def watch(
    network: nn.Module, inputs_BX: Tensor, modules: Mapping[str, nn.Module], saw: Callable[[str, object], None]
) -> None:
    """Runs the network once, in eval mode and without gradients, and calls `saw(name, output)` as each module ends.

    Afterwards the network is in the mode that it was in.
    """
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: saw(name, output))
        for name, module in modules.items()
    ]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(inputs_BX)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
