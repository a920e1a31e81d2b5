"""Puts the hidden units of many networks into one order: weight matching to their mean (git re-basin).

Reordering the hidden units of a network does not change what it computes, nor does scaling units before a ReLU.
Networks trained from different seeds differ by such changes, so a network halfway between two of them is broken.
`align_to_mean` undoes these changes in each network, so that the mean of the networks works. `align_to_reference` does
so for further networks, on which that mean must not depend.

Source: Git Re-Basin, arXiv 2209.04836, sec. 3.2 (weight matching) and sec. 5 (merging many models). Two deviations:
all networks are matched at once to the mean of the previous round, while the paper goes through them one by one; and
units are scaled first, which the paper does not do. On digits, scaling reduces the networks' distance to their mean by
4 to 16 %, and the mean network gains up to a point.

Shapes: K networks, C units of one hidden layer, F weights that touch a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pdiff_hub.collect.alignment.hidden_layers import (
    DO_NOT_ALIGN,
    HiddenLayer,
    StackedState,
    exact_copy,
    find_hidden_layers,
    outputs,
    relative_change,
)
from pdiff_hub.errors import PdiffError
from pdiff_hub.progress import progress_bar
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_FIRST_SWEEPS = 3  # over the layers in the first round; later rounds start close to the result, so one is enough
_BALANCE_SWEEPS = 10
_TOLERANCE = 1e-5  # relative, for outputs; not smaller, because the weights are float32
_BYTES_AT_ONCE = 64 << 20  # of networks that are unpacked together
_DEAD = 1e-12  # a unit whose weights have a smaller norm is dead and is not scaled
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class AlignmentInfo:
    """What `align_to_mean` or `align_to_reference` found and did.

    Attributes:
        layers: the modules whose units were put in order, from input to output.
        rescaled: those of `layers` whose units were also scaled.
        moved: the fraction of units that changed places, for each round; it approaches 0 as the order settles.
        distance_before, distance_after: mean L2 distance of a network to the mean network, or to the reference, in raw
            weight units.
        output_change: the largest change of any network's output on `sample_input`, relative to the largest output of
            that network, or to 1 if that is larger.
    """

    layers: tuple[str, ...]
    rescaled: tuple[str, ...]
    moved: tuple[float, ...]
    distance_before: float
    distance_after: float
    output_change: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def align_to_mean(
    network: nn.Module,
    params_KP: Tensor,
    layout: ParamLayout,
    sample_input: Tensor,
    *,
    frozen: StackedState | None = None,
    rounds: int = 4,
    rescale: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> AlignmentInfo:
    """Reorders (and scales) the hidden units of K networks in place, so that the networks lie close to their mean.

    Outputs stay equal. Only some networks are unpacked at a time, so memory holds the K x P numbers once.

    Args:
        network: any of the networks; only its architecture is used. It must be a chain of linear, convolution and
            normalisation layers; any activations and pooling may lie between them.
        params_KP: float [K,P], as `layout` packs them; changed in place.
        layout: which tensors the P numbers are; it must hold all that move with the units: not masks and counters.
        sample_input: a float batch on which outputs are compared. A handful of real images is enough.
        frozen: the tensors outside the layout, which all networks share (name -> tensor).
        rounds: 1 or more; how often all networks are matched to the mean of the previous round.
        rescale: whether to scale each unit before a positively homogeneous activation (ReLU) so that its incoming and
            outgoing weights have the same norm. A layer is not scaled if scaling it would change the outputs; numbers
            of 16 bits never are.
        seed: decides the order in which layers are visited.
        progress: whether to show a progress bar.

    Returns:
        What was done.

    Raises:
        ValueError: the network is not such a chain (it has residual connections, attention, grouped channels, tied or
            unknown parameters; the message names the module); the layout does not fit it; `rounds` is below 1.
            `params_KP` is then unchanged. The one exception is an error at the end, if the outputs have changed: this
            shows that the network is not such a chain after all.
    """
    return _align(network, params_KP, layout, sample_input, None, frozen or {}, rounds, rescale, seed, progress)


def align_to_reference(
    network: nn.Module,
    params_KP: Tensor,
    layout: ParamLayout,
    sample_input: Tensor,
    reference_P: Tensor,
    *,
    frozen: StackedState | None = None,
    rounds: int = 4,
    rescale: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> AlignmentInfo:
    """Like `align_to_mean`, but all networks are matched to one network that stays as it is, each on its own.

    reference_P: float [P], as `layout` packs it, e.g. the mean of networks that `align_to_mean` aligned. rounds: how
    often the layers are visited again, at most; a network's layers depend on each other.
    """
    return _align(network, params_KP, layout, sample_input, reference_P, frozen or {}, rounds, rescale, seed, progress)


def _align(
    network: nn.Module,
    params_KP: Tensor,
    layout: ParamLayout,
    sample_input: Tensor,
    reference_P: Tensor | None,
    frozen: StackedState,
    rounds: int,
    rescale: bool,
    seed: int,
    progress: bool,
) -> AlignmentInfo:
    """reference_P: None for the networks' own mean."""
    if rounds < 1:
        raise PdiffError(f"rounds must be 1 or more, found {rounds}")
    networks = _Networks(params_KP, layout, frozen)
    layers = find_hidden_layers(network, networks.first(), sample_input)
    # Others, such as masks, may be frozen: that no unit depends on its place among them was tested.
    slots = [slot for each in layers for slot in (*each.weights, *each.norms, *each.carried, *each.outgoing)]
    if left := [slot.name for slot in slots if slot.name in frozen]:
        raise PdiffError(
            f"{left[0]!r} is frozen, and the units of a layer cannot change places without it; give a "
            "layout of all float tensors."
        )
    # A number of 16 bits, once scaled, is rounded, and the outputs change.
    rescale = rescale and all(getattr(torch, entry.dtype).itemsize >= 4 for entry in layout.entries)
    scalable = [layer for layer in layers if rescale and layer.scaled]
    exact = exact_copy(network)
    outputs_before = [outputs(exact, state, sample_input) for state in networks]
    distance_before = _distance(params_KP, reference_P)
    networks.change(lambda state: _balance(state, scalable))
    moved = _match_networks(networks, reference_P, layers, rounds, np.random.default_rng(seed), progress)
    change = relative_change(
        torch.cat(outputs_before), torch.cat([outputs(exact, state, sample_input) for state in networks])
    )
    if not change <= _TOLERANCE:
        raise PdiffError(
            f"aligning changed a network's outputs by {change:.1e} (relative; {_TOLERANCE:.0e} is allowed): this "
            f"{type(network).__name__} is not a chain of layers; {DO_NOT_ALIGN}"
        )
    return AlignmentInfo(
        layers=tuple(layer.module for layer in layers),
        rescaled=tuple(layer.module for layer in scalable),
        moved=moved,
        distance_before=distance_before,
        distance_after=_distance(params_KP, reference_P),
        output_change=change,
    )


