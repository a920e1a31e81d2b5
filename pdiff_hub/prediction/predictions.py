"""Predictions of B networks of one architecture for N images, in batches over networks and images.

Shapes: B networks, P parameters, N images (N x C x H x W), c classes; b and n are the parts of B and N in one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pdiff_hub.checkpoints.rows import Rows, as_rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import logits
from pdiff_hub.networks.devices import at_once
from pdiff_hub.networks.prefix_cache import Answers, PrefixPlan, plan_prefix, record, serve
from pdiff_hub.networks.stacked import can_vmap
from pdiff_hub.progress import progress_bar
from pdiff_hub.tasks import Split, Task
from pdiff_hub.travelling.param_autoencoder import ParamLayout

# Limits per chunk: bytes of the largest activation, and images. Measured on 2 cores (EPYC, 32 MiB of L3): networks in
# one vmap are 1.2-2.6 times as fast as one after another while their activations stay in the cache (MLPs of up to 128
# units). Both ways are equally fast at 512 units and for norm-only ResNets. The vmap is up to 3 times slower on 28 x 28
# images if every network has its own convolution kernels, because it turns them into grouped convolutions. So small
# networks share a vmap, and others take turns. Chunks of 6 MiB are 8 to 25 % faster than of 16 MiB for ResNet-18 (28
# and 32 pixels) and ViT-Tiny, whose activations then stay in the cache. A GPU's pieces are larger.
_VMAP_BYTES, _LOOP_BYTES = 4 << 20, 6 << 20
_ACCELERATOR_LOOP_BYTES = 16 << 20
_VMAP_PARAM_BYTES = 256 << 20  # most parameters that share a vmap: deep networks have many and small activations
_CHUNK_IMAGES = 256
_LEAST_NETWORKS = 4  # a vmap of fewer is not worth it
_ACCELERATOR_IMAGES = 4096
_KEPT_BYTES = 256 << 20  # most that `Kept` holds


class Images(Protocol):
    """Normalised float32 images N x C x H x W: a tensor, or anything that makes a slice of them on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class SplitImages:
    """The images of one split of a task. They stay uint8 in memory and are normalised slice by slice."""

    task: Task
    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: slice, /) -> Tensor:
        return self.task.inputs(self.split, index)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers of networks, compared with the labels; all tensors are on the CPU.

    Attributes:
        accuracy_B: float64, fractions 0..1.
        wrong_BN: bool, True where a network's answer is not the label.
        loss_B: float64, mean cross-entropy in nats; None if it was not asked for.
        confidence_B: float64, mean of the highest softmax probability, 0..1; None if the loss was not asked for.
    """

    accuracy_B: Tensor
    wrong_BN: Tensor
    loss_B: Tensor | None = None
    confidence_B: Tensor | None = None


class Listener(Protocol):
    """Hears what some of the networks answer, so that nobody need ask them again."""

    @property
    def rows(self) -> Sequence[int]:
        """Which of them."""

    def hear(self, logits_Rnc: Tensor, labels_n: Tensor) -> None:
        """The answers of these networks, in their order, for a chunk of images; on the networks' device."""


@dataclass(eq=False)
class Kept:
    """What sets of networks share that are asked about the same images one after another: the outputs of the modules
    before the first tensor in which they differ, up to 256 MiB (on a GPU up to a sixteenth of what is free). Give
    it for one network, layout and split only.

    The plan is made, and each chunk of images goes through these modules, for the first set. step_n: images in a
    chunk. vmaps: whether the networks can share a vmap, once that was tried.
    """

    plan: PrefixPlan | None = None
    step_n: int = 0
    vmaps: bool | None = None
    answers: dict[tuple[int, int], Answers] = field(default_factory=dict)


