"""The figures, as PNG and SVG, drawn with matplotlib's object interface; each method has one colour and one marker.

Each function takes its data and `stem`, a path without suffix. It writes `stem`.png (300 dpi) and `stem`.svg, whole or
not at all, and returns both paths. The same data gives the same bytes. Figures have no headings: the report has them.
"""

from pdiff_hub.evaluation.figures.accuracy_similarity import accuracy_similarity_figure
from pdiff_hub.evaluation.figures.checkpoints import checkpoints_figure
from pdiff_hub.evaluation.figures.copies import COPIES_SHOWN, copies_figure
from pdiff_hub.evaluation.figures.ensembles import ensembles_figure
from pdiff_hub.evaluation.figures.frontier import frontier_figure
from pdiff_hub.evaluation.figures.heat_maps import parameter_heat_maps
from pdiff_hub.evaluation.figures.latents import latents_figure
from pdiff_hub.evaluation.figures.requests import fit_figure, requests_figure
from pdiff_hub.evaluation.figures.similarity import similarity_figure
from pdiff_hub.evaluation.figures.style import METHOD_STYLE, MethodStyle
from pdiff_hub.evaluation.figures.training import training_figure
from pdiff_hub.evaluation.figures.trajectories import trajectories_figure

__all__ = [
    "COPIES_SHOWN",
    "METHOD_STYLE",
    "MethodStyle",
    "accuracy_similarity_figure",
    "checkpoints_figure",
    "copies_figure",
    "ensembles_figure",
    "fit_figure",
    "frontier_figure",
    "latents_figure",
    "parameter_heat_maps",
    "requests_figure",
    "similarity_figure",
    "training_figure",
    "trajectories_figure",
]
