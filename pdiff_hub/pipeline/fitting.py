"""A few labelled examples -> networks that fit them: latents are moved until their networks give the labels.

A pipeline knows few directions in which its networks differ, so few labels find the right one. Scaled latents have
mean 0 and standard deviation 1, so a network is pulled back as strongly as N(0, I) says. The first network is the most
probable one: it is pulled to the middle. Each further one is pulled halfway to a draw of the pipeline. So together they
agree where the labels decide and differ where they do not (randomize-then-optimize, Bardsley et al. 2014).
Shapes: B networks, N labelled examples, X one input, P parameters, C x L latents, S a slice of P.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pdiff_hub.errors import PdiffError, require
from pdiff_hub.networks import logits
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder

STEPS, _LEARNING_RATE = 150, 0.1  # docs/measurements.md, "Asking"
_HALFWAY = 0.5  # to a draw; all the way, single networks are much worse at few labels (there, too)


def centers(draw_BCL: Tensor, *, conditional: bool) -> Tensor:
    """What the networks are pulled to: the middle of the draws, and halfway from it to each draw but the first.

    Without a condition the middle is known: 0. With one it is the mean of the draws.
    """
    middle_CL = draw_BCL.mean(dim=0) if conditional else torch.zeros_like(draw_BCL[0])
    center_BCL = middle_CL + _HALFWAY * (draw_BCL - middle_CL)
    center_BCL[0] = middle_CL
    return center_BCL


def check_examples(inputs_NX: Tensor, labels_N: Tensor, spec: Mapping[str, Any]) -> None:
    """ValueError says what is wrong with labelled examples for a network of that spec."""
    if not isinstance(inputs_NX, Tensor) or not inputs_NX.is_floating_point():
        found = inputs_NX.dtype if isinstance(inputs_NX, Tensor) else type(inputs_NX).__name__
        raise PdiffError(f"inputs are {found}, expected a float tensor as the network takes it (`task.inputs`).")
    image = [spec["in_channels"], spec["image_size"], spec["image_size"]]
    if list(inputs_NX.shape[1:]) != image:
        raise PdiffError(
            f"inputs have shape {list(inputs_NX.shape)}, expected {['N', *image]}: what the network takes."
        )
    if not bool(inputs_NX.isfinite().all()):
        raise PdiffError("inputs hold NaN or Inf; expected finite numbers.")
    whole = isinstance(labels_N, Tensor) and not labels_N.is_floating_point() and not labels_N.is_complex()
    if not whole or labels_N.ndim != 1 or len(labels_N) != len(inputs_NX):
        shape = list(labels_N.shape) if isinstance(labels_N, Tensor) else type(labels_N).__name__
        raise PdiffError(f"labels are {shape}, expected whole numbers [{len(inputs_NX)}], one for each input.")
    require(len(labels_N) > 0, "the number of labels", 0, "at least two examples of different classes")
    most = spec["num_classes"] - 1
    if int(labels_N.min()) < 0 or int(labels_N.max()) > most:
        raise PdiffError(f"labels run from {int(labels_N.min())} to {int(labels_N.max())}, expected 0 to {most}.")
    if len(labels_N.unique()) < 2:
        raise PdiffError(
            f"all {len(labels_N)} labels are {int(labels_N[0])}: a network that always answers so would fit them. Give "
            "examples of at least two classes."
        )


def fit_latents(
    autoencoder: ParamAutoencoder,
    network: nn.Module,
    frozen: Mapping[str, Tensor],
    inputs_NX: Tensor,
    labels_N: Tensor,
    center_BCL: Tensor,
    *,
    steps: int = STEPS,
    learning_rate: float = _LEARNING_RATE,
) -> Tensor:
    """Scaled latents [B,C,L] whose networks give the labels, near `center_BCL`, where Adam begins.

    The gradient goes through the autoencoder slice by slice of P, so that memory holds the parameters of the B networks
    once, with their gradients.
    """
    latent_BCL = center_BCL.clone()
    optimizer = torch.optim.Adam([latent_BCL], lr=learning_rate)
    for _ in range(steps):
        with torch.no_grad():
            params_BP = autoencoder.decode(latent_BCL)
        loss = _loss(autoencoder, network, frozen, params_BP.requires_grad_(), inputs_NX, labels_N)
        (of_params_BP,) = torch.autograd.grad(loss, params_BP)
        latent_BCL.grad = latent_BCL - center_BCL
        with torch.enable_grad():
            moved_BCL = latent_BCL.detach().requires_grad_()
            for start, stop, params_BS in autoencoder.decode_slices(moved_BCL):
                (part_BCL,) = torch.autograd.grad(params_BS, moved_BCL, of_params_BP[:, start:stop], retain_graph=True)
                latent_BCL.grad += part_BCL
        optimizer.step()
    return latent_BCL


@torch.enable_grad()
def _loss(
    autoencoder: ParamAutoencoder,
    network: nn.Module,
    frozen: Mapping[str, Tensor],
    params_BP: Tensor,
    inputs_NX: Tensor,
    labels_N: Tensor,
) -> Tensor:
    """The negative log-likelihood of all labels, summed over networks."""

    def one(state: dict[str, Tensor]) -> Tensor:
        return logits(functional_call(network, {**frozen, **state}, (inputs_NX,)))

    logits_BNc = vmap(one)(autoencoder.layout.stack(params_BP))
    targets_BN = labels_N.expand(len(logits_BNc), -1)
    return nn.functional.cross_entropy(logits_BNc.flatten(0, 1), targets_BN.flatten(), reduction="sum")