class _Networks:
    """K networks as rows [K,P], unpacked into stacked states a few at a time."""

    def __init__(self, params_KP: Tensor, layout: ParamLayout, frozen: StackedState):
        self.params_KP, self._layout, self._frozen = params_KP, layout, frozen

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for rows_RP in _some(self.params_KP):
            yield self._unpack(rows_RP)

    def first(self) -> dict[str, Tensor]:
        """The state of the first network, in memory of its own."""
        return self.of(self.params_KP[0].clone())

    def mean(self) -> dict[str, Tensor]:
        return self.of(mean_of(self.params_KP))

    def of(self, params_P: Tensor) -> dict[str, Tensor]:
        return self._unpack(params_P[None])

    def change(self, work: Callable[[dict[str, Tensor]], _Result]) -> list[_Result]:
        """Calls `work` on some networks at a time and keeps the tensors that it replaces; -> its results."""
        answers = []
        for rows_RP in _some(self.params_KP):
            state = self._unpack(rows_RP)
            answers.append(work(state))
            rows_RP.copy_(self._layout.unstack(state))
        return answers

    def _unpack(self, params_RP: Tensor) -> dict[str, Tensor]:
        shared = {name: tensor.expand(len(params_RP), *tensor.shape) for name, tensor in self._frozen.items()}
        return self._layout.stack(params_RP) | shared


