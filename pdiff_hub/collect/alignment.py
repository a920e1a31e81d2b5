"""Putting the hidden units of many networks in one order: weight matching to their mean (git re-basin).

The hidden units of a network can change places, and behind a ReLU they can be scaled, without changing what it
computes. Networks trained from different seeds differ by such moves, so that the point between two of them is a broken
network. `align_to_mean` undoes the moves, network by network, and leaves a cloud whose mean works.

Source: Git Re-Basin, arXiv 2209.04836, sec. 3.2 (weight matching) and sec. 5 (merging many models). Deviations:
all networks are matched to the mean of the round before, at once, where the paper goes through them one by one; and
units are scaled first, which the paper does not do. On digits scaling takes 4 to 16 % off the networks' distance to
their mean, and the mean network gains up to a point.

Shapes: K networks, C units of one hidden layer, F weights that touch a unit, S positions a unit has in a flattened map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pdiff_hub.collect.hidden_layers import HiddenLayer, StackedState, Slot, find_hidden_layers, largest_output_change

_FIRST_SWEEPS = 3  # over the layers, while matching to the first network: later rounds start close
_BALANCE_SWEEPS = 10


@dataclass(frozen=True)
class AlignmentInfo:
    """What `align_to_mean` found and did.

    Attributes:
        layers: the modules whose units were put in order, from input to output.
        rescaled: those of them whose units were scaled too.
        moved: the fraction of units that changed places in each round; it nears 0 as the order settles.
        distance_before, distance_after: mean L2 distance of a network to the mean network, raw weight units.
        output_change: the largest change of any network's output on `sample_input`, relative to its largest output
            (or to 1, where that is smaller).
    """

    layers: tuple[str, ...]
    rescaled: tuple[str, ...]
    moved: tuple[float, ...]
    distance_before: float
    distance_after: float
    output_change: float


def align_to_mean(
    network: nn.Module,
    stacked_state: StackedState,
    sample_input: Tensor,
    *,
    rounds: int = 4,
    rescale: bool = True,
    seed: int = 0,
) -> tuple[dict[str, Tensor], AlignmentInfo]:
    """Reorders (and scales) the hidden units of K networks so that they lie close to their mean; outputs stay equal.

    Args:
        network: any of the networks; only its architecture is used. It must be a chain of linear, convolution and
            normalisation layers, with whatever activations and pooling between them.
        stacked_state: state-dict key -> [K, ...] of all networks; it is not changed.
        sample_input: a batch for the network, float, on which outputs are compared. A handful of real images is enough.
        rounds: 1 or more; how often all networks are matched to the mean of the round before.
        rescale: whether each unit behind a positively homogeneous activation (ReLU) is scaled so that its incoming and
            outgoing weights have one norm. Layers for which that would change the outputs are left as they are.
        seed: of the order in which layers are visited.

    Returns:
        The aligned networks, same keys, shapes and dtypes, and what was done.

    Raises:
        ValueError: the network is not such a chain (residual connections, attention, grouped channels, tied or unknown
            parameters), naming the module; the stacked state does not fit it; rounds below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, found {rounds}")
    layers = find_hidden_layers(network, stacked_state, sample_input)
    state = dict(stacked_state)
    if rescale:
        for _ in range(_BALANCE_SWEEPS):
            for layer in layers:
                if layer.scalable:
                    _balance(state, layer)
    visiting = np.random.default_rng(seed)
    # Any network can be the first reference; that it is the first one makes the outcome independent of the others.
    reference = {key: tensor[:1] for key, tensor in state.items()}
    moved: list[float] = []
    for number in range(rounds + 1):
        changed = 0.0
        for _ in range(_FIRST_SWEEPS if number == 0 else 1):
            for index in visiting.permutation(len(layers)):
                changed += _match(state, reference, layers[index])
        moved.append(changed / max(1, len(layers)))
        if changed == 0.0:
            break
        reference = {key: tensor.float().mean(0, keepdim=True) for key, tensor in state.items()}
    change = largest_output_change(network, stacked_state, state, sample_input)
    info = AlignmentInfo(
        layers=tuple(layer.module for layer in layers),
        rescaled=tuple(layer.module for layer in layers if rescale and layer.scalable),
        moved=tuple(moved),
        distance_before=_distance_to_mean(stacked_state),
        distance_after=_distance_to_mean(state),
        output_change=change,
    )
    return state, info
