"""Pipelines, data sets and single generated networks as Hub repositories, each with a card rendered from measurements.

push_pipeline_folder              pushes a pipeline in one commit (and, if asked, its checkpoints before it)
push_folder, pull, describe       push, download or describe a pipeline or a data set (networks: the latter two)
push_network, GeneratedNetwork    publish one generated network; open it again
render_card, write_card           a pipeline's card
"""

from pdiff_hub.hub.describing import describe
from pdiff_hub.hub.folders import pull, push_folder, push_pipeline_folder
from pdiff_hub.hub.kinds import kind_of
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
