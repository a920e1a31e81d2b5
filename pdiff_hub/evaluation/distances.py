"""Does a generator make new networks, or does it copy and average? Measures in the space of parameters.

The distance to the nearest original follows arXiv 2506.07998. The spread ratio is this project's own, as is the
deviation R2 in `pdiff_hub.training.autoencoder`.
Shapes: B queried or generated networks, K originals, P parameters. Sums over P are taken in float64, slice by slice, on
the device of the rows, which is the same for both sets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pdiff_hub.checkpoints.rows import PickedRows, Rows, as_rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks.devices import at_once

_SLICE_BYTES = 64 << 20  # for the float64 copies of both sets in one slice of P
_CACHED_BYTES = 2 << 20  # of them, for what is worked on at once: several passes, which a processor's cache makes fast
_PRODUCT_BYTES = 256 << 20  # for the float64 products of a block of queries with all references


def nearest_l2(query_BP: Tensor | Rows, reference_KP: Tensor | Rows, *, leave_one_out: bool) -> Tensor:
    """`NearestL2` for one set of queries: float64 [B]."""
    return NearestL2(reference_KP)(query_BP, leave_one_out=leave_one_out)


class NearestL2:
    """L2 distances to the nearest of K references, in raw weight units; 0 for a duplicate.

    References that differ by less than about 1e-7 of the numbers' own size, or of the distance to the first reference
    (one network that diverged, say), are not told apart: the distance is then that to any one of them.

    Both sets are read in slices of P. The references are read anew for each block of queries, whose products with
    them take up to 256 MiB. What depends on the references alone is computed here, once for all sets of queries.

    Raises ValueError for an empty set, and for NaN or Inf.
    """

    def __init__(self, reference_KP: Tensor | Rows):
        self._reference = reference = as_rows(reference_KP)
        _require_some(reference)
        self._device = _device(reference)
        self._square_K = torch.zeros(reference.num_rows, dtype=torch.float64, device=self._device)
        columns = max(1, _at_a_time(self._device) // (8 * reference.num_rows))
        for start, stop in _spans(reference.num_params, reference.num_rows, self._device):
            for reference_Kp in reference.read(0, reference.num_rows, start, stop).split(columns, 1):
                reference_Kp = reference_Kp.double()
                reference_Kp -= reference_Kp[0].clone()
                self._square_K += torch.linalg.vector_norm(reference_Kp, dim=1).square()
        _require_finite(self._square_K)

    def __call__(self, query_BP: Tensor | Rows, *, leave_one_out: bool = False) -> Tensor:
        """Distances of the queries, float64 [B].

        leave_one_out: set it if the queries are the references in the same order. A network is then not compared with
        itself, but still with its duplicates elsewhere in the set.

        Raises ValueError for different P, for an empty set, for NaN or Inf, and with leave_one_out for sets of
        different sizes or of one network.
        """
        query, num_references = as_rows(query_BP), self._reference.num_rows
        _check(query, self._reference)
        if leave_one_out and (query.num_rows != num_references or num_references < 2):
            raise PdiffError(
                "leave_one_out compares a set of at least two networks with itself; got sets of "
                f"{query.num_rows} and {num_references}."
            )
        step = max(1, _PRODUCT_BYTES // (8 * num_references))
        return torch.cat(
            [
                self._of_block(query, range(start, min(start + step, query.num_rows)), leave_one_out)
                for start in range(0, query.num_rows, step)
            ]
        )

    def _of_block(self, query: Rows, block: range, leave_one_out: bool) -> Tensor:
        # |q|^2 + |r|^2 - 2 q.r finds the nearest reference with one matrix product, where all are taken from the first
        # reference, since these numbers are smaller. Of r it is taken after the product: q.(r - first) = q.r - q.first.
        # Rounding leaves an error of 1e-16 |q - first| (|q - first| + |r|) in squared distances. It can only choose
        # among references that are as near as that: the distance itself is taken from the differences.
        reference, device = self._reference, self._device
        gram_BK = torch.zeros(len(block), reference.num_rows, dtype=torch.float64, device=device)
        square_B = torch.zeros(len(block), dtype=torch.float64, device=device)
        columns = max(1, _at_a_time(device) // (8 * (len(block) + reference.num_rows)))
        for start, stop in _spans(query.num_params, len(block) + reference.num_rows, device):
            query_BS = query.read(block.start, block.stop, start, stop)
            reference_KS = reference.read(0, reference.num_rows, start, stop)
            for query_Bp, reference_Kp in zip(query_BS.split(columns, 1), reference_KS.split(columns, 1), strict=True):
                query_Bp, reference_Kp = query_Bp.double(), reference_Kp.double()
                query_Bp -= reference_Kp[0]
                gram_BK.addmm_(query_Bp, reference_Kp.T)
                square_B += torch.linalg.vector_norm(query_Bp, dim=1).square()
        _require_finite(square_B)
        gram_BK -= gram_BK[:, :1].clone()
        distance_BK = gram_BK.mul_(-2).add_(square_B[:, None]).add_(self._square_K)
        if leave_one_out:
            distance_BK.diagonal(block.start).fill_(torch.inf)
        chosen, place_B = distance_BK.argmin(dim=1).unique(return_inverse=True)
        nearest = PickedRows(reference, chosen.tolist())  # a few have few, and the others need not be read again
        total_B = torch.zeros(len(block), dtype=torch.float64, device=device)
        for start, stop in _spans(query.num_params, len(block) + reference.num_rows, device):
            difference_BS = query.read(block.start, block.stop, start, stop).double()
            difference_BS -= nearest.read(0, nearest.num_rows, start, stop)[place_B]
            total_B += difference_BS.square_().sum(dim=1)
        return total_B.sqrt()


def spread_ratio(generated_BP: Tensor | Rows, original_KP: Tensor | Rows) -> float:
    """sqrt(sum_p var(generated) / sum_p var(original)): 1 is the same spread, below 1 is narrower, 0 is one point.

    Variances are unbiased (n - 1). Raises ValueError for fewer than two networks in a set, for different P, for NaN or
    Inf, and for originals that are all the same.
    """
    sets = as_rows(generated_BP), as_rows(original_KP)
    _check(*sets)
    if min(each.num_rows for each in sets) < 2:
        raise PdiffError(
            f"there are {sets[0].num_rows} generated and {sets[1].num_rows} original networks; a spread needs at "
            "least two of each."
        )
    device = _device(sets[0])
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for start, stop in _spans(sets[0].num_params, sum(each.num_rows for each in sets), device):
        sums += torch.stack([_variances(each.read(0, each.num_rows, start, stop)).sum() for each in sets])
    _require_finite(sums)
    generated, original = sums.tolist()
    if original == 0.0:
        raise PdiffError("all original networks are the same, so there is no spread to compare with.")
    return float((generated / original) ** 0.5)


def _variances(params_RS: Tensor) -> Tensor:
    """Unbiased, float64 [S]."""
    columns = max(1, _at_a_time(params_RS.device) // (8 * len(params_RS)))
    return torch.cat([params_Rs.double().var(dim=0) for params_Rs in params_RS.split(columns, 1)])


def _at_a_time(device: torch.device) -> int:
    return _CACHED_BYTES if device.type == "cpu" else at_once(_SLICE_BYTES, device)


def _device(rows: Rows) -> torch.device:
    return rows.read(0, 1, 0, 1).device


def _spans(num_params: int, num_networks: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """(start, stop) of the slices of P in which so many networks are read."""
    step = max(1, at_once(_SLICE_BYTES, device) // (8 * num_networks))
    for start in range(0, num_params, step):
        yield start, min(start + step, num_params)


def _require_finite(*sums: Tensor) -> None:
    # The float64 sum of squares of float32 numbers is finite exactly if they all are: no pass is needed to look.
    if not all(bool(each.isfinite().all()) for each in sums):
        raise PdiffError("parameters hold NaN or Inf; expected finite numbers.")


def _require_some(rows: Rows) -> None:
    if 0 in (rows.num_rows, rows.num_params):
        raise PdiffError(
            f"parameters have shape {[rows.num_rows, rows.num_params]}; expected networks x "
            "parameters, at least one of each."
        )


def _check(first: Rows, second: Rows) -> None:
    for rows in (first, second):
        _require_some(rows)
    if first.num_params != second.num_params:
        raise PdiffError(
            f"networks have {first.num_params} and {second.num_params} parameters; expected two sets of one layout."
        )
