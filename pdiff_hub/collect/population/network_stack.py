"""K networks of one architecture as one: stacked weights, and one forward pass for all of them.

Shapes: K networks, B batch, C classes, X the shape of one input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pdiff_hub.collect.population.layer_chain import is_layer_chain, run_layer_chain
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import logits
from pdiff_hub.networks.watching import watch

NetworkFactory = Callable[[int], nn.Module]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class NetworkStack:
    """The networks of K seeds, stacked.

    Attributes:
        weights: name -> [K, ...], each parameter once, with its `requires_grad`.
        buffers: name -> [K, ...]; each network has its own running statistics, which `forward` updates.

    Args:
        network_factory: makes the network of a seed, in train mode; all have one architecture.
        seeds: K integers.
        device: where the stack is kept.

    Raises:
        ValueError: a network with active dropout (its noise would depend on the number of networks), or networks that
            differ in more than their numbers.
    """

    def __init__(self, network_factory: NetworkFactory, seeds: Sequence[int], device: torch.device) -> None:
        network = network_factory(seeds[0]).to(device)
        require_no_dropout(network)
        self._network, self._seeds, self._is_chain = network, tuple(seeds), is_layer_chain(network)
        live = network.state_dict(keep_vars=True)
        names = {id(tensor): name for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
        # Tied weights have one name and several keys.
        self._source_of_key = {key: names[id(tensor)] for key, tensor in live.items()}
        states = [network_factory(seed).state_dict() for seed in seeds]
        stacked: dict[str, Tensor] = {}
        for key, source in self._source_of_key.items():
            for seed, state in zip(seeds, states, strict=True):
                if key not in state or state[key].shape != live[key].shape:
                    raise PdiffError(f"the networks of seeds {seeds[0]} and {seed} differ in their shapes ({key!r})")
            stacked[source] = torch.stack([state[key] for state in states]).to(device)
        self.weights = {
            name: stacked[name].requires_grad_(parameter.requires_grad)
            for name, parameter in network.named_parameters()
        }
        # Buffers that are not saved (position tables and the like) are the same in all networks.
        self.buffers = {
            name: stacked[name] if name in stacked else torch.stack([buffer] * len(seeds))
            for name, buffer in network.named_buffers()
        }

    def forward(self, inputs_KBX: Tensor) -> Tensor:
        """Logits [K, B, C] of each network on its own batch. ValueError for a network that `vmap` cannot run."""
        if self._is_chain and inputs_KBX.dim() == 5:
            return run_layer_chain(self._network, self.weights, inputs_KBX)

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], inputs_BX: Tensor) -> Tensor:
            return logits(functional_call(self._network, (weights, buffers), (inputs_BX,)))

        try:
            logits_KBC: Tensor = vmap(one)(self.weights, self.buffers, inputs_KBX)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise PdiffError(
                f"a {type(self._network).__name__} cannot be trained for many seeds as one batched program: {error}"
            ) from error
        return logits_KBC

    def answers(self, inputs_KBX: Tensor) -> Tensor:
        """As `forward`, in eval mode and without gradients; nothing changes."""
        self._network.eval()
        try:
            with torch.no_grad():
                return self.forward(inputs_KBX)
        finally:
            self._network.train()

    def check_same_architecture(self, other: NetworkStack) -> None:
        """ValueError if the other stack's networks have other shapes; it names one seed of each stack."""
        own, others = self.tensors(), other.tensors()
        if [(name, t.shape[1:]) for name, t in own.items()] != [(name, t.shape[1:]) for name, t in others.items()]:
            raise PdiffError(f"the networks of seeds {self._seeds[0]} and {other._seeds[0]} differ in their shapes")

    def stacked_state(self) -> dict[str, Tensor]:
        """The networks' state dicts, stacked: each key, tied ones too -> a tensor [K, ...] on the CPU."""
        own = self.tensors()
        return {key: own[source].detach().cpu().clone() for key, source in self._source_of_key.items()}

    def tensors(self) -> dict[str, Tensor]:
        """All weights and buffers, by name: the tensors themselves, not copies."""
        return {**self.weights, **self.buffers}


def working_bytes(network: nn.Module, inputs_BX: Tensor) -> int:
    """Roughly how much memory one training step of one network uses on this batch: weights, gradients and AdamW's
    moments, and every layer's output with its gradient."""
    outputs: list[int] = []

    def note(_: str, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append(output.numel() * output.element_size())

    leaves = {name: module for name, module in network.named_modules() if not any(True for _ in module.children())}
    watch(network, inputs_BX, leaves, note)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    return 4 * weights + 2 * sum(outputs)


def require_no_dropout(network: nn.Module) -> None:
    """ValueError names a module that is active dropout."""
    if dropout := next((name for name, module in network.named_modules() if _is_active_dropout(module)), None):
        raise PdiffError(
            f"the network's module {dropout!r} is active dropout, whose noise would depend on how many networks "
            "are trained together; set its probability to 0"
        )


def _is_active_dropout(module: nn.Module) -> bool:
    return isinstance(module, _DROPOUTS) and module.p > 0
