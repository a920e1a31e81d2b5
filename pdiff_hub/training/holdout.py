"""Which checkpoints are held out: networks that no generator is trained on, by which training is ended and judged.

A held-out network is of use only if it has no near twin among the training networks. Rows of one training run that
follow each other are near twins, so whole stretches of a run are held out, and of many runs whole runs.
Shapes: K training checkpoints, H held-out ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import evenly_spaced
from pdiff_hub.errors import PdiffError

_LEAST = 8  # fewer say little about a distribution; but at most
_LARGEST_SHARE = 0.2  # of the checkpoints are held out to reach them
_TRAINED_ON = 3  # at least; without a third one, nothing has a spread to judge by
_STRETCHES = 2  # docs/measurements.md, "Copying": with more of them, each is short, and all its rows have near twins
_RUNS = 5  # whole runs are held out from this many on; of fewer, one is too large a share


def split_rows(dataset: CheckpointDataset, holdout: float) -> tuple[list[int], list[int]]:
    """Rows to train on, and rows to hold out, both ascending; at least three stay for training.

    About the share `holdout` of the rows is held out; of small sets up to a fifth, to reach 8. None is if there are
    fewer than 4 checkpoints, or if `holdout` is 0. Runs are told apart by the column `run` of the metadata.
    ValueError for one checkpoint.
    """
    if len(dataset) < 2:
        raise PdiffError(
            f"the data set has {len(dataset)} checkpoint, expected at least 2: one checkpoint has no "
            "distribution to learn. Collect more."
        )
    runs = [row.get("run") for row in dataset.metadata]
    count = 0
    if holdout > 0:
        least = min(_LEAST, int(_LARGEST_SHARE * len(runs)))
        count = max(min(max(round(holdout * len(runs)), least, 1), len(runs) - _TRAINED_ON), 0)
    held_out = set(_of_runs(runs, count) or _of_one_run(len(runs), count))
    return [row for row in range(len(runs)) if row not in held_out], sorted(held_out)


def _of_runs(runs: Sequence[str | None], count: int) -> list[int]:
    """The rows of whole runs, about `count` together; none if there are too few runs."""
    names = list(dict.fromkeys(runs))
    if len(names) < _RUNS:
        return []
    number = max(round(count * len(names) / len(runs)), min(count, 1))
    picked = {names[index] for index in evenly_spaced(len(names), number)}
    rows = [row for row, name in enumerate(runs) if name in picked]
    return rows if len(rows) <= max(count, len(runs) // 2) else []


def _of_one_run(num_rows: int, count: int) -> list[int]:
    """`count` rows as two stretches, each in the middle of its half; three rows and fewer are one stretch."""
    stretches = _STRETCHES if count >= 2 * _STRETCHES else 1
    rows: list[int] = []
    for index, middle in enumerate(evenly_spaced(num_rows, stretches)):
        length = count // stretches + (index < count % stretches)
        first = min(max(middle - length // 2, 0), num_rows - length)
        rows.extend(range(first, first + length))
    return rows
