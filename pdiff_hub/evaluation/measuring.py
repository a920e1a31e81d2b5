"""What is measured of the networks of one method, and what it says beside those of fresh networks.

Shapes: B networks, K originals, P parameters, F traits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import Rows, as_rows
from pdiff_hub.evaluation.copies import nearest_two, nearness
from pdiff_hub.evaluation.distances import NearestL2
from pdiff_hub.evaluation.judging import Judge, Judged
from pdiff_hub.evaluation.on_device import picked, rows_on
from pdiff_hub.evaluation.sharing import by_rows
from pdiff_hub.evaluation.similarity import max_to_any
from pdiff_hub.evaluation.traits import network_traits
from pdiff_hub.evaluation.two_sample import tell_apart
from pdiff_hub.networks.devices import at_once
from pdiff_hub.prediction.predictions import Listener, Predictions, device_of
from pdiff_hub.records import MethodSummary
from pdiff_hub.records.results import defined
from pdiff_hub.seeds import derived_seed
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder

_ENCODED_BYTES = 256 << 20  # of one slice of P, for all networks that are encoded at once


@dataclass(frozen=True, eq=False)
class Measured:
    """Numbers of each network of a method, compared with the originals; an original with the others. On the CPU.

    Attributes:
        max_iou_B: highest IoU of errors; NaN where undefined.
        nearest_l2_B: in raw weight units.
        nearest_latent_B, second_latent_B: distances to the nearest and the second-nearest original in scaled latents;
            None without an autoencoder.
        traits_BF: what can be seen of the networks (`traits.network_traits`), and these distances.
    """

    judged: Judged
    max_iou_B: Tensor
    nearest_l2_B: Tensor
    nearest_latent_B: Tensor | None
    second_latent_B: Tensor | None
    traits_BF: Tensor

    def __len__(self) -> int:
        return len(self.nearest_l2_B)

    def summary(
        self, method: str, name: str, fresh: Measured | None, fresh_H: Tensor | None, seed: int
    ) -> MethodSummary:
        """The means, and how the networks compare with fresh ones, if these are known.

        fresh_H: distances of those to the nearest original (`copies.new_ones`). seed: of the two-sample test.
        """
        told_apart = close = None
        if self.nearest_latent_B is not None and self.second_latent_B is not None:
            close = nearness(self.nearest_latent_B, self.second_latent_B, fresh_H)
        if fresh is not None and fresh is not self:
            told_apart = tell_apart(
                _finite(self.traits_BF), _finite(fresh.traits_BF), derived_seed(seed, "two-sample", name)
            )
        return MethodSummary(
            method, len(self), mean_or_none(self.max_iou_B), float(self.nearest_l2_B.mean()), close, told_apart
        )


@dataclass(eq=False)
class Measure:
    """Measures networks beside `originals`, of which only the rows `chosen` are judged.

    The work is done where the judge's network is: all rows are read there.

    autoencoder: the one that the generator works with; None leaves out distances in latents. listener: hears the
    answers of the originals that are judged.
    """

    judge: Judge
    originals: CheckpointDataset
    chosen: list[int]
    autoencoder: ParamAutoencoder | None
    listener: Listener | None = None
    own: Measured = field(init=False)
    """The originals themselves."""

    def __post_init__(self) -> None:
        self._device = device_of(self.judge.network)
        self.originals = self.originals.with_rows(rows_on(self.originals.rows, self._device))
        rows = self.originals.rows
        chosen = picked(rows, self.chosen)
        judged = by_rows(partial(self.judge, listener=self.listener), chosen, _joined_judged)
        self._wrong_KN = judged.test.wrong_BN.to(self._device)
        self._majority_wrong_N = judged.validation.wrong_BN.double().mean(dim=0) > 0.5
        self._latent_KN = self._latents(rows)
        self._nearest_l2 = NearestL2(rows)
        near = None
        if self._latent_KN is not None:
            both = nearest_two(self._latent_KN, self._latent_KN, leave_one_out=True)
            near = tuple(each[self.chosen] for each in both)
        self.own = self._measured(
            chosen,
            judged,
            max_to_any(self._wrong_KN, self._wrong_KN, exclude_self=True),
            self._nearest_l2(rows, leave_one_out=True)[self.chosen],
            near,
        )

    def __call__(
        self, params_BP: Tensor | Rows, *, decoded: bool = False, listener: Listener | None = None
    ) -> Measured:
        """Measure networks that are not originals: float32 [B,P], raw weight units.

        decoded: from latents. listener: hears their answers.
        """
        rows = rows_on(as_rows(params_BP), self._device)
        judged, latent_BN = self.judge(rows, listener), self._latents(rows, decoded=decoded)
        near = None
        if latent_BN is not None and self._latent_KN is not None:
            near = nearest_two(latent_BN, self._latent_KN)
        return self._measured(
            rows,
            judged,
            max_to_any(judged.test.wrong_BN.to(self._device), self._wrong_KN, exclude_self=False),
            self._nearest_l2(rows),
            near,
        )

    def in_blocks(self, blocks: Iterable[Tensor], *, decoded: bool = False) -> Measured:
        """The same for networks of one method that come some at a time, [b,P]; each block is dropped before the next.

        ValueError if there is none.
        """
        parts = []
        for params_bP in blocks:
            parts.append(self(params_bP, decoded=decoded))
            del params_bP  # else it would stay until the next one has been made
        return parts[0] if len(parts) == 1 else joined(parts)

    def _latents(self, rows: Rows, *, decoded: bool = False) -> Tensor | None:
        if self.autoencoder is None:
            return None
        return latents_of(self.autoencoder, rows, decoded=decoded).to(self._device)

    def _measured(
        self, rows: Rows, judged: Judged, max_iou_B: Tensor, nearest_l2_B: Tensor, near: tuple[Tensor, ...] | None
    ) -> Measured:
        max_iou_B, nearest_l2_B, *in_latents = (each.cpu() for each in (max_iou_B, nearest_l2_B, *(near or ())))
        distances = torch.stack([nearest_l2_B, *in_latents], dim=1)
        traits_BF = network_traits(self.judge.layout, rows, judged.validation, self._majority_wrong_N, distances)
        nearest_B, second_B = in_latents or (None, None)
        return Measured(judged, max_iou_B, nearest_l2_B, nearest_B, second_B, traits_BF)


@torch.no_grad()
def latents_of(autoencoder: ParamAutoencoder, rows: Rows, *, decoded: bool = False) -> Tensor:
    """Scaled latents of networks, [N, C x L], where the autoencoder is. decoded: whether the networks come out of it.

    What is generated was decoded from latents. If encoding it gives other latents, as with a convolutional autoencoder,
    a copy would lie far from its original. So all other networks are decoded and encoded once more, too.
    """
    size = max(
        1, at_once(_ENCODED_BYTES, autoencoder.device) // (4 * max(stop - start for start, stop in autoencoder.slices))
    )
    parts = []
    for first in range(0, rows.num_rows, size):
        latent_bCL = autoencoder.encode_slices(partial(rows.read, first, min(first + size, rows.num_rows)))
        if autoencoder.config.form != "linear" and not decoded:  # of principal components this changes nothing
            latent_bCL = autoencoder.encode_slices(_decoded(autoencoder, latent_bCL))
        parts.append(latent_bCL.flatten(1))
    return torch.cat(parts)


def _decoded(autoencoder: ParamAutoencoder, latent_bCL: Tensor) -> Callable[[int, int], Tensor]:
    pieces = autoencoder.decode_slices(latent_bCL)
    return lambda start, stop: next(pieces)[2]


def joined(parts: Sequence[Measured]) -> Measured:
    """What was measured of all networks of the parts, in their order. All parts have the same fields."""

    def joined_of(of: Callable[[Measured], Tensor]) -> Tensor:
        return torch.cat([of(part) for part in parts])

    def maybe(of: Callable[[Measured], Tensor | None]) -> Tensor | None:
        known = [each for part in parts if (each := of(part)) is not None]
        return torch.cat(known) if known else None

    return Measured(
        _joined_judged([part.judged for part in parts]),
        joined_of(lambda part: part.max_iou_B),
        joined_of(lambda part: part.nearest_l2_B),
        maybe(lambda part: part.nearest_latent_B),
        maybe(lambda part: part.second_latent_B),
        joined_of(lambda part: part.traits_BF),
    )


def _joined_judged(parts: Sequence[Judged]) -> Judged:
    def predictions(split: Sequence[Predictions]) -> Predictions:
        losses = [each.loss_B for each in split if each.loss_B is not None]
        confidences = [each.confidence_B for each in split if each.confidence_B is not None]
        return Predictions(
            torch.cat([each.accuracy_B for each in split]),
            torch.cat([each.wrong_BN for each in split]),
            torch.cat(losses) if losses else None,
            torch.cat(confidences) if confidences else None,
        )

    return Judged(predictions([each.validation for each in parts]), predictions([each.test for each in parts]))


def mean_or_none(values_B: Tensor) -> float | None:
    """The mean of the numbers that are not NaN; None if there is none."""
    return defined(float(values_B.double().nanmean()))


def _finite(traits_BF: Tensor) -> Tensor:
    # A network that answers with NaN has no loss. A test that anybody could pass by it would say nothing of the rest.
    return traits_BF[traits_BF.isfinite().all(dim=1)]
