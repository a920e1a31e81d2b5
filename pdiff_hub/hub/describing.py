"""What a folder or a Hub repository holds, in a line or two: `pdiff info`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from pdiff_hub.checkpoints.index import read_index
from pdiff_hub.ensembles import describe_ensemble
from pdiff_hub.errors import printable, shortened
from pdiff_hub.hub.kinds import dataset_index, kind_of, kind_of_folder, network_files
from pdiff_hub.hub.networks.generated import CONFIG
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.records import NetworksFolder, Results, RunFolder
from pdiff_hub.records.shipped import folder_or_shipped
from pdiff_hub.safe_files import read_json
from pdiff_hub.safe_files.tensors import read_header
from pdiff_hub.tasks.normalization import shown
from pdiff_hub.travelling.conditioner import ConditionSpec
from pdiff_hub.travelling.param_autoencoder import ParamLayout

# Of `generated.json`: what people want to know, in this order.
_TOLD = (
    *("pipeline", "revision", "seed", "index", "num_models", "num_inference_steps", "num_labels", "classes"),
    *("condition", "guidance_scale", "scheduler"),
)
_FORMATS = (".safetensors", ".pt2", ".onnx")


def describe(
    path_or_id: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> tuple[str, Results | None]:
    """A line or two about what a folder, shipped pipeline or Hub repository holds, and a pipeline's results, if any."""
    name, folder = str(path_or_id), folder_or_shipped(path_or_id)
    kind = kind_of(name, revision=revision, token=token) if folder is None else kind_of_folder(folder)
    if kind == "network":
        return _networks(folder or network_files(name, revision, token)), None
    if kind == "ensemble":
        return describe_ensemble(folder or name, revision=revision, token=token), None
    if kind == "pipeline":
        pipe = PDiffPipeline.from_pretrained(path_or_id, revision=revision, token=token)
        config: Any = pipe.autoencoder.config
        assert pipe.folder is not None
        text = printable(
            f"pipeline: {pipe.autoencoder.layout}; {config.form} autoencoder, latents {config.latent_channels} x "
            f"{config.latent_length}; {type(pipe.scheduler).__name__}, {pipe.config.default_num_inference_steps} steps"
            f"{_normalized(config.task)}"
        )
        return text + _asked(pipe.conditions), RunFolder(pipe.folder).read_results()
    index = read_index(folder or dataset_index(name, revision, token))
    layout = ParamLayout.from_dict(index["layout"])
    spec = None if index.get("conditions") is None else ConditionSpec.from_dict(index["conditions"])
    network = index["network"].get("name", "unknown")
    text = printable(
        f"data set: {index['num_checkpoints']} checkpoints, {layout}, network {network}{_normalized(index.get('task'))}"
    )
    return text + _asked(spec), None


def _normalized(task: Any) -> str:
    """How the task's images are normalised; empty if by its training split, as usual."""
    text = shown(task) if isinstance(task, dict) else None
    return "" if text is None else f", images normalised by {text}"


def _asked(spec: ConditionSpec | None) -> str:
    """What can be asked for, with an example as the command takes it; empty if nothing can."""
    if spec is None:
        return ""
    if spec.kind in ("bits", "class"):
        what = f"{'some' if spec.kind == 'bits' else 'one'} of {', '.join(spec.names)}"
    elif spec.kind == "text":
        return "\n" + printable(f"ask for {spec.name}: the {spec.size} numbers that {spec.names[0]} gives for a text")
    else:
        spans = [f"{low:g} to {high:g}" for low, high in zip(spec.low, spec.high, strict=True)]
        names = spec.names or ("",) * len(spans)
        what = ", ".join(f"{name} {span}".strip() for name, span in zip(names, spans, strict=True))
    value = spec.example()[spec.name]
    example = ",".join(
        f"{each:g}" if isinstance(each, float) else each for each in ([value] if not isinstance(value, list) else value)
    )
    return "\n" + printable(f"ask for {spec.name}: {what} (--condition {spec.name}={example})")


def _networks(folder: Path) -> str:
    """Of generated networks, written by `pdiff generate` or `pdiff fit` or published: what they are, and from where."""
    place = NetworksFolder(folder)
    origin = read_json(place.origin) if place.origin.is_file() else {}
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    files = sorted(file for file in folder.glob("model*") if file.suffix in _FORMATS)
    # Without a number it is one network, perhaps in several files.
    own = [file for file in files if re.fullmatch(r"model-\d+", file.stem)]
    parts = [file for file in (own[:1] or files) if file.suffix == _FORMATS[0]]
    tensors = [stored for file in parts for stored in read_header(file).values()]
    numbers = sum(math.prod(stored.shape) for stored in tensors)
    network = config.get("network") or origin.get("network")
    called = network.get("name") if isinstance(network, dict) else config.get("model_type")
    what = f"{len(own)} generated networks" if len(own) > 1 else "generated network"
    size = f"{numbers:,} numbers in {len(tensors)} tensors" if tensors else ", ".join(file.name for file in files[:1])
    text = f"{what}: {'' if called is None else f'{called}, '}{size or 'no file of it is here'}"
    told = [f"{key} {shortened(origin[key])}" for key in _TOLD if origin.get(key) is not None]
    made = f"made with {', '.join(told)}" if told else f"how it was made is not known: there is no {place.origin.name}"
    return f"{printable(text)}\n{printable(made)}"
