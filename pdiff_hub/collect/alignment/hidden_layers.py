"""Finds which tensors of a network belong to the units of each hidden layer, for networks that are a chain of layers.

The chain is read from one run: it is the layers with parameters, in the order in which they ran. This order does not
show additions or transposes between the layers. So each layer is tested on numbers: its units are reordered, and if the
outputs change, the network is refused.

Shapes: K networks, C units of a hidden layer, S positions of a unit in a flattened map, F numbers of a unit, B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import logits

StackedState = Mapping[str, Tensor]
DO_NOT_ALIGN = "set align to false (in a family of tasks, shared_start to true)"

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_TOLERANCE = 1e-6  # relative, for outputs in float64
_RUN_AT_ONCE = 16  # networks; few, because activations may be much larger than weights
_INPUT_SCALES = (1.0, 1e3, 1e-3)  # units are not scaled if their activation bends or saturates in this range


@dataclass(frozen=True)
class Slot:
    """Dimension `dim` of the stacked tensor `name` [K, ...] runs over a layer's units, with S entries per unit."""

    name: str
    dim: int


@dataclass(frozen=True)
class HiddenLayer:
    """The C units of one hidden layer.

    Attributes:
        module: the linear or convolution layer that computes them.
        size: C.
        weights: its weight and bias.
        norms: weights and biases of the normalisation layers after it.
        carried: tensors that move with the units but do not help to match them: running statistics, slopes.
        outgoing: the weight of the next linear or convolution layer.
        scaled: tensors to multiply to scale the units by positive factors, while `outgoing` is multiplied by the
            inverse factors; empty if the units cannot be scaled.
    """

    module: str
    size: int
    weights: tuple[Slot, ...]
    norms: tuple[Slot, ...] = ()
    carried: tuple[Slot, ...] = ()
    outgoing: tuple[Slot, ...] = ()
    scaled: tuple[Slot, ...] = ()

    def numbers(self, state: StackedState, slots: Sequence[Slot]) -> Tensor:
        """[K, C, F]: all numbers of these slots, grouped by unit."""
        return torch.cat([_by_unit(state[slot.name], slot, self.size).flatten(2) for slot in slots], dim=2)

    def reorder(self, state: dict[str, Tensor], order_KC: Tensor) -> None:
        """Puts unit `order_KC[k, c]` of network k at place c."""
        network_K1 = torch.arange(len(order_KC), device=order_KC.device)[:, None]
        for slot in (*self.weights, *self.norms, *self.carried, *self.outgoing):
            tensor = state[slot.name]
            moved = _by_unit(tensor, slot, self.size)[network_K1, order_KC]
            state[slot.name] = moved.movedim(1, slot.dim).reshape(tensor.shape)

    def scale(self, state: dict[str, Tensor], factor_KC: Tensor) -> None:
        """Multiplies the units by positive factors, and their outgoing weights by the inverse factors."""
        for slots, factor in ((self.scaled, factor_KC), (self.outgoing, 1 / factor_KC)):
            for slot in slots:
                tensor = state[slot.name]
                units = _by_unit(tensor, slot, self.size)
                scaled = units * factor.to(units).view(*factor.shape, *[1] * (units.dim() - 2))
                state[slot.name] = scaled.movedim(1, slot.dim).reshape(tensor.shape)


def find_hidden_layers(
    network: nn.Module, stacked_state: StackedState, sample_input: Tensor
) -> tuple[HiddenLayer, ...]:
    """The hidden layers of a chain, from input to output, tested on the first network of `stacked_state`.

    Raises:
        ValueError: the network is not a chain of linear, convolution and normalisation layers (the message names the
            module), the state does not fit the network, or `sample_input` is not float.
    """
    if not sample_input.is_floating_point():
        raise PdiffError(f"sample_input must be float, found {sample_input.dtype}")
    _check_fit(network, stacked_state)
    exact = exact_copy(network)
    first = {key: tensor[:1] for key, tensor in stacked_state.items()}
    layers = _chain(_order_of_execution(exact, first, sample_input))
    return tuple(_proved(exact, first, layer, sample_input) for layer in layers)


def require_alignable(network: nn.Module, sample_input: Tensor) -> None:
    """ValueError, as `find_hidden_layers` raises it, before networks are trained that cannot be aligned."""
    find_hidden_layers(network, {name: tensor[None] for name, tensor in network.state_dict().items()}, sample_input)


