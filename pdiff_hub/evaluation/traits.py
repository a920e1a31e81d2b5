"""What can be seen of a network without knowing who made it: how it answers, and how large its tensors are.

Shapes: B networks, P parameters, N validation images, D distances, F traits, T tensors; b is a part of B, p the
parameters of one tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdiff_hub.checkpoints.rows import Rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks.devices import at_once
from pdiff_hub.prediction.predictions import Predictions
from pdiff_hub.seeds import generator_of
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_SLICE_BYTES = 256 << 20  # for one tensor of some networks
_BYTES_PER_PARAM = 16  # as read in float32, as float64 for the norm, and as float32 of norm 1
_POWER_STEPS = 15
_TINY = torch.finfo(torch.float32).tiny


def network_traits(
    layout: ParamLayout, rows: Rows, predictions: Predictions, majority_wrong_N: Tensor, more_BF: Tensor
) -> Tensor:
    """Traits of B networks, float64 [B,F] on the CPU.

    The columns are: accuracy, loss in nats, mean confidence and agreement with the majority; per selected tensor the
    natural logarithm of its L2 norm; per matrix its largest singular value over its Frobenius norm, 0..1; `more_BF`.
    A tensor of two or more axes is a matrix [first, rest]; it is left out if one of the two is 1. A tensor of zeros
    has the norm of the smallest normal float32, and the ratio 0.

    Args:
        rows: float32 [B,P], raw weight units. They are read tensor by tensor, on a CPU up to 256 MiB at a time.
        predictions: of these networks on the validation images, evaluated `with_loss`.
        majority_wrong_N: bool, True where most originals are wrong. Agreement is the share of images on which a
            network is wrong exactly there, 0..1.
        more_BF: other traits, such as distances, [B,D].

    Raises ValueError for shapes that do not fit, and for predictions without the loss.
    """
    if predictions.loss_B is None or predictions.confidence_B is None:
        raise PdiffError("the predictions lack the loss and the confidence; evaluate the networks with_loss=True.")
    expected = (rows.num_rows, len(majority_wrong_N))
    if predictions.wrong_BN.shape != expected:
        raise PdiffError(
            f"the predictions have shape {list(predictions.wrong_BN.shape)}, expected {list(expected)}: the networks "
            "of the rows, and the images of the majority."
        )
    if more_BF.ndim != 2 or len(more_BF) != rows.num_rows:
        raise PdiffError(f"other traits have shape {list(more_BF.shape)}, expected [{rows.num_rows}, *].")
    if rows.num_params != layout.num_params:
        raise PdiffError(f"networks have {rows.num_params} parameters, the layout {layout.num_params}; expected equal.")
    agreement_B = (predictions.wrong_BN == majority_wrong_N).sum(dim=1).double() / len(majority_wrong_N)
    answers_B4 = torch.stack([predictions.accuracy_B, predictions.loss_B, predictions.confidence_B, agreement_B], dim=1)
    return torch.cat([answers_B4.double(), *(part.cpu() for part in _sizes(layout, rows)), more_BF.double()], dim=1)


def _sizes(layout: ParamLayout, rows: Rows) -> tuple[Tensor, Tensor]:
    """Logarithms of the norms of all tensors, [B,T], and the ratios of all matrices; both float64."""
    log_norms: list[Tensor] = []
    ratios: list[Tensor] = []
    device = rows.read(0, 1, 0, 1).device
    slice_bytes = at_once(_SLICE_BYTES, device)
    for entry in layout.entries:
        size = entry.stop - entry.start
        height = entry.shape[0] if len(entry.shape) > 1 else 1
        is_matrix = 1 < height < size
        norm_B = torch.empty(rows.num_rows, dtype=torch.float64, device=device)
        ratio_B = torch.empty_like(norm_B)
        step = max(1, slice_bytes // (_BYTES_PER_PARAM * size))
        for first in range(0, rows.num_rows, step):
            last = min(first + step, rows.num_rows)
            params_bp = rows.read(first, last, entry.start, entry.stop)
            norm_B[first:last] = torch.linalg.vector_norm(params_bp, dim=1, dtype=torch.float64)
            if is_matrix:
                norm_b = norm_B[first:last, None].float().clamp_min(_TINY)
                ratio_B[first:last] = _largest_singular_values((params_bp / norm_b).view(last - first, height, -1))
        log_norms.append(norm_B.clamp_min(_TINY).log())
        if is_matrix:
            ratios.append(ratio_B)
    no_ratios = torch.empty(rows.num_rows, 0)
    return torch.stack(log_norms, dim=1), torch.stack(ratios, dim=1) if ratios else no_ratios


def _largest_singular_values(matrices_bor: Tensor) -> Tensor:
    """By power iteration, float32 [b]; exact to about 1 % if the second value is below 0.9 of the largest.

    Norms of the matrices must be 1 or 0.
    """
    # Rows times a matrix: torch reads memory twice as fast this way as with a matrix times columns.
    transposed_bro = matrices_bor.mT
    start_1r = torch.randn(1, matrices_bor.shape[2], generator=generator_of(0, "power iteration"))
    right_b1r = start_1r.to(matrices_bor.device).expand(len(matrices_bor), 1, -1)
    for _ in range(_POWER_STEPS):
        right_b1r = right_b1r @ transposed_bro @ matrices_bor
        right_b1r = right_b1r / right_b1r.norm(dim=2, keepdim=True).clamp_min(_TINY)
    return (right_b1r @ transposed_bro).norm(dim=2).squeeze(1)
