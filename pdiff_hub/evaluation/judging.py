"""How good networks are on a task, and which images they get wrong: every method of a report is judged here.

Shapes: B networks, K originals, P parameters, N test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from pdiff_hub.checkpoints.rows import Rows, as_rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.prediction.predictions import Kept, Listener, Predictions, SplitImages, evaluate
from pdiff_hub.records import AccuracySummary
from pdiff_hub.tasks import Split, Task
from pdiff_hub.travelling.param_autoencoder import ParamLayout


@dataclass(frozen=True, eq=False)
class Judged:
    """validation: with the loss, used to choose a network. test: used for reporting only."""

    validation: Predictions
    test: Predictions

    @property
    def validation_accuracy_B(self) -> Tensor:
        """Fractions 0..1."""
        return self.validation.accuracy_B

    def summary(self) -> AccuracySummary:
        """The accuracies on test; the best network is the one chosen on validation."""
        return summarise_accuracy(self.validation_accuracy_B, self.test.accuracy_B)


@dataclass(frozen=True, eq=False)
class Judge:
    """Judges networks of one architecture on one task.

    network: any instance of the architecture; its weights are not used. frozen: the tensors that `layout` leaves out.
    What all networks share is computed for the first set that is judged, and kept.
    """

    network: nn.Module
    task: Task
    layout: ParamLayout
    frozen: Mapping[str, Tensor]
    _of_validation: Kept = field(default_factory=Kept, init=False)
    _of_test: Kept = field(default_factory=Kept, init=False)

    def __call__(self, params_BP: Tensor | Rows, listener: Listener | None = None) -> Judged:
        """Judge params_BP: float32 [B,P], raw weight units. Raises ValueError if P is not that of the layout.

        listener: hears the answers for the test images.
        """
        rows = as_rows(params_BP)
        if rows.num_params != self.layout.num_params:
            raise PdiffError(
                f"parameters have shape {[rows.num_rows, rows.num_params]}, expected "
                f"[*, {self.layout.num_params}]: originals and generated networks have different layouts."
            )
        return Judged(
            self._on(self.task.validation, self._of_validation, rows, with_loss=True),
            self._on(self.task.test, self._of_test, rows, listener=listener),
        )

    def test_images(self) -> SplitImages:
        """The images of the test split, normalised slice by slice."""
        return SplitImages(self.task, self.task.test)

    def _on(
        self, split: Split, kept: Kept, rows: Rows, *, with_loss: bool = False, listener: Listener | None = None
    ) -> Predictions:
        return evaluate(
            self.network,
            self.layout,
            self.frozen,
            rows,
            SplitImages(self.task, split),
            split.labels_N,
            with_loss=with_loss,
            listener=listener,
            kept=kept,
        )


def summarise_accuracy(validation_accuracy_B: Tensor, test_accuracy_B: Tensor) -> AccuracySummary:
    """Best, mean, median and standard deviation of accuracies on test, fractions 0..1.

    "best" is the test accuracy of the network that is best on *validation* (the first if there are several), not the
    highest test accuracy. "std" is unbiased (n - 1), and 0 for one network. Raises ValueError for shapes other than two
    equal [B], for no network, and for numbers outside 0..1.
    """
    if validation_accuracy_B.ndim != 1 or validation_accuracy_B.shape != test_accuracy_B.shape:
        raise PdiffError(
            f"validation accuracies have shape {list(validation_accuracy_B.shape)}, test accuracies "
            f"{list(test_accuracy_B.shape)}; expected one of each per network, [B]."
        )
    if len(test_accuracy_B) == 0:
        raise PdiffError("there are no accuracies to summarise; expected at least one network.")
    for name, accuracy_B in (("validation", validation_accuracy_B), ("test", test_accuracy_B)):
        if not bool(((accuracy_B >= 0) & (accuracy_B <= 1)).all()):  # NaN included
            raise PdiffError(f"{name} accuracies run outside 0..1; expected fractions, not percent, and no NaN.")
    test_B = test_accuracy_B.double()
    return AccuracySummary(
        best=float(test_B[int(validation_accuracy_B.argmax())]),
        mean=float(test_B.mean()),
        median=float(test_B.quantile(0.5)),
        std=float(test_B.std()) if len(test_B) > 1 else 0.0,
    )
