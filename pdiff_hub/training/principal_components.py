"""The principal components of a set of checkpoints, from a K x K or a P x P matrix, whichever is smaller.

Shapes: K training checkpoints, H held-out ones, P parameters, S a slice of P, N components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.progress import progress_bar
from pdiff_hub.training.row_slices import RowSlices
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder

_RANK_TOLERANCE = 1e-9  # eigenvalues below this share of the largest are rounding, not structure
_BLOCK_BYTES = 64 << 20  # of float64 copies of checkpoints that are made at once


@dataclass(frozen=True)
class Spectrum:
    """The principal components of the checkpoints.

    Attributes:
        rank: the number of all components.
        explained_N: float64 [rank]: the share of the squared deviations that the first n + 1 components hold; of the
            held-out checkpoints, or of the training checkpoints if none is held out.
        components: `(N, start, train_KS)` -> the parameters from `start` on of the first N components, which are
            orthonormal over P: float32 [N,S]. train_KS: the normalised training checkpoints there.
    """

    rank: int
    explained_N: Tensor
    components: Callable[[int, int, Tensor], Tensor]


def spectrum_of(
    dataset: CheckpointDataset, train: RowSlices, held_out: RowSlices, statistics: ParamAutoencoder
) -> Spectrum:
    """The spectrum of the deviations that `statistics.normalize` gives. ValueError if all checkpoints are equal.

    They come from the K x K Gram matrix, one slice of P at a time. Small networks with more checkpoints than numbers
    use the P x P covariance, which is then smaller.
    """
    if dataset.layout.num_params < len(train):
        return _from_covariance(dataset, train.rows, held_out.rows, statistics)
    return _from_gram(train, held_out, statistics)


def _from_gram(train: RowSlices, held_out: RowSlices, statistics: ParamAutoencoder) -> Spectrum:
    device, double = statistics.device, torch.float64
    gram_KK = torch.zeros(len(train), len(train), dtype=double, device=device)
    cross_HK = torch.zeros(len(held_out), len(train), dtype=double, device=device)
    held_out_total = torch.zeros((), dtype=double, device=device)
    slices = list(statistics.slices)
    longest = max(stop - start for start, stop in slices)
    doubles = torch.empty((len(train) + len(held_out)) * longest, dtype=double, device=device)  # for all slices
    bar = progress_bar(statistics.layout.num_params, "find principal components", "parameter", scaled=True)
    for start, stop in slices:
        middle, end = (number * (stop - start) for number in (len(train), len(train) + len(held_out)))
        train_KS = doubles[:middle].view(len(train), -1).copy_(train.normalized(statistics, start, stop))
        gram_KK += train_KS @ train_KS.T
        if len(held_out):
            held_out_HS = doubles[middle:end].view(len(held_out), -1)
            held_out_HS.copy_(held_out.normalized(statistics, start, stop))
            cross_HK += held_out_HS @ train_KS.T
            held_out_total += held_out_HS.square_().sum()
        bar.update(stop - start)
    bar.close()
    eigenvalues_N, vectors_KN = _leading(gram_KK.cpu(), len(train))
    basis_KN = vectors_KN / eigenvalues_N.sqrt()
    explained_N = _explained(eigenvalues_N, cross_HK.cpu() @ basis_KN, float(held_out_total))
    basis_KN = basis_KN.to(device)
    return Spectrum(
        len(eigenvalues_N), explained_N, lambda num, start, train_KS: basis_KN[:, :num].float().T @ train_KS
    )


def _from_covariance(
    dataset: CheckpointDataset, train_K: list[int], held_out_H: list[int], statistics: ParamAutoencoder
) -> Spectrum:
    num_params = dataset.layout.num_params

    def blocks(rows: list[int]) -> Iterator[Tensor]:
        at_once = max(1, _BLOCK_BYTES // (8 * num_params))
        for first in range(0, len(rows), at_once):
            some = dataset.select_rows(rows[first : first + at_once])
            yield statistics.normalize(some.read_slice(0, num_params)).double()

    covariance_PP = torch.zeros(num_params, num_params, dtype=torch.float64)
    for block_RP in blocks(train_K):
        covariance_PP += block_RP.T @ block_RP
    eigenvalues_N, vectors_PN = _leading(covariance_PP, len(train_K))
    held_out_HP = torch.cat([torch.empty(0, num_params, dtype=torch.float64), *blocks(held_out_H)])
    explained_N = _explained(eigenvalues_N, held_out_HP @ vectors_PN, float(held_out_HP.square().sum()))

    def components(num: int, start: int, train_KS: Tensor) -> Tensor:
        return vectors_PN[start : start + train_KS.shape[1], :num].T.float().contiguous()

    return Spectrum(len(eigenvalues_N), explained_N, components)


def _leading(matrix: Tensor, num_train: int) -> tuple[Tensor, Tensor]:
    """The eigenvalues that are not rounding, largest first, and their eigenvectors as columns."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    rank = int((eigenvalues > _RANK_TOLERANCE * eigenvalues[0].clamp_min(1e-30)).sum())
    if rank == 0:
        raise PdiffError(
            "all training checkpoints are equal: there is nothing to learn from them. Collect them with "
            "a larger learning rate or from more seeds."
        )
    rank = min(rank, num_train - 1)
    # Signs are arbitrary; they are fixed so that a rerun gives the same latents.
    vectors *= torch.sign(vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)))
    return eigenvalues[:rank], vectors[:, :rank]


def _explained(eigenvalues_N: Tensor, held_out_HN: Tensor, held_out_total: float) -> Tensor:
    if len(held_out_HN):
        return held_out_HN.square().sum(dim=0).cumsum(0) / max(held_out_total, 1e-30)
    return eigenvalues_N.cumsum(0) / eigenvalues_N.sum()
