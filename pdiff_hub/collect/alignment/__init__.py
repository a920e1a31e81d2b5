"""Puts the hidden units of many networks into one order."""

from pdiff_hub.collect.alignment.hidden_layers import find_hidden_layers, require_alignable
from pdiff_hub.collect.alignment.matching import AlignmentInfo, align_to_mean, align_to_reference, mean_of

__all__ = [
    "AlignmentInfo",
    "align_to_mean",
    "align_to_reference",
    "find_hidden_layers",
    "mean_of",
    "require_alignable",
]
