"""A few labelled examples -> networks that fit them: latents are moved until their networks give the labels.

A pipeline knows few directions in which its networks differ, so few labels find the right one. Scaled latents have
mean 0 and standard deviation 1, so a network is pulled back as strongly as N(0, I) says. The first network is the most
probable one: it is pulled to the middle. Each further one is pulled halfway to a draw of the pipeline. So together they
agree where the labels decide and differ where they do not (randomize-then-optimize, Bardsley et al. 2014).
A pipeline that can be asked for networks knows more: which latents each condition has. There the condition is looked
for too, and the latents stay near those that it has (docs/measurements.md, "Asking").
Shapes: B networks, N labelled examples, b and n of them at once, X one input, P parameters, C x L latents, S a slice of
P, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, vmap

from pdiff_hub.errors import PdiffError, require
from pdiff_hub.networks import logits
from pdiff_hub.networks.prefix_cache import Forward
from pdiff_hub.networks.stacked import can_vmap
from pdiff_hub.travelling.conditioner import Conditioner
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout

STEPS, _LEARNING_RATE = 150, 0.1  # docs/measurements.md, "Asking"
# Activations of the examples at once, and of networks that share a vmap. Larger networks gain nothing from sharing one,
# and where each has convolution kernels of its own they lose (as measured for `pdiff_hub.prediction`).
_CHUNK_BYTES, _VMAP_BYTES = 256 << 20, 32 << 20
_MAPPED_BYTES = 256 << 20  # components above this size are memory-mapped (`ParamAutoencoder.save_pretrained`)
_WIDER = 1.5  # than known conditions is what a condition is looked for in (docs/measurements.md, "Asking")
_AROUND = 0.5  # how far latents go from those of a condition, in the standard deviations of all conditions
_HALFWAY = 0.5  # to a draw; all the way, single networks are much worse at few labels (there, too)


def centers(draw_BCL: Tensor, *, conditional: bool) -> Tensor:
    """What the networks are pulled to: the middle of the draws, and halfway from it to each draw but the first.

    Without a condition the middle is known: 0. With one it is the mean of the draws.
    """
    middle_CL = draw_BCL.mean(dim=0) if conditional else torch.zeros_like(draw_BCL[0])
    center_BCL = middle_CL + _HALFWAY * (draw_BCL - middle_CL)
    center_BCL[0] = middle_CL
    return center_BCL


def identity(free: Tensor) -> Tensor:
    """Where latents themselves are looked for."""
    return free


def conditions_and_latents(conditioner: Conditioner) -> Callable[[Tensor], Tensor]:
    """What makes latents [B,C,L] of free numbers [B, D + C L], a priori N(0, I).

    The first D are a condition, in units of 1.5 times how the known ones differ; the others are the way from its
    latents.
    """
    known_MD = conditioner.spec.channels(conditioner.known_MD.float())[:, :-1]
    mean_D, size, shape = known_MD.mean(dim=0), known_MD.shape[1], conditioner.std_CL.shape
    spread_D = _WIDER * known_MD.std(dim=0, correction=0)

    def latents_of(free_BF: Tensor) -> Tensor:
        asked_BD = mean_D + spread_D * free_BF[:, :size]
        mean_BCL, std_BCL = conditioner.gaussian(torch.cat([asked_BD, torch.ones_like(asked_BD[:, :1])], dim=1))
        return mean_BCL + _AROUND * (1 - std_BCL.square()).sqrt() * free_BF[:, size:].unflatten(1, shape)

    return latents_of


def check_examples(inputs_NX: Tensor, labels_N: Tensor, spec: Mapping[str, Any]) -> None:
    """ValueError says what is wrong with labelled examples for a network of that spec."""
    if not isinstance(inputs_NX, Tensor) or inputs_NX.dtype != torch.float32:
        found = inputs_NX.dtype if isinstance(inputs_NX, Tensor) else type(inputs_NX).__name__
        raise PdiffError(f"inputs are {found}, expected a float32 tensor as `task.inputs` gives it.")
    image = [spec["in_channels"], spec["image_size"], spec["image_size"]]
    if list(inputs_NX.shape[1:]) != image:
        raise PdiffError(
            f"inputs have shape {list(inputs_NX.shape)}, expected {['N', *image]}: what the network takes."
        )
    if not bool(inputs_NX.isfinite().all()):
        raise PdiffError("inputs hold NaN or Inf; expected finite numbers.")
    whole = isinstance(labels_N, Tensor) and not labels_N.is_floating_point() and not labels_N.is_complex()
    if not whole or labels_N.ndim != 1 or len(labels_N) != len(inputs_NX):
        what = f"{labels_N.dtype} {list(labels_N.shape)}" if isinstance(labels_N, Tensor) else type(labels_N).__name__
        raise PdiffError(f"labels are {what}, expected whole numbers [{len(inputs_NX)}], one for each input.")
    require(len(labels_N) > 0, "the number of labels", 0, "at least two examples of different classes")
    most = spec["num_classes"] - 1
    if int(labels_N.min()) < 0 or int(labels_N.max()) > most:
        raise PdiffError(f"labels run from {int(labels_N.min())} to {int(labels_N.max())}, expected 0 to {most}.")
    if len(labels_N.unique()) < 2:
        raise PdiffError(
            f"all {len(labels_N)} labels are {int(labels_N[0])}: a network that always answers so would fit them. Give "
            "examples of at least two classes."
        )


def with_gradients(network: nn.Module) -> nn.Module:
    """The network, in eval mode, as a function of all its tensors: torch gives running statistics no gradient."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.forward = partial(_normalised, module)  # type: ignore[method-assign]
    return network.eval().requires_grad_(False)


