"""Can one tell generated networks from fresh ones, which the generator has not seen? A two-sample test by classifier.

A logistic regression learns to tell the two sets by the traits of networks, and is asked about networks that it did
not learn from. AUC: the share of pairs (generated, fresh) in which it finds the generated network more generated.
Shapes: B generated and H fresh networks, n of both, F traits, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from pdiff_hub.errors import PdiffError
from pdiff_hub.records import Telling
from pdiff_hub.seeds import derived_seed, generator_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FOLDS = 5
_REPETITIONS = 10
_RESAMPLES = 1000
# A resample changes how often a network is asked about, but not how often it is learnt from. If the sets are alike,
# both change the AUC equally, so deviations are doubled. In simulations (5 to 200 networks, 1 to 150 traits), 96 to
# 100 % of the intervals then hold the true value; without this, 68 to 88 %.
_WIDENING = 2


def tell_apart(traits_BF: Tensor, traits_HF: Tensor, seed: int) -> Telling | None:
    """How well generated networks (traits_BF) can be told from fresh ones (traits_HF); None for fewer than 5 of either.

    Traits are in any unit: each is standardised. Its distance from the mean of both sets is a trait too, because a
    generator may miss the spread only. The AUC is the mean over 10 repetitions of 5-fold cross-validation. Its 95 %
    interval is a bootstrap over the networks of both sets, widened; it is rather too wide than too narrow.

    seed: of the folds and resamples. Raises ValueError for other traits in one set than in the other, for none, and
    for NaN or Inf.
    """
    if traits_BF.ndim != 2 or traits_HF.ndim != 2 or traits_BF.shape[1] != traits_HF.shape[1] or not traits_BF.shape[1]:
        raise PdiffError(
            f"traits have shapes {list(traits_BF.shape)} and {list(traits_HF.shape)}; expected networks x traits, "
            "the same traits in both, and at least one."
        )
    traits_nF = torch.cat([traits_BF, traits_HF]).double()
    if (bad_F := ~traits_nF.isfinite().all(dim=0)).any():
        raise PdiffError(
            f"trait column {int(bad_F.nonzero()[0])} holds NaN or Inf; expected finite numbers: leave out networks "
            "that diverged."
        )
    if min(len(traits_BF), len(traits_HF)) < _FOLDS:
        return None
    with threadpool_limits(limits=1):  # small products wait for threads: all tests took 2.5 s on 16 cores, 0.9 on two
        return _told(traits_nF, len(traits_BF), seed)


def _told(traits_nF: Tensor, num_generated: int, seed: int) -> Telling:
    """`tell_apart`, of checked traits of networks of which the first `num_generated` were generated."""
    won_BH, met_BH = _contests(traits_nF, num_generated, derived_seed(seed, "two-sample folds") % 2**32)
    auc = float(won_BH.sum() / met_BH.sum())
    generator = generator_of(seed, "two-sample")
    count_RB, count_RH = (_resample(size, generator) for size in won_BH.shape)
    auc_R = ((count_RB @ won_BH) * count_RH).sum(dim=1) / ((count_RB @ met_BH) * count_RH).sum(dim=1)
    # NaN: no two networks of a resample met, which happens for about one in 100,000 resamples of 5 networks.
    ends = auc_R.nanquantile(torch.tensor([0.025, 0.975], dtype=auc_R.dtype))
    low, high = (auc + _WIDENING * (ends - auc)).clamp(0, 1).tolist()
    return Telling(auc, low, high)


def _contests(traits_nF: Tensor, num_generated: int, seed: int) -> tuple[Tensor, Tensor]:
    """How often each generated network was found more generated than each fresh one, and how often they met, [B,H].

    Only networks of one fold meet. Scores of different folds come from different classifiers, and leaving a network
    out moves the classifier away from it, so comparing across folds would make the AUC too low.
    """
    import numpy as np

    traits, is_generated = traits_nF.numpy(), np.arange(len(traits_nF)) < num_generated
    num_fresh = len(traits_nF) - num_generated
    won_BH = torch.zeros(num_generated, num_fresh, dtype=torch.float64)
    met_BH = torch.zeros_like(won_BH)
    for is_asked in _folds(num_generated, num_fresh, seed):
        learned, asked = np.flatnonzero(~is_asked), np.flatnonzero(is_asked)
        scores = torch.from_numpy(_scores(traits[learned], is_generated[learned], traits[asked]))
        of_B, of_H = (torch.from_numpy(part) for part in (is_generated[asked], ~is_generated[asked]))
        index_B, index_H = torch.from_numpy(asked)[of_B], torch.from_numpy(asked)[of_H] - num_generated
        won = torch.sign(scores[of_B, None] - scores[None, of_H]).add(1).div(2)  # a tie is half a win
        won_BH[index_B[:, None], index_H] += won
        met_BH[index_B[:, None], index_H] += 1
    return won_BH, met_BH


def _folds(num_generated: int, num_fresh: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Which of n networks, the generated ones first, are asked about: [n], for each fold of each repetition.

    These are the folds of scikit-learn's `RepeatedStratifiedKFold`, whose import takes longer than the test.
    """
    import numpy as np

    random = np.random.RandomState(seed)
    kinds_n = np.arange(num_generated + num_fresh) >= num_generated
    sizes = [np.bincount(kinds_n[fold::_FOLDS], minlength=2) for fold in range(_FOLDS)]
    for _ in range(_REPETITIONS):
        folds_n = np.concatenate([np.arange(_FOLDS).repeat([size[kind] for size in sizes]) for kind in range(2)])
        for part_k in np.split(folds_n, [num_generated]):
            random.shuffle(part_k)  # a view
        yield from (folds_n == fold for fold in range(_FOLDS))


