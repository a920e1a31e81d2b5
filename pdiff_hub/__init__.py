"""Generate the weights of neural networks by diffusion, judge what was generated, and share it on the Hub.

The names below load on first use, so that `import pdiff_hub` is quick and does not load torch:

    ParamLayout          which numbers of a network are generated; network <-> vector
    ParamAutoencoder     vector <-> latent
    PDiffPipeline        noise -> working networks; a call returns `PDiffPipelineOutput`
    CheckpointDataset    a set of checkpoints, on disk or on the Hub
    Ensemble             several networks that answer as one
    ConditionSpec        what its networks can be asked for
    PDiffTrainer         a whole run from Python, with `PDiffArguments` and `PDiffCallback`
    load_task            the images that networks are trained and judged on
    build_network        a network from its spec
    export_network       generated networks as one file that runs without this package
"""

import importlib

TYPE_CHECKING = False  # that of `typing`: importing it would be half of the time that this file takes
if TYPE_CHECKING:
    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.ensembles import Ensemble
    from pdiff_hub.networks import build_network
    from pdiff_hub.pipeline import PDiffPipeline, export_network
    from pdiff_hub.runs.arguments import PDiffArguments
    from pdiff_hub.runs.callbacks import PDiffCallback
    from pdiff_hub.runs.trainer import PDiffTrainer
    from pdiff_hub.tasks import load_task
    from pdiff_hub.travelling.conditioner import ConditionSpec
    from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout
    from pdiff_hub.travelling.pipeline_pdiff import PDiffPipelineOutput

__version__ = "0.2.0.dev0"

__all__ = [
    "CheckpointDataset",
    "ConditionSpec",
    "Ensemble",
    "PDiffArguments",
    "PDiffCallback",
    "PDiffPipeline",
    "PDiffPipelineOutput",
    "PDiffTrainer",
    "ParamAutoencoder",
    "ParamLayout",
    "__version__",
    "build_network",
    "export_network",
    "load_task",
]

_HOME = {
    "CheckpointDataset": "checkpoints",
    "ConditionSpec": "travelling.conditioner",
    "Ensemble": "ensembles",
    "PDiffArguments": "runs.arguments",
    "PDiffCallback": "runs.callbacks",
    "PDiffPipeline": "pipeline",
    "PDiffPipelineOutput": "travelling.pipeline_pdiff",
    "PDiffTrainer": "runs.trainer",
    "ParamAutoencoder": "travelling.param_autoencoder",
    "ParamLayout": "travelling.param_autoencoder",
    "build_network": "networks",
    "export_network": "pipeline",
    "load_task": "tasks",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next use skips this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
