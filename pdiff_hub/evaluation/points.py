"""Networks of a method as points: accuracy against novelty, of which there are two kinds.

Novelty of errors: 1 - the highest IoU of errors to an original (arXiv 2506.07998), 0..1. Noise wins it easily.
Novelty by distance: the L2 distance to the nearest original, over the mean of that distance among originals, 0 or more.
At 1, a network is as far from the originals as they are from each other.
Shapes: B networks of a method.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pdiff_hub.errors import PdiffError

Novelty = Literal["errors", "distance"]


@dataclass(frozen=True, eq=False)
class MethodPoints:
    """One point per network. Make it with `from_similarities` or `from_distances`.

    Attributes:
        accuracy_B: on test, fractions 0..1.
        novelty_B: 0 or more; NaN if undefined.
        kind: what the novelty measures.

    Raises ValueError for shapes other than two equal [B], for no network, and for accuracies outside 0..1.
    """

    accuracy_B: Tensor
    novelty_B: Tensor
    kind: Novelty

    def __post_init__(self) -> None:
        shapes = [list(self.accuracy_B.shape), list(self.novelty_B.shape)]
        if shapes[0] != shapes[1] or self.accuracy_B.ndim != 1 or len(self.accuracy_B) == 0:
            raise PdiffError(
                f"accuracies have shape {shapes[0]}, novelties {shapes[1]}; expected one of each per network, [B]."
            )
        check_fractions("accuracies", self.accuracy_B)

    @classmethod
    def from_similarities(cls, accuracy_B: Tensor, similarity_B: Tensor) -> MethodPoints:
        """Points by novelty of errors, float64 on the CPU.

        similarity_B: highest IoU of errors to an original, 0..1; NaN if neither the network nor any original makes an
        error. Raises ValueError for numbers outside 0..1.
        """
        check_fractions("similarities", similarity_B[~similarity_B.isnan()])
        return cls(accuracy_B.cpu().double(), 1 - similarity_B.cpu().double(), "errors")

    @classmethod
    def from_distances(cls, accuracy_B: Tensor, nearest_B: Tensor, own: float) -> MethodPoints:
        """Points by novelty of distance, float64 on the CPU.

        nearest_B: L2 distance to the nearest original, 0 or more. own: mean over originals of that distance, each
        compared with the others; above 0. Raises ValueError for other numbers, and for NaN and Inf.
        """
        if not bool(((nearest_B >= 0) & nearest_B.isfinite()).all()):
            raise PdiffError("distances hold NaN, Inf or numbers below 0; expected L2 distances.")
        if not 0 < own < math.inf:
            raise PdiffError(
                f"the originals' own distance is {own}; expected a finite number above 0. If each original has an "
                "exact copy among them, leave out the copies."
            )
        return cls(accuracy_B.cpu().double(), nearest_B.cpu().double() / own, "distance")

    @property
    def num_undefined(self) -> int:
        """The number of networks without a novelty; they have no place on a frontier."""
        return int(self.novelty_B.isnan().sum())

    def by_novelty(self) -> tuple[Tensor, Tensor] | None:
        """Accuracy and novelty of the networks with a novelty, the most novel first; None if there is none."""
        has_B = ~self.novelty_B.isnan()
        if not bool(has_B.any()):
            return None
        novelty_B, order_B = self.novelty_B[has_B].sort(descending=True, stable=True)
        return self.accuracy_B[has_B][order_B], novelty_B


def shared_kind(points: Iterable[MethodPoints]) -> Novelty:
    """The kind of novelty that all methods have. `points` must not be empty. Raises ValueError for different kinds."""
    kinds = sorted({each.kind for each in points})
    if len(kinds) > 1:
        raise PdiffError(f"the points have novelties of different kinds: {' and '.join(kinds)}; expected one kind.")
    return kinds[0]


def check_fractions(what: str, values: Tensor) -> None:
    """Raise ValueError unless all values lie in 0..1. `what` names them in the message."""
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise PdiffError(f"{what} run outside 0..1; expected fractions.")
