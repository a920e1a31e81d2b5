"""A step of a fine-tune on a GPU, captured once and replayed: a small network's step is mostly waiting for Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pdiff_hub.networks.capturing import captured_or_said, warmed_up_for_nothing


class ReplayedStep:
    """Takes steps as `descend(inputs, labels)` does; where it cannot be captured, a warning says so and it is called.

    changed: gives the tensors that a step changes. inputs, labels: of any step, for their shapes.
    """

    def __init__(
        self,
        descend: Callable[[Tensor, Tensor], Tensor],
        changed: Callable[[], Sequence[Tensor]],
        inputs: Tensor,
        labels: Tensor,
    ) -> None:
        self._descend, self._inputs, self._labels = descend, inputs.clone(), labels.clone()
        with warmed_up_for_nothing(changed):
            self._replay = captured_or_said("collect: a step", self._run, inputs.device)

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss, a new tensor."""
        if self._replay is None:
            return self._descend(inputs, labels)
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        self._replay()
        return self._loss.clone()

    def _run(self) -> None:
        self._loss = self._descend(self._inputs, self._labels)
