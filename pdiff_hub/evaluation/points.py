"""Networks of a method as points: accuracy against similarity to the originals, or against novelty (1 - similarity).

Shapes: B networks of a method.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pdiff_hub.errors import PdiffError


@dataclass(frozen=True, eq=False)
class MethodPoints:
    """One point per network. The similarity is undefined if neither the network nor any original makes an error.

    Attributes:
        accuracy_B: on test, fractions 0..1.
        similarity_B: highest IoU of errors to an original, 0..1; NaN if undefined.

    Raises ValueError for shapes other than two equal [B], for no network, and for numbers outside 0..1.
    """

    accuracy_B: Tensor
    similarity_B: Tensor

    def __post_init__(self) -> None:
        shapes = [list(self.accuracy_B.shape), list(self.similarity_B.shape)]
        if shapes[0] != shapes[1] or self.accuracy_B.ndim != 1 or len(self.accuracy_B) == 0:
            raise PdiffError(
                f"accuracies have shape {shapes[0]}, similarities {shapes[1]}; expected one of each per network, [B]."
            )
        check_fractions("accuracies", self.accuracy_B)
        check_fractions("similarities", self.similarity_B[~self.similarity_B.isnan()])

    @property
    def novelty_B(self) -> Tensor:
        """1 - similarity (arXiv 2506.07998), float64 on the CPU."""
        return 1 - self.similarity_B.cpu().double()

    @property
    def num_undefined(self) -> int:
        """The number of networks without a similarity; they have no place on a frontier."""
        return int(self.similarity_B.isnan().sum())

    def by_novelty(self) -> tuple[Tensor, Tensor] | None:
        """Accuracy and novelty, float64, of networks with a novelty, the most novel first; None if there is none."""
        has = ~self.similarity_B.isnan().cpu()
        if not bool(has.any()):
            return None
        novelty_B, order_B = self.novelty_B[has].sort(descending=True, stable=True)
        return self.accuracy_B.cpu().double()[has][order_B], novelty_B


def check_fractions(what: str, values: Tensor) -> None:
    """Raise ValueError unless all values lie in 0..1. `what` names them in the message."""
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise PdiffError(f"{what} run outside 0..1; expected fractions.")
