"""The baseline that trains checkpoints further: its networks differ from all originals, but cost training.

Shapes: B networks to make, b of them in one group, P parameters, N images, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, vmap

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import logits
from pdiff_hub.networks.devices import at_once, at_once_drawn
from pdiff_hub.networks.prefix_cache import Forward
from pdiff_hub.networks.stacked import can_vmap
from pdiff_hub.prediction.predictions import eval_mode, tensor_names
from pdiff_hub.progress import progress_bar
from pdiff_hub.tasks import Task

# As `FinetuneConfig` has them in its second phase; labels are not smoothed, and all is float32.
_BATCH, _LEARNING_RATE, _WEIGHT_DECAY = 64, 1e-3, 0.01
_BYTES_PER_PARAM = 16  # weight, gradient and AdamW's two moments
_GROUP_BYTES = 1 << 30  # most memory for one step of the networks that train together
_PIECE_BYTES = 256 << 20  # most of it for the images, where one network takes more than all of that


def fine_tuned(
    dataset: CheckpointDataset,
    num_models: int,
    generator: torch.Generator,
    network: nn.Module,
    task: Task,
    steps: int,
) -> Tensor:
    """Random checkpoints, each trained further by `steps` (1 or more) steps of AdamW on the task's training split.

    Only the selected parameters are trained, in float32. The network is in eval mode: no dropout, and running
    statistics stay fixed. Networks train in groups under one vmap. A group holds different checkpoints. All of them see
    the same augmented batches, so that the frozen part is computed once for the group; each group has its own batches.

    network: any instance of the architecture; it is left unchanged, and the work is done on its device. task: the task
    to train on. The networks are left on the generator's device.
    Raises ValueError also for a network of another layout, a selection without parameters, and training that diverges.
    """
    if num_models < 1:
        raise PdiffError(f"num_models is {num_models}; expected at least 1 network to make.")
    if steps < 1:
        raise PdiffError(f"steps is {steps}; expected at least 1.")
    layout = dataset.layout
    selected, rest = tensor_names(network, layout, dataset.frozen)
    live = network.state_dict(keep_vars=True)
    trained = [name for name in selected if live[name].requires_grad]
    if not trained:
        raise PdiffError(
            f"the selection {layout.select!r} has no parameter that can be trained; leave this baseline out for it."
        )
    device = live[trained[0]].device
    fixed = {name: dataset.frozen[name].to(device) for name in rest}

    def forward(state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        # The trained weights are float32; the network computes in its own dtype.
        cast = {name: tensor.to(live[name].dtype) for name, tensor in state.items()}
        return logits(functional_call(network, {**fixed, **cast}, (inputs,)))

    def batch() -> tuple[Tensor, Tensor]:
        index_N = torch.randint(len(task.train), (_BATCH,), generator=generator, device=generator.device)
        index_N = index_N.to(task.train.labels_N.device)
        inputs_NCHW = task.augment(task.inputs(task.train, index_N), generator)
        return inputs_NCHW.to(device), task.train.labels_N[index_N].to(device)

    def train(rows: list[int]) -> dict[str, Tensor]:
        # A function, so that gradients and moments of a group are gone before the next one begins.
        read = layout.stack(dataset.select_rows(rows).params_KP.to(device))
        stacked = {name: read.pop(name).float().clone() for name in selected}
        del read
        leaves = {name: stacked[name].requires_grad_() for name in trained}
        # AdamW treats each number by itself, so on stacked weights it acts as one AdamW per network.
        optimizer = torch.optim.AdamW(leaves.values(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)
        for _ in range(steps):
            inputs_NCHW, labels_N = batch()
            optimizer.zero_grad()
            for inputs_nCHW, labels_n in zip(inputs_NCHW.chunk(pieces), labels_N.chunk(pieces), strict=True):
                logits_bnc = together(stacked, inputs_nCHW).float()
                loss_bn = F.cross_entropy(logits_bnc.flatten(0, 1), labels_n.repeat(len(rows)), reduction="none")
                torch.autograd.backward(loss_bn.sum() / _BATCH)  # a network's loss depends on its own weights only
            optimizer.step()
            bar.update(len(rows))
        return {name: tensor.detach() for name, tensor in stacked.items()}

    params_BP = torch.empty(num_models, layout.num_params, device=generator.device)
    with eval_mode(network), progress_bar(num_models * steps, "fine-tune baselines", "step") as bar:
        own = {name: live[name].detach() for name in selected}
        probe = task.inputs(task.train, slice(0, _BATCH)).to(device)
        with torch.no_grad():
            together = vmap(forward, in_dims=(0, None)) if can_vmap(forward, own, probe[:2]) else _one_by_one(forward)
        needed = _step_bytes(forward, own, trained, probe)
        group_bytes, piece_bytes = at_once_drawn(_GROUP_BYTES, device), at_once(_PIECE_BYTES, device)
        size = min(len(dataset), max(1, group_bytes // needed))
        of_images = needed - _BYTES_PER_PARAM * sum(own[name].numel() for name in trained)
        pieces = 1 if needed <= group_bytes else min(_BATCH, max(1, math.ceil(of_images / piece_bytes)))
        for b in range(0, num_models, size):
            networks = slice(b, min(b + size, num_models))
            made = train(
                torch.randperm(len(dataset), generator=generator, device=generator.device)[: networks.stop - b].tolist()
            )
            for entry in layout.entries:  # one after another: together they would take as much memory again
                params_BP[networks, entry.start : entry.stop] = made.pop(entry.name).flatten(1)
    if not all(bool(extreme.isfinite()) for extreme in torch.aminmax(params_BP)):  # which takes no memory
        raise PdiffError(
            f"fine-tuning for {steps} steps at a learning rate of {_LEARNING_RATE:g} diverged (weights "
            "are NaN or Inf); use fewer steps."
        )
    return params_BP


def _one_by_one(forward: Forward) -> Forward:
    """The same as `vmap(forward, in_dims=(0, None))`, for networks with operations that vmap does not support."""

    def together(stacked: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        num_networks = len(next(iter(stacked.values())))
        return torch.stack(
            [forward({name: tensor[b] for name, tensor in stacked.items()}, inputs) for b in range(num_networks)]
        )

    return together


def _step_bytes(forward: Forward, own: Mapping[str, Tensor], trained: list[str], inputs: Tensor) -> int:
    """About the memory of one network in a training step: weights, gradients, AdamW's moments, and twice what autograd
    saves for the backward pass, because that pass makes as much again."""
    saved = 0

    def note(tensor: Tensor) -> None:  # nothing is kept: there is no backward pass
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()

    leaves = {name: own[name].detach().float().requires_grad_() for name in trained}
    with saved_tensors_hooks(note, lambda tensor: tensor):
        forward({**own, **leaves}, inputs)
    return _BYTES_PER_PARAM * sum(tensor.numel() for tensor in leaves.values()) + 2 * saved
