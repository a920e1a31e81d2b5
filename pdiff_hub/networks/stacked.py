"""Many networks of one architecture as one module that answers for all of them in one batched forward pass.

Shapes: M networks, N images (N x C x H x W), c classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import logits
from pdiff_hub.networks.prefix_cache import Forward

_PROBE_IMAGES = 2


class StackedNetworks(nn.Module):
    """M networks of one architecture: float images [N, C, H, W], normalised, -> float logits [M, N, c].

    A tensor that is the same in all networks is held once, and what the network computes of such tensors alone is
    computed once. Of all others, the M values lie in one tensor [M, *shape].

    Attributes:
        networks: a copy of the network that holds these tensors under the network's own names, so that the names in the
            state dict are `networks.NAME`. It is no network to call: its tensors have one dimension more.
        num_networks: M.
        stacked_names: of the tensors [M, *shape]. Of tied tensors, the first name only; the others follow it.
        batched: whether all networks answer in one pass; False for a network with an operation that
            `torch.func.vmap` does not know: its copies take turns. They do in an exported program, too.
    """

    def __init__(
        self,
        network: nn.Module,
        states: Sequence[Mapping[str, Tensor]] | Mapping[str, Tensor],
        image_shape: tuple[int, int, int],
    ):
        """
        Args:
            network: any instance of the architecture. Its weights are not used and it is not changed. It is copied in
                eval mode.
            states: M complete state dicts; or one of stacked tensors, each [M, *shape], or [*shape] if all networks
                share it (what `stacked_state` gives).
            image_shape: (C, H, W), of an image to try `vmap` on.

        Raises:
            ValueError: no networks; a tensor that is missing, unknown, or not of the network's shape and dtype.
        """
        super().__init__()
        own = network.state_dict(keep_vars=True)
        if isinstance(states, Mapping):
            values, self.num_networks = dict(states), _number_of_stacked(own, states)
        else:
            values, self.num_networks = _stack(own, states), len(states)
        held: dict[int, object] = {}  # `deepcopy` puts what is held here in the place of the network's own tensors
        for name, tensor in own.items():
            if id(tensor) not in held:
                value = values[name].detach().to(tensor.device)
                parameter = isinstance(tensor, nn.Parameter)
                held[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if parameter else value
        self.networks = copy.deepcopy(network, held).eval()
        tensors = self._tensors()
        self.stacked_names = tuple(name for name, tensor in tensors.items() if tensor.ndim > own[name].ndim)
        device = next(iter(tensors.values())).device
        probe = torch.zeros(_PROBE_IMAGES, *image_shape, device=device)
        own_first = {name: tensor[0] for name, tensor in tensors.items() if name in self.stacked_names}
        with torch.no_grad():
            self.batched = can_vmap(self._forward_one, own_first, probe)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        tensors = self._tensors()
        stacked = {name: tensors[name] for name in self.stacked_names}
        # An exporter follows every network by itself: a vmap would fix N where there are convolutions, and puts
        # functions of torch into the graph that no file can hold.
        if self.batched and not torch.compiler.is_exporting():
            answers_MNc: Tensor = vmap(self._forward_one, in_dims=(0, None))(stacked, images_NCHW)
            return answers_MNc.float()
        each = (
            self._forward_one({name: tensor[m] for name, tensor in stacked.items()}, images_NCHW)
            for m in range(self.num_networks)
        )
        return torch.stack(list(each)).float()

    def stacked_state(self) -> dict[str, Tensor]:
        """The tensors under the network's own names; a `StackedNetworks` made of them is the same again."""
        return {name: tensor.detach() for name, tensor in self.networks.state_dict().items()}

    def state_dicts(self) -> list[dict[str, Tensor]]:
        """The M complete state dicts, each in its own memory."""
        own = self.networks.state_dict(keep_vars=True)
        first_of = {id(tensor): name for name, tensor in reversed(own.items())}
        is_stacked = {name: first_of[id(tensor)] in self.stacked_names for name, tensor in own.items()}
        return [
            {name: (tensor[m] if is_stacked[name] else tensor).detach().clone() for name, tensor in own.items()}
            for m in range(self.num_networks)
        ]

    def _forward_one(self, own: Mapping[str, Tensor], images_NCHW: Tensor) -> Tensor:
        """What the network answers whose tensors, as far as the networks differ, are `own`."""
        answer: Tensor = logits(functional_call(self.networks, dict(own), (images_NCHW,)))
        return answer

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors as they are now (`.to()` may have replaced them); of tied ones the first name."""
        return dict(self.networks.named_parameters()) | dict(self.networks.named_buffers())


def can_vmap(forward: Forward, state: Mapping[str, Tensor], inputs_NCHW: Tensor) -> bool:
    """Whether vmap knows all operations of the network. If not, networks run one after another."""
    pair = {name: torch.stack([tensor, tensor]) for name, tensor in state.items()}
    try:
        vmap(forward, in_dims=(0, None))(pair, inputs_NCHW)
    except RuntimeError:  # vmap raises no other type; the loop raises an error of the network itself again
        return False
    return True


def _stack(own: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    if not states:
        raise PdiffError("there are no networks to stack; expected the state dict of at least one.")
    for m, state in enumerate(states):
        for name in (*own, *state):
            _require_tensor(name, own, state, f"state dict {m}", more=0)
    first, *others = states
    alike = {name for name in own if others and all(torch.equal(first[name], other[name]) for other in others)}
    if len(alike) == len(own):  # copies of one network are still M networks
        alike = set()
    return {name: first[name] if name in alike else torch.stack([state[name] for state in states]) for name in own}


def _number_of_stacked(own: Mapping[str, Tensor], stacked: Mapping[str, Tensor]) -> int:
    """M; ValueError for tensors that are not stacked to the same M, and for names that are not the network's."""
    lengths: dict[str, int] = {}
    for name in (*own, *stacked):
        more = name in own and name in stacked and stacked[name].ndim == own[name].ndim + 1
        _require_tensor(name, own, stacked, "the stack", more=int(more))
        if more:
            lengths[name] = len(stacked[name])
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise PdiffError(
            f"the stacked tensors are of {sorted(set(lengths.values())) or 'no'} networks; expected tensors "
            "[M, *shape] with the same M of at least 1."
        )
    return next(iter(lengths.values()))


def _require_tensor(
    name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str, *, more: int
) -> None:
    """ValueError unless `given` has the network's tensor. more: dimensions that it has before those of the network."""
    if name not in given:
        raise PdiffError(f"{where} lacks the tensor {name!r}; expected all {len(own)} tensors of the network.")
    if name not in own:
        raise PdiffError(f"{where} has a tensor {name!r}, which the network does not have; it is of another network.")
    expected, found = own[name], given[name]
    if found.shape[more:] != expected.shape or found.dtype != expected.dtype:
        kinds = [f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.") for tensor in (found, expected)]
        raise PdiffError(f"tensor {name!r} of {where} is {kinds[0]}, and {kinds[1]} in the network.")


def mean_log(log_MNc: Tensor) -> Tensor:
    """Logarithms of the mean probabilities, [N,c]. In logarithms, as no probability is too small for them."""
    return log_MNc.logsumexp(dim=0) - math.log(len(log_MNc))
