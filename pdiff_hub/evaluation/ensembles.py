"""Ensembles of networks: does averaging the answers of several networks help, and are the averages well calibrated?

The averages are those of probabilities (deep ensembles, arXiv 1612.01474). Networks that are all alike gain nothing.
Shapes: B networks, R of them in ensembles, n images of a chunk, c classes; G groups (ensembles) of s networks each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.records import EnsembleCurve

_BINS = 15  # bins of the calibration error: Guo et al. 2017, arXiv 1706.04599, sec. 5
SIZES = (1, 2, 5, 10, 20)


class Ensembles:
    """Accuracy, negative log-likelihood and calibration error of ensembles, by their size, of heard answers.

    For each size s, the first max(sizes) networks are cut, in their order, into disjoint groups of s; networks left
    over are not used. An ensemble answers with the mean of its networks' probabilities. Each number of the curve is the
    mean over the groups. It is a `predictions.Listener`: networks that are judged anyway are not asked once more, and
    memory depends on the size of a chunk of images, not on their number.
    """

    def __init__(self, rows: Sequence[int], sizes: Sequence[int] = SIZES):
        """
        Args:
            rows: which of the networks to take.
            sizes: numbers of networks, from 1; those above the number of networks are left out.

        Raises ValueError for a size below 1, and no size that is left.
        """
        if not sizes or min(sizes) < 1:
            raise PdiffError(f"sizes are {list(sizes)}; expected numbers of networks, from 1.")
        kept = [size for size in sizes if size <= len(rows)]
        if not kept:
            raise PdiffError(f"there are {len(rows)} networks, fewer than the smallest ensemble of {list(sizes)}.")
        self.rows = list(rows)[: max(sizes)]
        self._totals = {size: EnsembleTotals(len(self.rows) // size) for size in kept}
        self._num_images = 0

    def hear(self, logits_Rnc: Tensor, labels_n: Tensor) -> None:
        """Add what the networks answer for some images. Raises ValueError for NaN, Inf, and labels of no class."""
        logits_Rnc, labels_n = logits_Rnc.cpu(), labels_n.cpu()
        _check(logits_Rnc, labels_n)
        log_Rnc = logits_Rnc.double().log_softmax(dim=-1)
        for size, total in self._totals.items():
            total.add(log_Rnc[: total.num_groups * size].unflatten(0, (total.num_groups, size)), labels_n)
        self._num_images += len(labels_n)

    def curve(self) -> EnsembleCurve:
        """What they come to over all images so far."""
        means = [total.means(self._num_images) for total in self._totals.values()]
        accuracy, nll, calibration_error = zip(*means, strict=True)
        return EnsembleCurve(tuple(self._totals), accuracy, nll, calibration_error)


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