def _normalised(norm: nn.modules.batchnorm._BatchNorm, inputs: Tensor) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    shape = (-1, *(1,) * (inputs.ndim - 2))
    return inputs * scale.view(shape) + shift.view(shape)


def fit_latents(
    autoencoder: ParamAutoencoder,
    network: nn.Module,
    frozen: Mapping[str, Tensor],
    inputs_NX: Tensor,
    labels_N: Tensor,
    center: Tensor,
    *,
    latents_of: Callable[[Tensor], Tensor] = identity,
    steps: int = STEPS,
    learning_rate: float = _LEARNING_RATE,
    after_step: Callable[[], object] = lambda: None,
    at_once: tuple[int, int] | None = None,
) -> Tensor:
    """Scaled latents [B,C,L] whose networks give the labels, near `center`, where Adam begins.

    center: latents [B,C,L], or what `latents_of` makes latents of; a priori, both are normally distributed around it.
    network: as `with_gradients` gives it. frozen: the tensors that are not generated. at_once: how many networks and
    examples are worked on together, which bounds memory and changes nothing else; None chooses.

    Memory holds the parameters of the B networks once, and the gradient and activations of `at_once`.
    """
    free = center.clone()
    optimizer = torch.optim.Adam([free], lr=learning_rate)

    def one(state: Mapping[str, Tensor], inputs_nX: Tensor) -> Tensor:
        return logits(functional_call(network, {**frozen, **state}, (inputs_nX,)))

    mapped = list(autoencoder.components) if autoencoder.config.form == "linear" else []
    if sum(part_NS.nbytes for part_NS in mapped) <= _MAPPED_BYTES:
        mapped = []
    for _ in range(steps):
        with torch.enable_grad():
            leaf = free.detach().requires_grad_()
            latent_BCL = latents_of(leaf)
        with torch.no_grad():
            params_BP = autoencoder.decode(latent_BCL)
        at_once = at_once or _at_once(one, autoencoder.layout, params_BP, inputs_NX)
        _differentiate(one, autoencoder.layout, params_BP, inputs_NX, labels_N, at_once)
        gradient_BCL = torch.zeros_like(latent_BCL)
        with torch.enable_grad():
            moved_BCL = latent_BCL.detach().requires_grad_()
            for index, (start, stop, params_BS) in enumerate(autoencoder.decode_slices(moved_BCL)):
                (part_BCL,) = torch.autograd.grad(params_BS, moved_BCL, params_BP[:, start:stop], retain_graph=True)
                gradient_BCL += part_BCL
                if mapped:  # decoding has released them, and the derivative has read them again
                    autoencoder.release(mapped[index])
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(latents_of(leaf), leaf, gradient_BCL)
        free.grad = free - center + gradient
        optimizer.step()
        after_step()
    with torch.no_grad():
        return latents_of(free)


