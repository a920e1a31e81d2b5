"""Networks to choose from: generated ones, or checkpoints. Few are in memory at once.

Shapes: B networks, b of them at once, P parameters, N images, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import PickedRows
from pdiff_hub.ensembles.choosing import choose, temperature_of_groups
from pdiff_hub.ensembles.figures import Judged
from pdiff_hub.ensembles.views import View
from pdiff_hub.networks.stacked import mean_log
from pdiff_hub.prediction.predictions import predict_logits
from pdiff_hub.travelling.param_autoencoder import ParamLayout
from pdiff_hub.travelling.pipeline_pdiff import PDiffPipeline, require_finite

_BYTES = 256 << 20  # of the parameters, and of the answers, of networks that are in memory at once


@dataclass(frozen=True, eq=False)
class Candidates:
    """`number` networks of one layout. params_of: their parameters [b,P], by their rows.

    network: any instance of the architecture. frozen: the tensors that the layout leaves out.
    """

    network: nn.Module
    layout: ParamLayout
    frozen: Mapping[str, Tensor]
    number: int
    num_classes: int
    params_of: Callable[[Sequence[int]], Tensor]

    @classmethod
    def generated(cls, pipe: PDiffPipeline, network: nn.Module, num_classes: int, latents_BCL: Tensor) -> Candidates:
        """Those of scaled latents, which are decoded whenever they are needed."""

        def params_of(rows: Sequence[int]) -> Tensor:
            params_bP = pipe.decode_latents(latents_BCL[list(rows)])
            require_finite(params_bP)
            return params_bP

        layout, frozen = pipe.autoencoder.layout, pipe.autoencoder.frozen_state()
        return cls(network, layout, frozen, len(latents_BCL), num_classes, params_of)

    @classmethod
    def of_dataset(cls, dataset: CheckpointDataset, network: nn.Module, num_classes: int) -> Candidates:
        """All checkpoints of a data set."""

        def params_of(rows: Sequence[int]) -> Tensor:
            return PickedRows(dataset.rows, list(rows)).read(0, len(rows), 0, dataset.layout.num_params)

        return cls(network, dataset.layout, dataset.frozen, len(dataset), num_classes, params_of)

    def log_probabilities(self, view: View, rows: Sequence[int] | None = None) -> Tensor:
        """Float32 [B,N,c], of all networks or of some."""
        return torch.cat([log_bNc for _, log_bNc in self._parts(view, range(self.number) if rows is None else rows)])

    def state_dicts(self, rows: Sequence[int]) -> list[dict[str, Tensor]]:
        """Complete ones, of some networks."""
        stacked = self.layout.stack(self.params_of(rows))
        return [
            {**self.frozen, **{name: tensor[row].clone() for name, tensor in stacked.items()}}
            for row in range(len(rows))
        ]

    def _parts(self, view: View, rows: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        answers = len(view) * self.num_classes
        step = max(1, _BYTES // (4 * max(self.layout.num_params, answers)))
        for start in range(0, len(rows), step):
            params_bP = self.params_of(rows[start : start + step])
            logits_bNc = predict_logits(self.network, self.layout, self.frozen, params_bP, view)
            yield len(params_bP), logits_bNc.log_softmax(dim=-1)


@dataclass(frozen=True, eq=False)
class Selection:
    """Networks chosen on validation out of candidates, with the temperatures that were set there.

    Attributes:
        rows: of the ensemble's networks; best: of the network that is best alone.
        temperature, single_temperature: of the ensemble, and of single networks.
    """

    candidates: Candidates
    rows: list[int]
    best: int
    temperature: float
    single_temperature: float

    @classmethod
    def of(cls, candidates: Candidates, view: View, number: int, select: str | None, calibrate: bool) -> Selection:
        """Holds what all candidates answer for the validation images `view`: 4 B N c bytes."""
        log_BNc = candidates.log_probabilities(view)
        return cls(
            candidates,
            choose(select, log_BNc, view.labels_N, number),
            choose("accuracy", log_BNc, view.labels_N, 1)[0],
            temperature_of_groups(log_BNc, view.labels_N, number) if calibrate else 1.0,
            temperature_of_groups(log_BNc, view.labels_N, 1) if calibrate else 1.0,
        )

    def ensemble(self, view: View, temperature: float | None = None) -> Judged:
        """The mean answer of the chosen networks; with its own temperature, unless another is given."""
        log_Nc = mean_log(self.candidates.log_probabilities(view, self.rows))
        return Judged.of(log_Nc[None], view.labels_N, self.temperature if temperature is None else temperature)

    def single_best(self, view: View) -> Judged:
        log_1Nc = self.candidates.log_probabilities(view, [self.best])
        return Judged.of(log_1Nc, view.labels_N, self.single_temperature)

    def single_mean(self, view: View) -> Judged:
        """The mean over all candidates, each alone."""
        parts = self.candidates._parts(view, range(self.candidates.number))
        judged = [(number, Judged.of(log, view.labels_N, self.single_temperature)) for number, log in parts]
        return Judged.mean(judged)
