"""`CheckpointDataset`: checkpoints of one network, in memory, in a folder or on the Hub."""

from pdiff_hub.checkpoints.checks import check_finite
from pdiff_hub.checkpoints.dataset import CheckpointDataset

__all__ = ["CheckpointDataset", "check_finite"]