def evaluate(
    network: nn.Module,
    layout: ParamLayout,
    frozen: Mapping[str, Tensor],
    params_BP: Tensor | Rows,
    inputs_NCHW: Images,
    labels_N: Tensor,
    *,
    with_loss: bool = False,
    listener: Listener | None = None,
    kept: Kept | None = None,
) -> Predictions:
    """Accuracy of B networks, and which images each gets wrong. Arguments as in `predict_logits`, and the labels.

    labels_N: int64, 0..classes-1. If a network's logits for an image hold a NaN, it is wrong on that image. with_loss:
    also measure the loss and the confidence. kept: what earlier calls for these images shared; None begins anew.
    Logits are not kept: apart from one chunk, this takes B x N bytes of memory. Nothing comes back from the network's
    device before all is known.
    """
    if labels_N.shape != (len(inputs_NCHW),):
        raise PdiffError(f"labels have shape {list(labels_N.shape)}, expected [{len(inputs_NCHW)}], one per image.")
    rows, device = as_rows(params_BP), device_of(network)
    lowest, highest = (int(end) for end in torch.aminmax(labels_N)) if len(labels_N) else (0, 0)
    labels_N = labels_N.to(device)
    wrong_BN = torch.empty(rows.num_rows, len(inputs_NCHW), dtype=torch.bool, device=device)
    sums = (2, rows.num_rows) if with_loss else (2, 0)
    loss_B, confidence_B = torch.zeros(sums, dtype=torch.float64, device=device)
    heard: list[Tensor] = []
    for networks, images, logits_bnc in _chunks(network, layout, frozen, rows, inputs_NCHW, kept or Kept()):
        labels_n, num_classes = labels_N[images], logits_bnc.shape[-1]
        if lowest < 0 or highest >= num_classes:
            raise PdiffError(
                f"labels run from {lowest} to {highest}, but the network has {num_classes} classes; expected labels "
                "0..classes-1 of the task that the network was made for."
            )
        wrong_BN[networks, images] = are_wrong(logits_bnc, labels_n)
        if with_loss:
            loss_B[networks] += sums_of_loss(logits_bnc, labels_n) / len(inputs_NCHW)
            confidence_B[networks] += logits_bnc.softmax(dim=-1).amax(dim=-1).double().sum(dim=1) / len(inputs_NCHW)
        if listener is not None:  # networks come in their order, for one chunk of images after another
            here = [row - networks.start for row in listener.rows if networks.start <= row < networks.stop]
            heard += [logits_bnc[here]] if here else []
            if networks.stop == rows.num_rows:
                listener.hear(torch.cat(heard), labels_n)
                heard.clear()
    wrong_BN = wrong_BN.cpu()
    accuracy_B = 1.0 - wrong_BN.sum(dim=1).double() / wrong_BN.shape[1]
    if not with_loss:
        return Predictions(accuracy_B, wrong_BN)
    return Predictions(accuracy_B, wrong_BN, loss_B.cpu(), confidence_B.cpu())


def device_of(network: nn.Module) -> torch.device:
    """Where the network's tensors are; the CPU for one without any."""
    return next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def are_wrong(logits_bnc: Tensor, labels_n: Tensor) -> Tensor:
    """bool [b,n]: True if the answer is not the label, or if a logit is NaN."""
    highest, answers = logits_bnc.max(dim=-1)  # the maximum of a row with a NaN is NaN
    return (answers != labels_n) | highest.isnan()


def sums_of_loss(logits_bnc: Tensor, labels_n: Tensor) -> Tensor:
    """float64 [b]: cross-entropy in nats, summed over the images."""
    labels_bn = labels_n.expand(len(logits_bnc), -1)
    loss_bn = F.cross_entropy(logits_bnc.flatten(0, 1), labels_bn.flatten(), reduction="none").view_as(labels_bn)
    return loss_bn.double().sum(dim=1)


def predict_logits(
    network: nn.Module,
    layout: ParamLayout,
    frozen: Mapping[str, Tensor],
    params_BP: Tensor | Rows,
    inputs_NCHW: Images,
) -> Tensor:
    """Logits of B networks for N images: float32 [B,N,c] on the CPU. Takes 4 B N c bytes, so give it few networks.

    network: any instance of the architecture. Its own weights are neither used nor changed; it is put into eval mode
    and back. The work is done on its device. layout, frozen: from the data set or pipeline; `frozen` holds every tensor
    that the layout leaves out. params_BP: raw weight units, on any device; `Rows` are read one chunk of networks at a
    time. inputs_NCHW: normalised images.
    Raises ValueError for shapes that do not fit, for no network or no image, and for a network of another layout.
    """
    result_BNc, rows = None, as_rows(params_BP)
    for networks, images, logits_bnc in _chunks(network, layout, frozen, rows, inputs_NCHW, Kept()):
        if result_BNc is None:
            result_BNc = logits_bnc.new_empty(rows.num_rows, len(inputs_NCHW), logits_bnc.shape[-1])
        result_BNc[networks, images] = logits_bnc
    assert result_BNc is not None  # _chunks refuses B = 0 and N = 0
    return result_BNc.cpu()


