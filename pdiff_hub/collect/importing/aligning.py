"""Imported networks that were trained independently: their hidden units are put into one order, as for populations.

Shapes: K networks, P parameters, N images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdiff_hub.collect.alignment import align_to_mean, require_alignable
from pdiff_hub.errors import PdiffError, require
from pdiff_hub.travelling.param_autoencoder import ParamLayout


@dataclass(frozen=True, eq=False)
class Alignment:
    """How imported networks are aligned to their mean (`align_to_mean`).

    Attributes:
        network: of their architecture; its numbers do not matter.
        inputs_NX: a few images as the network takes them, on which outputs are compared.
        rounds: 1 or more; how often all networks are matched to a new mean network.
        seed: decides the order in which layers are visited.
    """

    network: nn.Module
    inputs_NX: Tensor
    rounds: int = 4
    seed: int = 0

    def require_fit(self, layout: ParamLayout) -> None:
        """ValueError, before any file is read, if networks of this layout cannot be aligned; it says why not."""
        require(type(self.rounds) is int and self.rounds >= 1, "align_rounds", self.rounds, "an integer from 1")
        state = self.network.state_dict()
        if pairs := [entry.name for entry in layout.entries if state[entry.name].is_complex()]:
            raise PdiffError(
                f"cannot align these networks: their tensor {pairs[0]!r} is {state[pairs[0]].dtype}, and units are "
                "matched by real numbers only; set align to false."
            )
        for entry in layout.frozen:
            tensor = state[entry.name]
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            infinite = bool(torch.isinf(tensor.float()).any())
            what = "holds infinities, as masks do, and so is not generated" if infinite else "is not selected"
            remedy = "" if infinite else "select all (buffers too), or "
            raise PdiffError(
                f"cannot align these networks: their float tensor {entry.name!r} {what}, and a hidden unit changes "
                f"places with everything that may belong to it; {remedy}set align to false."
            )
        require_alignable(self.network, self.inputs_NX)

    def settings(self) -> dict[str, int]:
        """What decides the outcome, for the data set's description."""
        return {"rounds": self.rounds, "seed": self.seed}

    def apply(self, params_KP: Tensor, layout: ParamLayout, frozen: dict[str, Tensor]) -> dict[str, Any]:
        """Aligns the networks in place; -> what was found and done, for the data set's description."""
        info = align_to_mean(
            self.network, params_KP, layout, self.inputs_NX, frozen=frozen, rounds=self.rounds, seed=self.seed
        )
        return info.to_dict()
