"""Pipelines, data sets and single generated networks as Hub repositories, each with a card rendered from measurements.

push_pipeline_folder              a pipeline (and, if asked, its checkpoints), in one commit
push_folder, pull, describe       a folder with a pipeline or a data set, to the Hub and back
push_network, GeneratedNetwork    one generated network; opens it again
render_card, write_card           a pipeline's card
"""

from pdiff_hub.hub.folders import describe, kind_of, pull, push_folder, push_pipeline_folder
from pdiff_hub.hub.networks import GeneratedNetwork, push_network
from pdiff_hub.pipeline import render_card, write_card

__all__ = [
    "GeneratedNetwork",
    "describe",
    "kind_of",
    "pull",
    "push_folder",
    "push_network",
    "push_pipeline_folder",
    "render_card",
    "write_card",
]