@torch.no_grad()
def _chunks(
    network: nn.Module,
    layout: ParamLayout,
    frozen: Mapping[str, Tensor],
    rows: Rows,
    inputs_NCHW: Images,
    kept: Kept,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields (which networks, which images, their logits on the network's device). The chunks cover all of B x N once,
    all networks for some images before any for the next."""
    if rows.num_rows == 0:
        raise PdiffError("there are no networks to evaluate; expected parameters of at least one network.")
    if len(inputs_NCHW) == 0:
        raise PdiffError("there are no images to evaluate on; expected at least one.")
    selected, rest = tensor_names(network, layout, frozen)
    device = device_of(network)
    fixed = {name: frozen[name].to(device) for name in rest}

    def forward(state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        output: Tensor = logits(functional_call(network, {**fixed, **state}, (inputs,)))
        return output

    with eval_mode(network):
        own = {name: tensor.detach() for name, tensor in network.state_dict().items() if name in selected}
        probe = inputs_NCHW[:2].to(device)
        plan = kept.plan = kept.plan or plan_prefix(network, forward, own, probe)
        is_kept = plan.kept_bytes * len(inputs_NCHW) <= at_once(_KEPT_BYTES, device)
        num_networks, num_images = rows.num_rows, len(inputs_NCHW)
        batched, step_b, step_n = _chunk_sizes(
            plan.peak_bytes, plan.late_peak_bytes, num_networks, num_images, device, rows.num_params
        )
        if step_n != kept.step_n:  # chunks of other images than before
            kept.answers.clear()
            kept.step_n = step_n
        if batched and kept.vmaps is None:
            kept.vmaps = can_vmap(forward, own, probe)
        batched = batched and bool(kept.vmaps)
        total = num_networks * num_images
        with progress_bar(total, "predict", "answer", scaled=True) as progress:
            for n in range(0, num_images, step_n):
                images = slice(n, min(n + step_n, num_images))
                inputs = inputs_NCHW[images].to(device)
                shared = kept.answers.get((images.start, images.stop))
                if shared is None:
                    shared = record(network, plan, forward, own, inputs)
                    if is_kept:
                        kept.answers[images.start, images.stop] = shared
                for b in range(0, num_networks, step_b if batched else 1):
                    networks = slice(b, min(b + (step_b if batched else 1), num_networks))
                    stacked = layout.stack(rows.read(networks.start, networks.stop, 0, rows.num_params).to(device))
                    stacked = {name: stacked[name] for name in selected}
                    with serve(network, shared) if shared else nullcontext():
                        if batched:
                            answer = vmap(forward, in_dims=(0, None))(stacked, inputs)
                        else:
                            answer = forward({name: tensor[0] for name, tensor in stacked.items()}, inputs)[None]
                    progress.update(answer.shape[0] * answer.shape[1])
                    yield networks, images, answer.float()


def tensor_names(network: nn.Module, layout: ParamLayout, frozen: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names of selected and frozen tensors for `functional_call`. Of tied tensors only the first: the rest follow."""
    tensors = network.state_dict(keep_vars=True)
    missing = [entry.name for entry in layout.frozen if entry.name not in frozen]
    if missing:
        raise PdiffError(
            f"the frozen tensors lack {missing[0]!r} ({len(missing)} missing); expected all {len(layout.frozen)} "
            "tensors that the layout leaves out, as the data set or pipeline keeps them."
        )
    chosen = [(name, entry.shape) for entry in layout.entries for name in (entry.name, *entry.aliases)]
    left = [(entry.name, entry.shape) for entry in layout.frozen]
    seen: set[int] = set()
    found: tuple[list[str], list[str]] = ([], [])
    for names, expected in zip(found, (chosen, left), strict=True):
        for name, shape in expected:
            if name not in tensors or tuple(tensors[name].shape) != shape:
                has = f"has shape {list(tensors[name].shape)}" if name in tensors else "lacks it"
                raise PdiffError(
                    f"tensor {name!r} has shape {list(shape)} in the layout, and the network {has}; expected the "
                    "network that the layout was made from."
                )
            if id(tensors[name]) not in seen:
                seen.add(id(tensors[name]))
                names.append(name)
    unknown = [name for name, tensor in tensors.items() if id(tensor) not in seen]
    if unknown:
        raise PdiffError(f"the layout does not know the network's tensor {unknown[0]!r}; it is of another network.")
    return found


def _chunk_sizes(
    peak_bytes: int,
    late_peak_bytes: int,
    num_networks: int,
    num_images: int,
    device: torch.device,
    num_params: int,
) -> tuple[bool, int, int]:
    """Whether networks share a vmap, and networks and images per chunk, from the activation bytes per image."""
    own_bytes = _LOOP_BYTES if device.type == "cpu" else _ACCELERATOR_LOOP_BYTES
    vmap_bytes, loop_bytes, param_bytes = (
        at_once(num_bytes, device) for num_bytes in (_VMAP_BYTES, own_bytes, _VMAP_PARAM_BYTES)
    )
    most_images = min(num_images, _CHUNK_IMAGES if device.type == "cpu" else _ACCELERATOR_IMAGES)
    most_networks = min(vmap_bytes // (most_images * late_peak_bytes), param_bytes // (4 * num_params))
    if most_networks >= _LEAST_NETWORKS and most_images * peak_bytes <= vmap_bytes:
        return True, min(most_networks, num_networks), most_images
    return False, 1, max(1, min(most_images, loop_bytes // peak_bytes))


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Puts all modules into eval mode (no dropout, running statistics used, not updated), then back into their own."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
