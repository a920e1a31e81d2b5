"""Similarity of networks by their errors: p-diff, arXiv 2402.13144, sec. 3.4 ("Similarity of high-performing models").

IoU(1, 2) = |W1 n W2| / |W1 u W2|, where W is the set of test images that a network gets wrong. It is 1 for networks
with the same errors, 0 for networks without a common one. Two networks without any error have no IoU (0 / 0): it is
NaN here, such pairs are left out of means and maxima, and callers say how many there were (`isnan().sum()`).

Shapes: A, B, K networks, N images; `wrong_AN` is bool, True where a network is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.records import SimilaritySummary
from pdiff_hub.records.results import defined

# Networks and images taken at a time: 16 MiB a block of float32 copies, whatever the size of the sets.
_ROWS, _IMAGES = 512, 8192


def iou_matrix(wrong_AN: Tensor, wrong_BN: Tensor) -> Tensor:
    """IoU of the errors of every pair, float64 [A,B] on the CPU, 0..1; NaN where neither network has an error.

    Exact: common errors are counted by a float32 matrix product of zeros and ones over at most 8,192 images, whose
    sums are whole numbers far below 2^24. Raises ValueError for other dtypes than bool and for different N.
    """
    _check(wrong_AN, wrong_BN)
    wrong_AN, wrong_BN = wrong_AN.cpu(), wrong_BN.cpu()
    common_AB = torch.zeros(len(wrong_AN), len(wrong_BN), dtype=torch.float64)
    for n in range(0, wrong_AN.shape[1], _IMAGES):
        part_An, part_Bn = wrong_AN[:, n : n + _IMAGES].float(), wrong_BN[:, n : n + _IMAGES].float()
        common_AB += part_An @ part_Bn.T
    union_AB = wrong_AN.sum(dim=1)[:, None] + wrong_BN.sum(dim=1)[None, :] - common_AB
    return common_AB / union_AB


def mean_pairwise(wrong_KN: Tensor) -> float:
    """Mean IoU of all pairs of different networks of one set (a network is never compared with itself).

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
    """Mean IoU of all pairs of one network of A and one of B; NaN if no pair has one."""
    total, pairs = 0.0, 0
    for _, block in _blocks(wrong_AN, wrong_BN):
        defined = block[~block.isnan()]
        total, pairs = total + float(defined.sum()), pairs + len(defined)
    return total / pairs if pairs else float("nan")


def max_to_any(wrong_AN: Tensor, reference_KN: Tensor, *, exclude_self: bool) -> Tensor:
    """The highest IoU of each network to any reference, float64 [A]; NaN where it has an IoU to none of them.

    exclude_self: True where both are the same set in the same order: a network is then not compared with itself, but
    is with its duplicates elsewhere in the set. arXiv 2506.07998 ("max IoU"); 1 - this is the novelty of a network.
    Raises ValueError if exclude_self is asked for sets of different sizes, or for a set of one.
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
    where it has no defined pair (no errors, or a set of one network compared with itself).
    """
    highest_B = max_to_any(generated_BN, original_KN, exclude_self=False)
    return SimilaritySummary(
        original_original=defined(mean_pairwise(original_KN)) if len(original_KN) > 1 else None,
        generated_generated=defined(mean_pairwise(generated_BN)) if len(generated_BN) > 1 else None,
        original_generated=defined(mean_between(original_KN, generated_BN)),
        original_generated_max=defined(float(highest_B.nanmean())),
    )


def _blocks(wrong_AN: Tensor, wrong_BN: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The IoU matrix in blocks of rows, each with the number of its first row."""
    _check(wrong_AN, wrong_BN)
    for start in range(0, len(wrong_AN), _ROWS):
        yield start, iou_matrix(wrong_AN[start : start + _ROWS], wrong_BN)


def _forget_self(block: Tensor, start: int) -> None:
    """Set the IoU of a network with itself to NaN, in rows start... of the IoU matrix of a set with itself."""
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