def _some(params_KP: Tensor) -> Sequence[Tensor]:
    return params_KP.split(max(1, _BYTES_AT_ONCE // (4 * params_KP.shape[1])))


def mean_of(params_KP: Tensor) -> Tensor:
    """The mean network, [P]."""
    total_P = sum(rows_RP.sum(dim=0, dtype=torch.float64) for rows_RP in _some(params_KP))
    return (torch.as_tensor(total_P) / len(params_KP)).to(params_KP)


def _balance(state: dict[str, Tensor], layers: Sequence[HiddenLayer]) -> None:
    """Scales each unit so that its incoming and outgoing weights have the same L2 norm; dead units are left alone."""
    for _ in range(_BALANCE_SWEEPS):
        for layer in layers:
            incoming_KC, outgoing_KC = (
                layer.numbers(state, slots).norm(dim=2) for slots in (layer.scaled, layer.outgoing)
            )
            alive_KC = torch.minimum(incoming_KC, outgoing_KC) > _DEAD
            layer.scale(state, torch.where(alive_KC, outgoing_KC / incoming_KC, 1.0).sqrt())


def _match_networks(
    networks: _Networks,
    reference_P: Tensor | None,
    layers: Sequence[HiddenLayer],
    rounds: int,
    visiting: np.random.Generator,
    progress: bool,
) -> tuple[float, ...]:
    """Reorders the units of all networks in place; -> the fraction of units that moved, for each round."""
    moved: list[float] = []
    reference = networks.first() if reference_P is None else networks.of(reference_P)
    bar = progress_bar(rounds + 1, "align", "round", shown=progress, at_most=True)
    for number in range(rounds + 1):
        sweeps = _FIRST_SWEEPS if number == 0 else 1
        visits = [layers[index] for _ in range(sweeps) for index in visiting.permutation(len(layers))]
        changed = sum(networks.change(partial(_match_layers, reference=reference, layers=visits)))
        moved.append(changed / (len(networks.params_KP) * max(1, len(visits))))
        bar.update()
        if number > 0 and changed == 0:
            break
        if reference_P is None:
            reference = networks.mean()
    bar.close()
    return tuple(moved)


def _match_layers(state: dict[str, Tensor], reference: StackedState, layers: Sequence[HiddenLayer]) -> float:
    return sum(_match(state, reference, layer) for layer in layers)


def _match(state: dict[str, Tensor], reference: StackedState, layer: HiddenLayer) -> float:
    """Reorders one layer's units to match the reference as well as possible in all weights that touch them.

    -> the fraction of units that moved, summed over the networks.
    """
    slots = (*layer.weights, *layer.norms, *layer.outgoing)
    numbers_KCF, reference_1CF = layer.numbers(state, slots).float(), layer.numbers(reference, slots).float()
    # Row c: how well each unit fits place c. For one layer, arXiv 2209.04836, eq. 1 is a linear assignment problem.
    gain_KCC = torch.matmul(reference_1CF, numbers_KCF.transpose(1, 2)).cpu().numpy()
    order_KC = torch.from_numpy(np.stack([linear_sum_assignment(gain_CC, maximize=True)[1] for gain_CC in gain_KCC]))
    layer.reorder(state, order_KC.to(numbers_KCF.device))
    return float((order_KC != torch.arange(layer.size)).float().mean(dim=1).sum())


def _distance(params_KP: Tensor, reference_P: Tensor | None) -> float:
    """Mean over networks of the L2 distance to the reference, or to the mean network."""
    middle_P = mean_of(params_KP) if reference_P is None else reference_P
    return float(torch.cat([(rows_RP - middle_P).norm(dim=1) for rows_RP in _some(params_KP)]).mean())
