"""How good networks are on a task, and whose errors theirs are: every method of a report goes through this one way.

Shapes: B networks, K originals, P parameters, N test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pdiff_hub.checkpoints.rows import Rows, as_rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.distances import summarise_accuracy
from pdiff_hub.prediction.predictions import Predictions, SplitImages, evaluate
from pdiff_hub.tasks import Split, Task
from pdiff_hub.travelling.param_autoencoder import ParamLayout


@dataclass(frozen=True, eq=False)
class Judged:
    """validation_accuracy_B: fractions, for choosing; test: for reporting only."""

    validation_accuracy_B: Tensor
    test: Predictions

    def summary(self) -> dict[str, float]:
        """{"best", "mean", "median", "std"} on test, the best one chosen on validation."""
        return summarise_accuracy(self.validation_accuracy_B, self.test.accuracy_B)


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges networks of one architecture on one task.

    network: any instance; its weights are not looked at. frozen: the tensors that `layout` leaves out.
    """

    network: nn.Module
    task: Task
    layout: ParamLayout
    frozen: Mapping[str, Tensor]

    def __call__(self, params_BP: Tensor | Rows) -> Judged:
        """params_BP: float32 [B,P], raw weight units. ValueError if P is not that of the layout."""
        rows = as_rows(params_BP)
        if rows.num_params != self.layout.num_params:
            raise PdiffError(
                f"parameters have shape {[rows.num_rows, rows.num_params]}, expected "
                f"[*, {self.layout.num_params}]: originals and generated networks have different layouts."
            )
        return Judged(self._on(self.task.validation, rows).accuracy_B, self._on(self.task.test, rows))

    def test_images(self) -> SplitImages:
        """The images of the test split, normalised a slice at a time."""
        return SplitImages(self.task, self.task.test)

    def _on(self, split: Split, rows: Rows) -> Predictions:
        return evaluate(self.network, self.layout, self.frozen, rows, SplitImages(self.task, split), split.labels_N)
