"""How many generated networks are copies? Counted in the space that is modelled, beside networks that are really new.

In raw weights most of the distance between two checkpoints of one training run is what the autoencoder drops, so a copy
looks as far away as a new network (docs/measurements.md, "Copying"). Distances are therefore those of scaled latents.
Shapes: B networks, K checkpoints that the generator was trained on, H held-out ("fresh") ones, N numbers per latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.records import CopyCount, Nearness
from pdiff_hub.records.results import defined

_SHARE = 0.05  # of fresh networks are called copies, so a perfect generator has as many
_SURE = 0.01  # the chance that fresh networks would be called a copier's
_BLOCK_BYTES = 64 << 20


def nearest_two(latent_BN: Tensor, reference_KN: Tensor, *, leave_one_out: bool = False) -> tuple[Tensor, Tensor]:
    """Distances of each network to its nearest and second-nearest reference: float64 [B] each; exactly 0 for a copy.

    leave_one_out: both are the same set in the same order, and no network is compared with itself. ValueError for fewer
    than two references (three with leave_one_out), and for different N.
    """
    least = 3 if leave_one_out else 2
    if len(reference_KN) < least or latent_BN.shape[1:] != reference_KN.shape[1:]:
        raise PdiffError(
            f"latents have shapes {list(latent_BN.shape)} and {list(reference_KN.shape)}; expected the same length, "
            f"and at least {least} references."
        )
    query_BN, reference_KN = latent_BN.cpu().double(), reference_KN.cpu().double()
    step = max(1, _BLOCK_BYTES // (8 * len(reference_KN)))
    nearest: list[Tensor] = []
    for start in range(0, len(query_BN), step):
        # Not by a matrix product, whose rounding would give a copy a distance above 0.
        distance_bK = torch.cdist(
            query_BN[start : start + step], reference_KN, compute_mode="donot_use_mm_for_euclid_dist"
        )
        if leave_one_out:
            distance_bK.diagonal(start).fill_(torch.inf)
        nearest.append(distance_bK.topk(2, dim=1, largest=False).values)
    nearest_B2 = torch.cat(nearest)
    return nearest_B2[:, 0], nearest_B2[:, 1]


def nearness(nearest_B: Tensor, second_B: Tensor, fresh_H: Tensor | None) -> Nearness:
    """Where networks lie, beside fresh ones. fresh_H: the nearest distances of the latter; None if unknown."""
    ratio = median_ratio = copies = None
    if fresh_H is not None:
        ratio = defined(float(nearest_B.mean() / fresh_H.mean()))
        median_ratio = defined(float(nearest_B.median() / fresh_H.median()))
        copies = int((nearest_B <= copy_distance(fresh_H)).sum())
    # Two equal references at distance 0 are no nearer to one than to the other.
    between_B = torch.where(second_B > 0, nearest_B / second_B, 1.0)
    return Nearness(copies, float(nearest_B.mean()), ratio, median_ratio, float(between_B.mean()))


def copy_distance(fresh_H: Tensor) -> float:
    """The distance up to which a network is called a copy: that of the nearest 5 % of fresh networks."""
    return float(fresh_H.sort().values[_rank(len(fresh_H)) - 1])


def count_copies(generated_B: Tensor, fresh_H: Tensor | None) -> CopyCount:
    """Count the copies among generated networks, by their and fresh networks' nearest distances.

    They are called a copier's if fresh networks in their place would be so with a chance of 1 % or less. If both come
    from one distribution, the number of copies among B has a beta-binomial distribution, whatever that distribution is.
    """
    num_generated = len(generated_B)
    if fresh_H is None or not len(fresh_H):
        sentence = (
            f"How many of the {num_generated} generated networks are copies is not known: no checkpoint was held out "
            "from training, or the pipeline does not say which. So there are no fresh networks to compare with."
        )
        return CopyCount(None, num_generated, None, 0, None, None, None, sentence)
    from scipy.stats import betabinom

    num_fresh, distance = len(fresh_H), copy_distance(fresh_H)
    copies, fresh_copies = int((generated_B <= distance).sum()), int((fresh_H <= distance).sum())
    rank = _rank(num_fresh)
    chance = float(betabinom.sf(copies - 1, num_generated, rank, num_fresh + 1 - rank))
    copier = chance <= _SURE
    if copier:
        meaning = "It copies."
    elif copies:
        meaning = f"Fresh networks in their place would have as many or more with a chance of {100 * chance:.0f} %."
    else:
        meaning = "It does not copy."
    sentence = (
        f"{copies} of {num_generated} generated networks are copies (of {num_fresh} fresh networks: {fresh_copies}). "
        f"{meaning}"
    )
    if bool((fresh_H == fresh_H[0]).all()) and num_fresh > 1:
        sentence += " But all fresh networks are equally far from the others, so they say little."
    return CopyCount(copies, num_generated, fresh_copies, num_fresh, distance, chance, copier, sentence)


def _rank(num_fresh: int) -> int:
    """Which fresh network, counted from the nearest, has the copy distance: of 19 and more, 5 % are at or below it."""
    return max(1, int(_SHARE * (num_fresh + 1)))
