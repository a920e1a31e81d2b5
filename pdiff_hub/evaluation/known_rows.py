"""Which checkpoints of a data set a generator was trained on, and which are new to it."""

from __future__ import annotations

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder


def split_known(
    dataset: CheckpointDataset, autoencoder: ParamAutoencoder
) -> tuple[CheckpointDataset, CheckpointDataset | None]:
    """The checkpoints that the pipeline was trained on, and those that it was not; None if there are none.

    The latter are the rows that were held out, and those that were appended to the set since. ValueError for a data set
    other than the pipeline's own, of which neither could be told. Pipelines of version 0.1.0 do not know their set: all
    of any set counts as trained on.
    """
    held_out, num_rows = set(autoencoder.config.held_out), autoencoder.config.num_checkpoints
    if num_rows is None:
        return dataset, None
    if len(dataset) < num_rows or dataset.digest(num_rows) != autoencoder.config.checkpoints_sha256:
        raise PdiffError(
            f"this is not the data set that the pipeline was trained on ({num_rows} checkpoints, here {len(dataset)}), "
            "or its rows have changed or are in another order: which of them the pipeline knows cannot be told. Give "
            "its own data set; rows may have been appended to it."
        )
    new = sorted(held_out | set(range(num_rows, len(dataset))))
    trained_on = dataset.select_rows([row for row in range(num_rows) if row not in held_out])
    return trained_on, dataset.select_rows(new) if new else None