def exact_copy(network: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode, so that differences in its outputs are not float32 rounding."""
    return copy.deepcopy(network).double().eval()


def outputs(exact: nn.Module, stacked_state: StackedState, inputs: Tensor) -> Tensor:
    """Outputs [K, B, ...] of all networks in float64; `exact` is an `exact_copy`."""
    state = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in stacked_state.items()}
    with torch.no_grad():
        run = vmap(lambda one: logits(functional_call(exact, one, (inputs.double(),))), chunk_size=_RUN_AT_ONCE)
        return run(state)


def relative_change(before: Tensor, after: Tensor) -> float:
    """Largest change of an output [K, B, ...], relative to its network's largest output, or to 1 if that is larger."""
    change_K = (after - before).abs().flatten(1).amax(dim=1) / before.abs().flatten(1).amax(dim=1).clamp_min(1.0)
    return float(change_K.max())


def _by_unit(tensor: Tensor, slot: Slot, size: int) -> Tensor:
    """A view [K, C, ...] in which the units of dimension `slot.dim` (1 or 2) come first, and their S entries later."""
    split = tensor.unflatten(slot.dim, (size, -1))
    return split.movedim(slot.dim, 1)


def _check_fit(network: nn.Module, stacked_state: StackedState) -> None:
    expected = network.state_dict()
    if missing := [key for key in expected if key not in stacked_state]:
        raise PdiffError(f"the stacked state lacks {missing[0]!r}, which the {type(network).__name__} has")
    num_networks = {len(tensor) for tensor in stacked_state.values()}
    for key, tensor in stacked_state.items():
        if key not in expected or tensor.shape[1:] != expected[key].shape or len(num_networks) != 1:
            wanted = f"[K, {', '.join(map(str, expected[key].shape))}]" if key in expected else "no such tensor"
            raise PdiffError(
                f"the stacked state holds {list(tensor.shape)} for {key!r}, expected {wanted}, one K for all"
            )
    seen: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if (first := seen.setdefault(id(parameter), name)) != name:
            raise PdiffError(f"{first!r} and {name!r} are one tied parameter: its units cannot be put in one order")


def _order_of_execution(exact: nn.Module, first: StackedState, sample_input: Tensor) -> list[tuple[str, nn.Module]]:
    """The modules that hold tensors of units, in the order in which they run. Each is of a known kind and runs once."""
    known = (nn.Linear, nn.PReLU, *_CONVOLUTIONS, *_NORMS)
    owners: list[tuple[str, nn.Module]] = []
    for name, module in exact.named_modules():
        if isinstance(module, known):
            owners.append((name, module))
        elif any(True for _ in module.parameters(recurse=False)):
            raise _not_a_chain(name, f"is a {type(module).__name__} with parameters of its own")
    ran: list[tuple[str, nn.Module]] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _, name=name: ran.append((name, module)))
        for name, module in owners
    ]
    try:
        outputs(exact, first, sample_input)
    finally:
        for handle in handles:
            handle.remove()
    times = [name for name, _ in ran]
    for name, _ in owners:
        if times.count(name) != 1:
            raise _not_a_chain(name, f"runs {times.count(name)} times in one pass")
    return ran


def _chain(order: Sequence[tuple[str, nn.Module]]) -> list[HiddenLayer]:
    layers: list[HiddenLayer] = []
    current: HiddenLayer | None = None  # the layer whose units the next module takes in
    for name, module in order:
        own = tuple(Slot(_key(name, key), 1) for key, _ in module.named_parameters())
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            if getattr(module, "groups", 1) != 1:
                raise _not_a_chain(name, "convolves channels in groups, between which units cannot change places")
            if current is not None:
                _check_whole(name, module.weight.shape[1], current)
                layers.append(replace(current, outgoing=(Slot(_key(name, "weight"), 2),)))
            current = HiddenLayer(module=name, size=len(module.weight), weights=own, scaled=own)
        elif current is None or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            continue  # it normalises the network's input, or has one slope for all units
        elif isinstance(module, nn.GroupNorm) and module.num_groups not in (1, module.num_channels):
            raise _not_a_chain(
                name, f"normalises in {module.num_groups} groups, between which units cannot change places"
            )
        else:
            for parameter in module.parameters():
                _check_whole(name, len(parameter), current)
            if isinstance(module, nn.PReLU):
                current = replace(current, carried=(*current.carried, *own))
            else:
                running = [Slot(_key(name, key), 1) for key, buffer in module.named_buffers() if buffer.dim() > 0]
                current = replace(
                    current, norms=(*current.norms, *own), carried=(*current.carried, *running), scaled=own
                )
    return layers


def _proved(exact: nn.Module, first: StackedState, layer: HiddenLayer, sample_input: Tensor) -> HiddenLayer:
    """The layer, if reordering its units leaves the outputs unchanged; without `scaled` if scaling does change them."""
    generator = torch.Generator().manual_seed(0)
    state = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in first.items()}
    device = next(iter(state.values())).device
    shuffled = dict(state)
    order_C = torch.randperm(layer.size, generator=generator)
    if torch.equal(order_C, torch.arange(layer.size)):
        order_C = order_C.roll(1)
    layer.reorder(shuffled, order_C[None].to(device))
    before = outputs(exact, state, sample_input)
    change = relative_change(before, outputs(exact, shuffled, sample_input))
    if not change <= _TOLERANCE:
        raise _not_a_chain(
            layer.module,
            f"feeds more than the next layer: its units cannot change places (outputs move by {change:.1e})",
        )
    scaled = dict(state)
    layer.scale(scaled, (0.5 + 1.5 * torch.rand(1, layer.size, generator=generator, dtype=torch.float64)).to(device))
    for scale in _INPUT_SCALES if layer.scaled else ():
        before, after = (outputs(exact, s, scale * sample_input) for s in (state, scaled))
        if not relative_change(before, after) <= _TOLERANCE:
            return replace(layer, scaled=())
    return layer


def _key(module: str, tensor: str) -> str:
    return f"{module}.{tensor}" if module else tensor


def _check_whole(module: str, found: int, current: HiddenLayer) -> None:
    if found % current.size:
        raise _not_a_chain(module, f"takes {found} numbers where {current.module!r} gives {current.size} units")


def _not_a_chain(module: str, why: str) -> PdiffError:
    return PdiffError(
        f"cannot align this network: module {module or '(the network itself)'!r} {why}. Alignment takes chains of "
        f"linear, convolution and normalisation layers; for others, {DO_NOT_ALIGN}"
    )
