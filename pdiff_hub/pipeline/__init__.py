"""The pipeline that users work with, and its folder: how to open it, what is known of it, how to push it."""

from pdiff_hub.pipeline.card import render_card, write_card
from pdiff_hub.pipeline.exporting import export_network
from pdiff_hub.pipeline.pipeline import PDiffPipeline
from pdiff_hub.pipeline.sampling import sample

__all__ = ["PDiffPipeline", "export_network", "render_card", "sample", "write_card"]
