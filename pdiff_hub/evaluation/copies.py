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
_EQUAL = 1e-4  # of the training checkpoints' own distance: nearer ones are equal but for rounding
_BLOCK_BYTES = 64 << 20


def nearest_two(latent_BN: Tensor, reference_KN: Tensor, *, leave_one_out: bool = False) -> tuple[Tensor, Tensor]:
    """Distances of each network to its nearest and second-nearest reference: float64 [B] each; exactly 0 for a copy.

    Both sets are on one device, and so are the distances.

    leave_one_out: both are the same set in the same order, and no network is compared with itself. ValueError for fewer
    than two references (three with leave_one_out), and for different N.
    """
    least = 3 if leave_one_out else 2
    if len(reference_KN) < least or latent_BN.shape[1:] != reference_KN.shape[1:]:
        raise PdiffError(
            f"latents have shapes {list(latent_BN.shape)} and {list(reference_KN.shape)}; expected the same length, "
            f"and at least {least} references."
        )
    query_BN, reference_KN = latent_BN.double(), reference_KN.double()
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


def new_ones(fresh_H: Tensor | None, own_K: Tensor | None) -> Tensor | None:
    """The distances of those fresh networks that do not equal a training checkpoint; None if there are none.

    own_K: distances of the training checkpoints to the nearest other one. A set may hold a network twice; on both sides
    of the split it would make 0 the distance of a copy.
    """
    if fresh_H is None or own_K is None:
        return None
    new_H = fresh_H[fresh_H > _EQUAL * float(own_K.mean())]
    return new_H if len(new_H) else None


def copy_distance(fresh_H: Tensor) -> float:
    """The distance up to which a network is called a copy: that of the nearest 5 % of fresh networks."""
    return float(fresh_H.sort().values[_rank(len(fresh_H)) - 1])


def count_copies(
    generated_B: Tensor, fresh_H: Tensor | None, own_K: Tensor | None = None, *, num_equal: int = 0
) -> CopyCount:
    """Count the copies among generated networks, by their and fresh networks' nearest distances.

    They are called a copier's if fresh networks in their place would be so with a chance of 1 % or less. If both come
    from one distribution, the number of copies among B has a beta-binomial distribution, whatever that distribution is.
    Fresh networks are stretches of a run, which may lie farther out than the rest. So a generator is no copier either
    if the training checkpoints themselves lie as near to each other.

    own_K: distances of the training checkpoints to the nearest other one. num_equal: fresh networks that were left out,
    since they equal a training checkpoint.
    """
    num_generated = len(generated_B)
    if fresh_H is None or not len(fresh_H):
        why = "no checkpoint was held out from training, or the pipeline does not say which"
        if num_equal:
            why = "each checkpoint that was held out equals one that was trained on"
        sentence = (
            f"How many of the {num_generated} generated networks are copies is not known: {why}. So there are no fresh "
            "networks to compare with."
        )
        return CopyCount(None, num_generated, None, 0, None, None, None, sentence)
    from scipy.stats import betabinom

    num_fresh, distance = len(fresh_H), copy_distance(fresh_H)
    copies, fresh_copies = int((generated_B <= distance).sum()), int((fresh_H <= distance).sum())
    rank = _rank(num_fresh)
    chance = float(betabinom.sf(copies - 1, num_generated, rank, num_fresh + 1 - rank))
    near = 0 if own_K is None else int((own_K <= distance).sum())
    as_near = own_K is not None and near * num_generated >= copies * len(own_K)
    copier = chance <= _SURE and not as_near
    if copier:
        meaning = "It copies."
    elif chance <= _SURE and own_K is not None:
        meaning = (
            f"Fresh networks would hardly have as many, but the {len(own_K)} training checkpoints lie as near to each "
            f"other ({near} of them): it stays among them."
        )
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
    if num_equal:
        sentence += f" {num_equal} held-out checkpoints equal one that was trained on, and are left out."
    return CopyCount(copies, num_generated, fresh_copies, num_fresh, distance, chance, copier, sentence)


def _rank(num_fresh: int) -> int:
    """Which fresh network, counted from the nearest, has the copy distance: of 19 and more, 5 % are at or below it."""
    return max(1, int(_SHARE * (num_fresh + 1)))
