"""A pipeline as people meet it, and its folder: how it is opened, what is known of it, how it goes to the Hub."""

from pdiff_hub.pipeline.card import render_card, write_card
from pdiff_hub.pipeline.pipeline import PDiffPipeline
from pdiff_hub.pipeline.sampling import sample

__all__ = ["PDiffPipeline", "render_card", "sample", "write_card"]
