"""Which checkpoints of a data set a generator was trained on, and which are new to it.

Shapes: K training checkpoints, C x L latents.
"""

from __future__ import annotations

import torch

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder

# In standard deviations of the training checkpoints. One of 200 rows that is exchanged moves the mean by 0.005 to 0.01,
# weights in half precision by less than 0.001.
_SAME_MEAN = 0.004


def split_known(
    dataset: CheckpointDataset, autoencoder: ParamAutoencoder
) -> tuple[CheckpointDataset, CheckpointDataset | None]:
    """The checkpoints that the pipeline was trained on, and those that it was not; None if it does not name any.

    It names the latter by their rows, so ValueError for a data set other than its own: with fewer rows, or in whose
    place the mean of the scaled latents is not 0, as it is of the checkpoints that the scale was fitted to.
    """
    held_out = sorted(autoencoder.config.held_out)
    if not held_out:
        return dataset, None
    if held_out[-1] >= len(dataset):
        raise PdiffError(
            f"the data set has {len(dataset)} checkpoints, and the pipeline was not trained on rows up to "
            f"{held_out[-1]} of its own: which of these it knows cannot be told; give the data set that it was "
            "trained on, whole."
        )
    trained_on = dataset.select_rows(sorted(set(range(len(dataset))) - set(held_out)))
    with torch.no_grad():
        mean_CL = autoencoder.encode_slices(trained_on.read_slice).mean(dim=0)
    if (distance := float(mean_CL.square().mean().sqrt())) > _SAME_MEAN:
        raise PdiffError(
            f"this is not the data set that the pipeline was trained on, or its rows are in another order: their mean "
            f"lies {distance:.2g} standard deviations from that of the training checkpoints, expected 0. So which rows "
            "the pipeline knows cannot be told; give its own data set, as it was when training read it."
        )
    return trained_on, dataset.select_rows(held_out)