def _scores(
    traits_lF: NDArray[np.float64], is_generated_l: NDArray[np.bool_], traits_aF: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How generated a networks look to a logistic regression that learned from l others: float64 [a].

    This is scikit-learn's `LogisticRegression(class_weight="balanced")` (C = 1, L-BFGS to a gradient of 1e-4), beside
    which its checks of arguments take three quarters of the time.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit

    scaled = _standardised(np.concatenate([traits_lF, traits_aF]), len(traits_lF))
    # Squares would give outliers more weight than distances do.
    both = _standardised(np.concatenate([scaled, np.abs(scaled)], axis=1), len(traits_lF))
    inputs_lX, inputs_aX = np.split(both, [len(traits_lF)])
    counts = np.array([(~is_generated_l).sum(), is_generated_l.sum()])
    weight_l = (len(is_generated_l) / (2 * counts))[is_generated_l.astype(int)]
    weight_l /= (total := weight_l.sum())
    sign_l = np.where(is_generated_l, 1.0, -1.0)

    def loss_and_gradient(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Mean log-loss, each class weighing the same, and L2 penalty of all but the last number, the intercept."""
        slope_X = point[:-1]
        margin_l = sign_l * (inputs_lX @ slope_X + point[-1])
        pull_l = -weight_l * sign_l * expit(-margin_l)
        loss = weight_l @ np.logaddexp(0, -margin_l) + 0.5 / total * (slope_X @ slope_X)
        return float(loss), np.append(pull_l @ inputs_lX + slope_X / total, pull_l.sum())

    options = {"maxiter": 10_000, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps}
    start = np.zeros(inputs_lX.shape[1] + 1)
    point = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    scores: NDArray[np.float64] = inputs_aX @ point[:-1] + point[-1]
    return scores


def _standardised(traits_nF: NDArray[np.float64], num_learned: int) -> NDArray[np.float64]:
    """Less the mean and over the standard deviation of the first rows; a trait that is equal in them is not scaled."""
    import numpy as np

    learned_lF = traits_nF[:num_learned]
    mean_F, variance_F = learned_lF.mean(axis=0), learned_lF.var(axis=0)
    eps = np.finfo(float).eps
    # What rounding may leave of a variance of 0.
    is_constant_F = variance_F <= num_learned * eps * variance_F + (num_learned * mean_F * eps) ** 2
    return (traits_nF - mean_F) / np.where(is_constant_F, 1.0, np.sqrt(variance_F))


def _resample(size: int, generator: torch.Generator) -> Tensor:
    """How often each of `size` networks is in each of 1,000 draws of `size` with replacement, float64 [R,size]."""
    drawn_Rn = torch.randint(size, (_RESAMPLES, size), generator=generator)
    count_Rn = torch.zeros(_RESAMPLES, size, dtype=torch.float64)
    return count_Rn.scatter_add_(1, drawn_Rn, torch.ones_like(count_Rn))
