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
from tqdm.auto import tqdm

from pdiff_hub.collect.hidden_layers import (
    HiddenLayer,
    StackedState,
    exact_copy,
    find_hidden_layers,
    outputs,
    relative_change,
)

_FIRST_SWEEPS = 3  # over the layers, while matching to the first network: later rounds start close
_BALANCE_SWEEPS = 10
_TOLERANCE = 1e-5  # of outputs; the weights are float32
_DEAD = 1e-12  # norm of a unit's weights below which scaling it means nothing


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
    progress: bool = True,
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
        progress: whether to show a progress bar.

    Returns:
        The aligned networks, same keys, shapes and dtypes, and what was done.

    Raises:
        ValueError: the network is not such a chain (residual connections, attention, grouped channels, tied or unknown
            parameters), naming the module; the stacked state does not fit it; rounds below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, found {rounds}")
    layers = find_hidden_layers(network, stacked_state, sample_input)
    scalable = [layer for layer in layers if rescale and layer.scaled]
    state = dict(stacked_state)
    for _ in range(_BALANCE_SWEEPS):
        for layer in scalable:
            _balance(state, layer)
    moved = _match_to_mean(state, layers, rounds, np.random.default_rng(seed), progress)
    change = _output_change(network, stacked_state, state, sample_input)
    if not change <= _TOLERANCE:
        raise ValueError(
            f"aligning changed a network's outputs by {change:.1e} (relative; {_TOLERANCE:.0e} is allowed): this "
            f"{type(network).__name__} is not a chain of layers; set align to false"
        )
    return state, AlignmentInfo(
        layers=tuple(layer.module for layer in layers),
        rescaled=tuple(layer.module for layer in scalable),
        moved=moved,
        distance_before=_distance_to_mean(stacked_state),
        distance_after=_distance_to_mean(state),
        output_change=change,
    )


def _balance(state: dict[str, Tensor], layer: HiddenLayer) -> None:
    """Scales each unit so that its incoming and outgoing weights have the same L2 norm; dead units are left alone."""
    incoming_KC, outgoing_KC = (layer.numbers(state, slots).norm(dim=2) for slots in (layer.scaled, layer.outgoing))
    alive_KC = torch.minimum(incoming_KC, outgoing_KC) > _DEAD
    factor_KC = torch.where(alive_KC, outgoing_KC / incoming_KC, 1.0).sqrt()
    layer.scale(state, factor_KC)


def _match_to_mean(
    state: dict[str, Tensor],
    layers: Sequence[HiddenLayer],
    rounds: int,
    visiting: np.random.Generator,
    progress: bool,
) -> tuple[float, ...]:
    """Reorders the units of all networks in place; -> the fraction of units that moved, for each round."""
    moved: list[float] = []
    reference = {key: tensor[:1] for key, tensor in state.items()}
    for number in tqdm(range(rounds + 1), desc="align", unit="round", disable=None if progress else True):
        sweeps = _FIRST_SWEEPS if number == 0 else 1
        changed = sum(
            _match(state, reference, layers[index])
            for _ in range(sweeps)
            for index in visiting.permutation(len(layers))
        )
        moved.append(changed / max(1, sweeps * len(layers)))
        if number > 0 and changed == 0:
            break
        reference = {key: tensor.float().mean(0, keepdim=True) for key, tensor in state.items()}
    return tuple(moved)


def _match(state: dict[str, Tensor], reference: StackedState, layer: HiddenLayer) -> float:
    """Reorders one layer's units to be most like the reference's in all weights that touch them; -> fraction moved."""
    slots = (*layer.weights, *layer.norms, *layer.outgoing)
    numbers_KCF, reference_1CF = layer.numbers(state, slots).float(), layer.numbers(reference, slots).float()
    # Row c: how well each unit would do at place c. arXiv 2209.04836, eq. 1 for one layer: a linear assignment problem.
    gain_KCC = torch.matmul(reference_1CF, numbers_KCF.transpose(1, 2)).cpu().numpy()
    order_KC = torch.from_numpy(np.stack([linear_sum_assignment(gain_CC, maximize=True)[1] for gain_CC in gain_KCC]))
    layer.reorder(state, order_KC.to(numbers_KCF.device))
    return float((order_KC != torch.arange(layer.size)).float().mean())


def _output_change(network: nn.Module, before: StackedState, after: StackedState, sample_input: Tensor) -> float:
    """The largest relative change of outputs among all networks, in float64."""
    exact = exact_copy(network)
    num_networks = len(next(iter(before.values())))
    changes = [
        relative_change(*(outputs(exact, state, index, sample_input) for state in (before, after)))
        for index in range(num_networks)
    ]
    return max(changes)


def _distance_to_mean(state: StackedState) -> float:
    """Mean over networks of the L2 distance of all float entries to the mean network's."""
    squares_K = sum(
        (tensor.float() - tensor.float().mean(0)).square().flatten(1).sum(1)
        for tensor in state.values()
        if tensor.is_floating_point()
    )
    return float(torch.as_tensor(squares_K).sqrt().mean())