@torch.enable_grad()
def _differentiate(
    one: Forward,
    layout: ParamLayout,
    params_BP: Tensor,
    inputs_NX: Tensor,
    labels_N: Tensor,
    at_once: tuple[int, int],
) -> None:
    """Replaces each parameter by the derivative of the negative log-likelihood of all labels with respect to it."""
    networks, images = at_once
    for part_bP in params_BP.split(networks):
        # Each tensor is a leaf of its own: the derivative of a part of a vector is as large as the whole vector.
        leaves = [part_bP[:, e.start : e.stop].detach().requires_grad_() for e in layout.entries]
        state = _named(layout, leaves)
        gradients = [torch.zeros_like(leaf) for leaf in leaves]
        for inputs_nX, labels_n in zip(inputs_NX.split(images), labels_N.split(images), strict=True):
            if len(part_bP) == 1:
                logits_bnc = one({name: tensor[0] for name, tensor in state.items()}, inputs_nX)[None]
            else:
                logits_bnc = vmap(one, in_dims=(0, None))(state, inputs_nX)
            targets_bn = labels_n.expand(len(part_bP), -1)
            loss = F.cross_entropy(logits_bnc.flatten(0, 1), targets_bn.flatten(), reduction="sum")
            more = torch.autograd.grad(loss, leaves, materialize_grads=True, retain_graph=len(labels_N) > images)
            for gradient, each in zip(gradients, more, strict=True):
                gradient += each
        with torch.no_grad():
            for entry, gradient in zip(layout.entries, gradients, strict=True):
                part_bP[:, entry.start : entry.stop] = gradient


def _named(layout: ParamLayout, leaves: list[Tensor]) -> dict[str, Tensor]:
    """Parts of the vector [b, numbers] -> tensors [b, *shape] by all their names."""
    state: dict[str, Tensor] = {}
    for entry, leaf in zip(layout.entries, leaves, strict=True):
        dtype: torch.dtype = getattr(torch, entry.dtype)
        numbers = torch.view_as_complex(leaf.view(-1, *entry.shape, 2)) if dtype.is_complex else leaf
        tensor = numbers.view(-1, *entry.shape).to(dtype)
        state |= dict.fromkeys((entry.name, *entry.aliases), tensor)
    return state


@torch.enable_grad()
def _at_once(one: Forward, layout: ParamLayout, params_BP: Tensor, inputs_NX: Tensor) -> tuple[int, int]:
    """How many networks and examples to work on together, from the bytes that autograd saves for one of each."""
    saved = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    state = {name: tensor[0].detach().requires_grad_() for name, tensor in layout.stack(params_BP[:1]).items()}
    each = []
    for number in (1, 2):  # what two examples need more than one is without the weights, which are saved as well
        saved = 0
        with saved_tensors_hooks(note, lambda tensor: tensor):
            one(state, inputs_NX[:1].expand(number, *inputs_NX.shape[1:]))
        each.append(saved)
    bytes_per_example = max(1, each[1] - each[0])
    images = max(1, min(len(inputs_NX), _CHUNK_BYTES // bytes_per_example))
    networks = max(1, min(len(params_BP), _VMAP_BYTES // (images * bytes_per_example)))
    if networks > 1:
        with torch.no_grad():
            networks = networks if can_vmap(one, state, inputs_NX[:2]) else 1
    return networks, images
