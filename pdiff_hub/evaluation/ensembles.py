"""Ensembles of networks: does averaging the answers of several networks help, and are the averages well calibrated?

The averages are those of probabilities (deep ensembles, arXiv 1612.01474). Networks that are all alike gain nothing.
Shapes: B networks, P parameters, N images, n images of a chunk, c classes; G groups (ensembles) of s networks each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints.rows import PickedRows, Rows, as_rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.prediction.predictions import Images, predict_logits
from pdiff_hub.records import EnsembleCurve
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_BINS = 15  # bins of the calibration error: Guo et al. 2017, arXiv 1706.04599, sec. 5
_CHUNK_IMAGES, _CHUNK_BYTES = 1024, 64 << 20  # most images in a chunk, and most bytes of them as float32


def ensemble_curve(
    network: nn.Module,
    layout: ParamLayout,
    frozen: Mapping[str, Tensor],
    params_BP: Tensor | Rows,
    images: Images,
    labels_N: Tensor,
    sizes: Sequence[int] = (1, 2, 5, 10, 20),
) -> EnsembleCurve:
    """Accuracy, negative log-likelihood and calibration error of ensembles, by their size.

    For each size s, the first max(sizes) networks are cut, in their order, into disjoint groups of s; networks left
    over are not used. An ensemble answers with the mean of its networks' probabilities. Each number of the curve is the
    mean over the groups. Memory depends on the size of a chunk of images, not on N.

    Args:
        network, layout, frozen, params_BP, images: as in `predictions.predict_logits`; only the first max(sizes) rows
            of params_BP are used.
        labels_N: int64, 0..c-1.
        sizes: numbers of networks, from 1; those above B are left out.

    Raises:
        ValueError: a size below 1, no size of at most B, no images, labels that do not fit the images or classes,
            logits that are NaN or Inf, and what `predict_logits` raises.
    """
    if not sizes or min(sizes) < 1:
        raise PdiffError(f"sizes are {list(sizes)}; expected numbers of networks, from 1.")
    rows = as_rows(params_BP)
    kept = [size for size in sizes if size <= rows.num_rows]
    if not kept:
        raise PdiffError(f"there are {rows.num_rows} networks, fewer than the smallest ensemble of {list(sizes)}.")
    if labels_N.shape != (len(images),):
        raise PdiffError(f"labels have shape {list(labels_N.shape)}, expected [{len(images)}], one per image.")
    if len(images) == 0:
        raise PdiffError("there are no images to evaluate on; expected at least one.")
    rows = PickedRows(rows, range(min(rows.num_rows, max(sizes))))
    totals = {size: EnsembleTotals(rows.num_rows // size) for size in kept}
    step = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // (4 * images[:1].numel())))
    for n in range(0, len(images), step):
        labels_n = labels_N[n : n + step].cpu()
        logits_Bnc = predict_logits(network, layout, frozen, rows, images[n : n + step])
        _check(logits_Bnc, labels_n)
        log_Bnc = logits_Bnc.double().log_softmax(dim=-1)
        for size, total in totals.items():
            total.add(log_Bnc[: total.num_groups * size].unflatten(0, (total.num_groups, size)), labels_n)
    means = [total.means(len(images)) for total in totals.values()]
    accuracy, nll, calibration_error = zip(*means, strict=True)
    return EnsembleCurve(tuple(totals), accuracy, nll, calibration_error)


class EnsembleTotals:
    """Sums over images, in float64, for the G ensembles of one size; `means` gives what they come to."""

    def __init__(self, num_groups: int) -> None:
        self.num_groups = num_groups
        self._right_G, self._nll_G = torch.zeros(2, num_groups, dtype=torch.float64).unbind()
        # Per bin of confidence: the number of right answers minus the sum of the confidences of its images.
        self._gap_Gm = torch.zeros(num_groups, _BINS, dtype=torch.float64)

    def add(self, log_Gsnc: Tensor, labels_n: Tensor) -> None:
        """Add a chunk of images. log_Gsnc: logarithms of the probabilities of each group's networks."""
        # The mean is taken in logarithms: a probability may be too small for a float, but its logarithm is not.
        log_Gnc = log_Gsnc.logsumexp(dim=1) - math.log(log_Gsnc.shape[1])
        confidence_Gn, answers_Gn = log_Gnc.exp().max(dim=-1)
        right_Gn = (answers_Gn == labels_n).double()
        self._right_G += right_Gn.sum(dim=1)
        self._nll_G -= log_Gnc[:, torch.arange(len(labels_n)), labels_n].sum(dim=1)
        bins_Gn = (confidence_Gn * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1)  # bin m is ((m - 1) / M, m / M]
        self._gap_Gm.scatter_add_(1, bins_Gn, right_Gn - confidence_Gn)

    def means(self, num_images: int) -> tuple[float, float, float]:
        """Accuracy, NLL and ECE, each as the mean over the groups."""
        # ECE is the sum over bins of (images in it / N) |accuracy - mean confidence|; the number in a bin cancels.
        return (
            float(self._right_G.mean()) / num_images,
            float(self._nll_G.mean()) / num_images,
            float(self._gap_Gm.abs().sum(dim=1).mean()) / num_images,
        )


def _check(logits_Bnc: Tensor, labels_n: Tensor) -> None:
    if not bool(logits_Bnc.isfinite().all()):
        network = int((~logits_Bnc.isfinite()).flatten(1).any(dim=1).nonzero()[0])
        raise PdiffError(f"network {network} answers NaN or Inf; an ensemble with it has no answer: leave it out.")
    lowest, highest, num_classes = int(labels_n.min()), int(labels_n.max()), logits_Bnc.shape[-1]
    if lowest < 0 or highest >= num_classes:
        raise PdiffError(
            f"labels run from {lowest} to {highest}, but the network has {num_classes} classes; expected "
            "labels 0..classes-1 of the task that the network was made for."
        )
