"""Training K networks of one architecture from K seeds as one batched program.

Their weights are stacked, one forward pass serves all (`torch.func.functional_call` under `vmap`), and one backward
pass of the summed loss gives each network its own gradient, because no network's loss depends on another's weights.
AdamW works on each number by itself, so on the stacked weights it is K separate AdamWs.

Shapes: K networks, N images of the training set, B batch, X the shape of one image, S steps an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pdiff_hub.collect.batched_ops import BatchedOps
from pdiff_hub.networks import logits

NetworkFactory = Callable[[int], nn.Module]
Augment = Callable[[Tensor, torch.Generator], Tensor]

_WARM_UP = 0.1  # of all steps
_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, as torch names them
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class BatchedTrainer:
    """K networks in training: AdamW with decoupled weight decay, warm-up and cosine, cross-entropy.

    Network k starts from `network_factory(seeds[k])` and sees the images of epoch e in an order that follows from
    (seeds[k], e) alone, so what becomes of it does not depend, beyond float rounding, on the networks beside it.

    Args:
        network_factory: makes the network of a seed in train mode; all of one architecture, with float parameters.
        seeds: K integers, 0 or larger.
        inputs_NX: float32, ready to go into the network; where it lies (CPU, CUDA) the training runs.
        labels_N: int64, on the same device.
        epochs: epochs in all, which sets the learning rate's schedule.
        batch_size: B; cut to N. Of each epoch the last N mod B images (in that network's order) are left out.
        learning_rate, weight_decay, label_smoothing: as in `torch.optim.AdamW` and `cross_entropy`. The decay applies
            to every parameter.
        augment: called on one network's batch [B, X] with a generator that follows from (seed, epoch, step).

    Raises:
        ValueError: a network with active dropout (its noise would depend on the number of networks), or one that
            `vmap` cannot run; in `run_epoch`, a loss that is not finite, with the seeds that diverged.
    """

    def __init__(
        self,
        network_factory: NetworkFactory,
        seeds: Sequence[int],
        inputs_NX: Tensor,
        labels_N: Tensor,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        label_smoothing: float = 0.0,
        augment: Augment | None = None,
    ) -> None:
        self.seeds, self.epoch = tuple(seeds), 0
        self.last_loss_K = torch.full((len(seeds),), math.nan)
        self._inputs_NX, self._labels_N, self._augment = inputs_NX, labels_N, augment
        self._batch_size = min(batch_size, len(inputs_NX))
        self._steps_per_epoch = len(inputs_NX) // self._batch_size
        self._num_steps = epochs * self._steps_per_epoch
        self._learning_rate, self._label_smoothing = learning_rate, label_smoothing
        self._network, self._weights, self._buffers, self._sources = _stack(network_factory, seeds, inputs_NX.device)
        trained = [weight for weight in self._weights.values() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)
        if inputs_NX.device.type == "cpu":
            # glibc maps large buffers anew at each use, which costs more than computing on them, until one of nearly
            # 32 MiB (its limit) has been freed. Elsewhere this does nothing.
            torch.empty(31 * 2**20, dtype=torch.uint8)

    def run_epoch(self) -> Tensor:
        """One epoch of all networks; -> each one's mean training loss over it, float32 [K] on the CPU."""
        orders = [np.random.default_rng((seed, self.epoch)).permutation(len(self._inputs_NX)) for seed in self.seeds]
        order_KN = torch.from_numpy(np.stack(orders)).to(self._inputs_NX.device)
        total_K = torch.zeros(len(self.seeds), device=self._inputs_NX.device)
        for step, chosen_KB in enumerate(order_KN.split(self._batch_size, dim=1)[: self._steps_per_epoch]):
            total_K += self._step(step, chosen_KB)
        self.last_loss_K = (total_K / self._steps_per_epoch).cpu()
        self.epoch += 1
        finite = self.last_loss_K.isfinite().tolist()
        if diverged := [seed for seed, good in zip(self.seeds, finite, strict=True) if not good]:
            raise ValueError(
                f"training diverged in epoch {self.epoch}: the loss is not finite for {len(diverged)} of "
                f"{len(self.seeds)} seeds ({', '.join(map(str, diverged[:10]))}); lower learning_rate "
                f"(it is {self._learning_rate})"
            )
        return self.last_loss_K

    def stacked_state(self) -> dict[str, Tensor]:
        """The networks' state dicts so far, stacked: every key, tied ones too, to a tensor [K, ...] on the CPU."""
        own = {**self._weights, **self._buffers}
        return {key: own[source].detach().cpu().clone() for key, source in self._sources.items()}

    def training_state(self) -> dict[str, Tensor]:
        """All that changes in training, on the CPU: what `load_training_state` needs to go on after a kill."""
        state = {"epoch": torch.tensor(self.epoch), "last_loss": self.last_loss_K}
        for name, weight in self._weights.items():
            state[f"weight/{name}"] = weight.detach()
            for moment in _MOMENTS if weight in self._optimizer.state else ():
                state[f"{moment}/{name}"] = self._optimizer.state[weight][moment]
        state |= {f"buffer/{name}": buffer for name, buffer in self._buffers.items()}
        return {name: tensor.cpu().clone() for name, tensor in state.items()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from `training_state()` of a trainer with the same arguments. ValueError if it is of another one."""
        expected = {f"weight/{name}": weight.shape for name, weight in self._weights.items()}
        expected |= {f"buffer/{name}": buffer.shape for name, buffer in self._buffers.items()}
        for name, shape in expected.items():
            if name not in state or state[name].shape != shape:
                found = list(state[name].shape) if name in state else "nothing"
                raise ValueError(
                    f"the saved training state holds {found} for {name!r}, expected {list(shape)}: it is of another "
                    "network or other seeds; remove it to start anew"
                )
        self.epoch, self.last_loss_K = int(state["epoch"]), state["last_loss"].clone()
        for name, buffer in self._buffers.items():
            buffer.copy_(state[f"buffer/{name}"])
        for name, weight in self._weights.items():
            weight.data.copy_(state[f"weight/{name}"])
            if f"{_MOMENTS[0]}/{name}" in state:
                moments = {moment: state[f"{moment}/{name}"].to(weight, copy=True) for moment in _MOMENTS}
                step = torch.tensor(float(self.epoch * self._steps_per_epoch), device=weight.device)
                self._optimizer.state[weight] = {"step": step, **moments}

    def _step(self, step: int, chosen_KB: Tensor) -> Tensor:
        """One step of all networks on their own batches; -> their losses [K]."""
        inputs_KBX, labels_KB = self._inputs_NX[chosen_KB], self._labels_N[chosen_KB]
        if self._augment is not None:
            inputs_KBX = torch.stack(
                [
                    self._augment(batch_BX, _generator((seed, self.epoch, step), batch_BX.device))
                    for seed, batch_BX in zip(self.seeds, inputs_KBX, strict=True)
                ]
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(self.epoch * self._steps_per_epoch + step)
        logits_KBC = self._forward(inputs_KBX)
        loss_KB = F.cross_entropy(
            logits_KBC.flatten(0, 1), labels_KB.flatten(), reduction="none", label_smoothing=self._label_smoothing
        ).view_as(labels_KB)
        loss_K = loss_KB.mean(1)
        self._optimizer.zero_grad()
        loss_K.sum().backward()
        self._optimizer.step()
        return loss_K.detach()

    def _rate(self, step: int) -> float:
        """The learning rate: linear warm-up, then half a cosine down to nearly 0."""
        warm_up = max(1, round(_WARM_UP * self._num_steps))
        if step < warm_up:
            return self._learning_rate * (step + 1) / warm_up
        return self._learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (self._num_steps - warm_up)))

    def _forward(self, inputs_KBX: Tensor) -> Tensor:
        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], inputs_BX: Tensor) -> Tensor:
            return logits(functional_call(self._network, (weights, buffers), (inputs_BX,)))

        try:
            with BatchedOps():
                logits_KBC: Tensor = vmap(one)(self._weights, self._buffers, inputs_KBX)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                f"a {type(self._network).__name__} cannot be trained for many seeds as one batched program: {error}"
            ) from error
        return logits_KBC


def _stack(
    network_factory: NetworkFactory, seeds: Sequence[int], device: torch.device
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """-> a network to call, its weights and buffers stacked over seeds, and for every key of its state dict the name of
    the weight or buffer that is its value (tied weights have one name and several keys)."""
    network = network_factory(seeds[0]).to(device)
    if dropout := next((name for name, module in network.named_modules() if _is_active_dropout(module)), None):
        raise ValueError(
            f"the network's module {dropout!r} is active dropout, whose noise would depend on how many networks are "
            "trained together; set its probability to 0"
        )
    states = [network_factory(seed).state_dict() for seed in seeds]
    names = {id(tensor): name for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    live = network.state_dict(keep_vars=True)
    sources = {key: names[id(tensor)] for key, tensor in live.items()}
    stacked: dict[str, Tensor] = {}
    for key, source in sources.items():
        for seed, state in zip(seeds, states, strict=True):
            if key not in state or state[key].shape != live[key].shape:
                raise ValueError(
                    f"the networks of seeds {seeds[0]} and {seed} differ in {key!r}: one architecture only"
                )
        stacked[source] = torch.stack([state[key] for state in states]).to(device)
    weights = {
        name: stacked[name].requires_grad_(parameter.requires_grad) for name, parameter in network.named_parameters()
    }
    # Buffers that are not saved (position tables and the like) are the same in all networks, so one copy is repeated.
    buffers = {
        name: stacked[name] if name in stacked else torch.stack([buffer] * len(seeds))
        for name, buffer in network.named_buffers()
    }
    return network, weights, buffers, sources


def _is_active_dropout(module: nn.Module) -> bool:
    return isinstance(module, _DROPOUTS) and module.p > 0


def _generator(key: tuple[int, ...], device: torch.device) -> torch.Generator:
    # A hash, because torch keeps only the lowest 32 bits of a seed: sums and shifts of the three would collide.
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
