"""Puts the hidden units of many networks into one order."""

from pdiff_hub.collect.alignment.hidden_layers import find_hidden_layers
from pdiff_hub.collect.alignment.matching import AlignmentInfo, align_to_mean

__all__ = ["AlignmentInfo", "align_to_mean", "find_hidden_layers"]
