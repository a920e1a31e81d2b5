"""Trains K networks of one architecture from K seeds as one batched program.

Their weights are stacked. One forward pass serves all networks (`NetworkStack.forward`). One backward pass of the
summed loss gives each network its own gradient, because no network's loss depends on another's weights. AdamW treats
each number separately, so on the stacked weights it acts as K separate AdamWs.

On a CPU the stack is cut into shards whose working memory fits the cache, and each thread works on its own shard. The
operations are too small to be split over threads, and too many for the threads to wait for each other at every one.

Shapes: K networks, N images of the training set, B batch, X the shape of one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pdiff_hub.collect.population.network_stack import NetworkFactory, NetworkStack, working_bytes
from pdiff_hub.collect.schedule import cosine_with_warm_up
from pdiff_hub.errors import PdiffError
from pdiff_hub.seeds import derived_seed, generator_of

Augment = Callable[[Tensor, torch.Generator], Tensor]
View = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's moments, as torch names them
_SHARD_BYTES = 40 * 2**20  # of working memory; digits networks ran fastest at 30 to 60 MiB per shard


@dataclass(frozen=True)
class _Training:
    """What all shards share."""

    inputs_NX: Tensor
    labels_N: Tensor
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    pull_to_start: float
    augment: Augment | None
    view: View | None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.inputs_NX) // self.batch_size

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class BatchedTrainer:
    """K networks in training: AdamW with decoupled weight decay, warm-up and cosine, cross-entropy.

    Network k starts from `network_factory(seeds[k])` and sees the images of epoch e in an order that depends only on
    (seeds[k], e). So, beyond float rounding, the result does not depend on the networks trained with it.

    Attributes:
        seeds: the K seeds.
        epoch: epochs done.
        last_loss_K: mean training loss of each network over the last epoch, float32 on the CPU; NaN at first.

    Args:
        network_factory: makes the network of a seed, in train mode; all have one architecture and float parameters.
        seeds: K integers, 0 or larger.
        inputs_NX: float32, ready to go into the network; training runs on its device (CPU, CUDA). On the CPU,
            `torch.get_num_threads()` threads share the networks.
        labels_N: int64, on the same device.
        epochs: epochs in all; they set the learning rate schedule.
        batch_size: B; at most N is used. The last N mod B images of each epoch (in that network's order) are left out.
        learning_rate, weight_decay, label_smoothing: as in `torch.optim.AdamW` and `cross_entropy`. The decay applies
            to every parameter.
        pull_to_start: half of so many times the squared distance from the weights that a network starts with is added
            to its loss (L2-SP, arXiv 1802.01483); to nothing that is returned.
        augment: called on one network's batch [B, X] with a generator that depends only on (seed, epoch, step).
        view: called on the batches of some networks, inputs [k, B, X] and labels [k, B], with their seeds, int64 [k];
            -> what they are trained on instead. None: all networks see the images as they are.

    Raises:
        ValueError: a network with active dropout (its noise would depend on the number of networks). In `run_epoch`: a
            network that `vmap` cannot run; a loss that is not finite (the message names the seeds that diverged).
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
        pull_to_start: float = 0.0,
        augment: Augment | None = None,
        view: View | None = None,
    ) -> None:
        self.seeds, self.epoch = tuple(seeds), 0
        self.last_loss_K = torch.full((len(seeds),), math.nan)
        batch_size = min(batch_size, len(inputs_NX))
        self._training = _Training(
            inputs_NX,
            labels_N,
            epochs,
            batch_size,
            learning_rate,
            weight_decay,
            label_smoothing,
            pull_to_start,
            augment,
            view,
        )
        on_cpu = inputs_NX.device.type == "cpu"
        self._num_threads = torch.get_num_threads() if on_cpu else 1
        num_shards = 1
        if on_cpu:
            needed = len(seeds) * working_bytes(network_factory(seeds[0]), inputs_NX[:batch_size])
            # A multiple of the number of threads, so that no thread is idle while others still work.
            num_shards = min(len(seeds), math.ceil(needed / _SHARD_BYTES / self._num_threads) * self._num_threads)
        self._shards = [
            _Shard(network_factory, shard.tolist(), self._training) for shard in np.array_split(self.seeds, num_shards)
        ]
        first, *others = self._shards
        for shard in others:
            first.stack.check_same_architecture(shard.stack)

    def run_epoch(self) -> Tensor:
        """Trains all networks for one epoch; -> their mean training losses over it, float32 [K] on the CPU."""
        losses = self._on_threads([partial(shard.run_epoch, self.epoch) for shard in self._shards])
        self.last_loss_K = torch.cat(losses)
        self.epoch += 1
        finite = self.last_loss_K.isfinite().tolist()
        if diverged := [seed for seed, good in zip(self.seeds, finite, strict=True) if not good]:
            raise PdiffError(
                f"training diverged in epoch {self.epoch}: the loss is not finite for {len(diverged)} of "
                f"{len(self.seeds)} seeds ({', '.join(map(str, diverged[:10]))}); lower learning_rate "
                f"(it is {self._training.learning_rate})"
            )
        return self.last_loss_K

    def judge(self, inputs_NX: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss in nats and accuracy (a fraction) of each network on these images as it views them; [K] on the CPU.

        The loss is without label smoothing.
        """
        judged = self._on_threads([partial(shard.judge, inputs_NX, labels_N) for shard in self._shards])
        loss_K, accuracy_K = torch.cat(judged, dim=1)
        return loss_K, accuracy_K

    def stacked_state(self) -> dict[str, Tensor]:
        """The networks' current state dicts, stacked: each key, tied ones too -> a tensor [K, ...] on the CPU."""
        return _joined([shard.stack.stacked_state() for shard in self._shards])

    def training_state(self) -> dict[str, Tensor]:
        """All that changes in training, on the CPU; `load_training_state` resumes from it after a kill."""
        tensors = _joined([shard.tensors() for shard in self._shards])
        return {"epoch": torch.tensor(self.epoch), "last_loss": self.last_loss_K.clone(), **tensors}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Resumes from `training_state()` of a trainer with the same arguments. ValueError if it does not fit."""
        expected = _joined([shard.tensors() for shard in self._shards])
        for name, tensor in expected.items():
            if name not in state or state[name].shape != tensor.shape:
                found = list(state[name].shape) if name in state else "nothing"
                raise PdiffError(
                    f"the saved training state holds {found} for {name!r}, expected {list(tensor.shape)}: it is of "
                    "another network or other seeds; remove it to start anew"
                )
        self.epoch, self.last_loss_K = int(state["epoch"]), state["last_loss"].clone()
        start = 0
        for shard in self._shards:
            own = slice(start, start + len(shard.seeds))
            shard.load({name: state[name][own] for name in expected}, self.epoch * self._training.steps_per_epoch)
            start = own.stop

    def _on_threads(self, tasks: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
        """Runs the tasks, each on one thread; afterwards torch has as many threads as before."""
        if self._num_threads == 1 or len(tasks) == 1:
            return [task() for task in tasks]
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(self._num_threads, initializer=torch.set_num_threads, initargs=(1,)) as threads:
                return list(threads.map(lambda task: task(), tasks))
        finally:
            torch.set_num_threads(before)


class _Shard:
    """Some of the networks, trained as one program."""

    def __init__(self, network_factory: NetworkFactory, seeds: Sequence[int], training: _Training) -> None:
        self.seeds, self._training = seeds, training
        self.stack = NetworkStack(network_factory, seeds, training.inputs_NX.device)
        self._optimizer = torch.optim.AdamW(
            [weight for weight in self.stack.weights.values() if weight.requires_grad],
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            fused=True,
        )
        weights = self._optimizer.param_groups[0]["params"]
        self._starts = [weight.detach().clone() for weight in weights] if training.pull_to_start else []
        for weight in weights:
            moments = {moment: torch.zeros_like(weight, requires_grad=False) for moment in _MOMENTS}
            self._optimizer.state[weight] = {"step": torch.zeros((), device=weight.device), **moments}
        self._schedule = cosine_with_warm_up(self._optimizer, training.num_steps)

    def run_epoch(self, epoch: int) -> Tensor:
        """Trains for one epoch; -> mean losses [K] on the CPU."""
        training, device = self._training, self._training.inputs_NX.device
        generators = [np.random.default_rng(derived_seed(seed, "order", epoch)) for seed in self.seeds]
        orders = [generator.permutation(len(training.inputs_NX)) for generator in generators]
        order_KN = torch.from_numpy(np.stack(orders)).to(device)
        total_K = torch.zeros(len(self.seeds), device=device)
        for step, chosen_KB in enumerate(order_KN.split(training.batch_size, dim=1)[: training.steps_per_epoch]):
            total_K += self._step(epoch, step, chosen_KB)
        return (total_K / training.steps_per_epoch).cpu()

    def judge(self, inputs_NX: Tensor, labels_N: Tensor) -> Tensor:
        """Mean losses and accuracies, float32 [2, K] on the CPU."""
        total_2K, networks = torch.zeros(2, len(self.seeds)), len(self.seeds)
        for inputs_BX, labels_B in zip(
            inputs_NX.split(self._training.batch_size), labels_N.split(self._training.batch_size), strict=True
        ):
            inputs_KBX, labels_KB = self._viewed(
                inputs_BX.expand(networks, *inputs_BX.shape), labels_B.expand(networks, -1)
            )
            logits_KBC = self.stack.answers(inputs_KBX)
            loss_KB = F.cross_entropy(logits_KBC.flatten(0, 1), labels_KB.flatten(), reduction="none")
            loss_KB = loss_KB.view_as(labels_KB)
            right_KB = (logits_KBC.argmax(dim=2) == labels_KB).float()
            total_2K += torch.stack([loss_KB.sum(dim=1), right_KB.sum(dim=1)]).cpu()
        return total_2K / len(labels_N)

    def _viewed(self, inputs_KBX: Tensor, labels_KB: Tensor) -> tuple[Tensor, Tensor]:
        if self._training.view is None:
            return inputs_KBX, labels_KB
        return self._training.view(inputs_KBX, labels_KB, torch.tensor(self.seeds, device=labels_KB.device))

    def tensors(self) -> dict[str, Tensor]:
        """Copies on the CPU of weights, buffers and AdamW's moments, by kind and name."""
        tensors = {f"network/{name}": tensor.detach() for name, tensor in self.stack.tensors().items()}
        for name, weight in self.stack.weights.items():
            if weight.requires_grad:
                tensors |= {f"{moment}/{name}": self._optimizer.state[weight][moment] for moment in _MOMENTS}
        return {name: tensor.cpu().clone() for name, tensor in tensors.items()}

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Restores what `tensors()` returned after this many steps."""
        self._schedule = cosine_with_warm_up(self._optimizer, self._training.num_steps, done=steps)
        with torch.no_grad():
            for name, tensor in self.stack.tensors().items():
                tensor.copy_(tensors[f"network/{name}"])
        for name, weight in self.stack.weights.items():
            if weight.requires_grad:
                state = self._optimizer.state[weight]
                state["step"].fill_(steps)
                for moment in _MOMENTS:
                    state[moment].copy_(tensors[f"{moment}/{name}"])

    def _step(self, epoch: int, step: int, chosen_KB: Tensor) -> Tensor:
        """Takes one step of all networks, each on its own batch; -> their losses [K]."""
        training = self._training
        inputs_KBX, labels_KB = training.inputs_NX[chosen_KB], training.labels_N[chosen_KB]
        if training.augment is not None:
            batches = [
                training.augment(batch_BX, generator_of(seed, "augment", epoch, step, device=batch_BX.device))
                for seed, batch_BX in zip(self.seeds, inputs_KBX, strict=True)
            ]
            inputs_KBX = torch.stack(batches)
        inputs_KBX, labels_KB = self._viewed(inputs_KBX, labels_KB)
        logits_KBC = self.stack.forward(inputs_KBX)
        loss_KB = F.cross_entropy(
            logits_KBC.flatten(0, 1), labels_KB.flatten(), reduction="none", label_smoothing=training.label_smoothing
        ).view_as(labels_KB)
        loss_K = loss_KB.mean(1)
        self._optimizer.zero_grad()
        loss_K.sum().backward()
        if self._starts:
            self._pull()
        self._optimizer.step()
        self._schedule.step()
        return loss_K.detach()

    @torch.no_grad()
    def _pull(self) -> None:
        """Adds the derivative of the pull to that of the loss."""
        for weight, start in zip(self._optimizer.param_groups[0]["params"], self._starts, strict=True):
            if weight.grad is not None:  # as that of one that the network does not use
                weight.grad.add_(weight - start, alpha=self._training.pull_to_start)


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
