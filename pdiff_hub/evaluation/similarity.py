"""Similarity of networks by their errors: p-diff, arXiv 2402.13144, sec. 3.4 ("Similarity of high-performing models").

IoU(1, 2) = |W1 n W2| / |W1 u W2|, where W is the set of test images that a network gets wrong. It is 1 for networks
with the same errors, and 0 for networks without a common error. For two networks without any error it is undefined
(0 / 0) and NaN here. Means and maxima leave such pairs out, and callers report their number (`isnan().sum()`).

Shapes: A, B, K networks, N images; `wrong_AN` is bool, True where a network is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.records import SimilaritySummary
from pdiff_hub.records.results import defined

# Networks of the first set and images per block: 16 MiB as float32. The second set is copied for all its networks.
_ROWS, _IMAGES = 512, 8192


def iou_matrix(wrong_AN: Tensor, wrong_BN: Tensor) -> Tensor:
    """IoU of the errors of every pair, float64 [A,B] on their device, 0..1; NaN where neither network has an error.

    The counts are exact: a float32 matrix product of zeros and ones over at most 8,192 images gives whole numbers far
    below 2^24. Raises ValueError for dtypes other than bool, for empty sets and for different N.
    """
    _check(wrong_AN, wrong_BN)
    common_AB = torch.zeros(len(wrong_AN), len(wrong_BN), dtype=torch.float64, device=wrong_AN.device)
    for n in range(0, wrong_AN.shape[1], _IMAGES):
        part_An, part_Bn = wrong_AN[:, n : n + _IMAGES].float(), wrong_BN[:, n : n + _IMAGES].float()
        common_AB += part_An @ part_Bn.T
    union_AB = wrong_AN.sum(dim=1)[:, None] + wrong_BN.sum(dim=1)[None, :] - common_AB
    return common_AB / union_AB


def mean_pairwise(wrong_KN: Tensor) -> float:
    """Mean IoU of all pairs of different networks of one set.

    NaN if no pair has an IoU. Raises ValueError for fewer than two networks.
    """
    if len(wrong_KN) < 2:
        raise PdiffError(f"there are {len(wrong_KN)} networks; expected at least two, to compare them with each other.")
    total, pairs = 0.0, 0
    for start, block in _blocks(wrong_KN, wrong_KN):
        _forget_self(block, start)
        defined = block[~block.isnan()]
        total, pairs = total + float(defined.sum()), pairs + len(defined)
    return total / pairs if pairs else float("nan")


def mean_between(wrong_AN: Tensor, wrong_BN: Tensor) -> float:
    """Mean IoU of all pairs of a network of A and a network of B; NaN if no pair has an IoU."""
    total, pairs = 0.0, 0
    for _, block in _blocks(wrong_AN, wrong_BN):
        defined = block[~block.isnan()]
        total, pairs = total + float(defined.sum()), pairs + len(defined)
    return total / pairs if pairs else float("nan")


def max_to_any(wrong_AN: Tensor, reference_KN: Tensor, *, exclude_self: bool) -> Tensor:
    """The highest IoU of each network to any reference, float64 [A]; NaN for a network without an IoU to any of them.

    This is "max IoU" in arXiv 2506.07998; the novelty of a network is 1 - max IoU.
    exclude_self: set it if both are the same set in the same order. A network is then not compared with itself, but
    still with its duplicates elsewhere in the set. Raises ValueError for exclude_self with sets of different sizes or
    of one network.
    """
    if exclude_self and (wrong_AN.shape != reference_KN.shape or len(wrong_AN) < 2):
        raise PdiffError(
            f"exclude_self compares a set of at least two networks with itself; got wrong predictions of shapes "
            f"{list(wrong_AN.shape)} and {list(reference_KN.shape)}."
        )
    highest = []
    for start, block in _blocks(wrong_AN, reference_KN):
        if exclude_self:
            _forget_self(block, start)
        undefined = block.isnan().all(dim=1)
        highest.append(block.nan_to_num(nan=-1.0).amax(dim=1).masked_fill(undefined, torch.nan))
    return torch.cat(highest)


def similarity_summary(original_KN: Tensor, generated_BN: Tensor) -> SimilaritySummary:
    """The four comparisons of p-diff's figure 4a.

    original_generated_max is the mean over the generated networks of their highest IoU to any original. A value is None
    if no pair has an IoU (there are no errors, or the set has only one network).
    """
    highest_B = max_to_any(generated_BN, original_KN, exclude_self=False)
    return SimilaritySummary(
        original_original=defined(mean_pairwise(original_KN)) if len(original_KN) > 1 else None,
        generated_generated=defined(mean_pairwise(generated_BN)) if len(generated_BN) > 1 else None,
        original_generated=defined(mean_between(original_KN, generated_BN)),
        original_generated_max=defined(float(highest_B.nanmean())),
    )


def _blocks(wrong_AN: Tensor, wrong_BN: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The IoU matrix in blocks of rows, as (index of the first row, block)."""
    _check(wrong_AN, wrong_BN)
    for start in range(0, len(wrong_AN), _ROWS):
        yield start, iou_matrix(wrong_AN[start : start + _ROWS], wrong_BN)


def _forget_self(block: Tensor, start: int) -> None:
    """Set the IoU of each network with itself to NaN. block: rows from `start` of the IoU matrix of one set."""
    block.diagonal(offset=start).fill_(torch.nan)


def _check(wrong_AN: Tensor, wrong_BN: Tensor) -> None:
    for wrong in (wrong_AN, wrong_BN):
        if wrong.dtype != torch.bool or wrong.ndim != 2 or 0 in wrong.shape:
            raise PdiffError(
                f"wrong predictions have dtype {wrong.dtype} and shape {list(wrong.shape)}; expected bool, networks x "
                "images, at least one of each."
            )
    if wrong_AN.shape[1] != wrong_BN.shape[1]:
        raise PdiffError(
            f"wrong predictions are over {wrong_AN.shape[1]} and {wrong_BN.shape[1]} images; expected the same images."
        )
