"""Opens a pipeline's files, from a folder or the Hub. Files are checked first, so that a false claim costs no memory.

Neither code nor pickles are downloaded. Errors name the file that is damaged or does not fit the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet1DModel
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME

from pdiff_hub.errors import PdiffError, one_line, require
from pdiff_hub.networks.building import sketching
from pdiff_hub.pipeline.schedulers import MOST_TRAIN_TIMESTEPS, load_scheduler
from pdiff_hub.records.components import load_component
from pdiff_hub.records.run_folder import companion_patterns
from pdiff_hub.records.shipped import hint, shipped
from pdiff_hub.safe_files import read_json
from pdiff_hub.training.memory import give_back
from pdiff_hub.transfer import is_repo_id, list_files, pull
from pdiff_hub.travelling.conditioner import Conditioner
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder
from pdiff_hub.travelling.pipeline_pdiff import (
    COMPONENTS,
    CONDITIONER,
    INDEX,
    MODELS,
    WEIGHTS,
    PDiffPipeline,
    require_known_format,
)

_KINDS: dict[str, Any] = {"autoencoder": ParamAutoencoder, "unet": UNet1DModel, CONDITIONER: Conditioner}
_SETTINGS = ("default_num_inference_steps", "format_version")
ARGUMENTS = (*COMPONENTS, CONDITIONER, *_SETTINGS)
"""What `load_arguments` takes instead of what is in the folder."""
_DEFAULT_STEPS = 50  # as in the pipeline's constructor
# Only these files are downloaded: no code, no pickles, nothing that is not ours.
_DOWNLOADED = (
    INDEX,
    "scheduler/scheduler_config.json",
    *(f"{name}/{file}" for name in MODELS for file in ("config.json", *WEIGHTS, SAFE_WEIGHTS_INDEX_NAME)),
    *companion_patterns(),
)
_MOST_FILES = 1000


def download(repo_id: str, *, most_bytes: int | None = None, **options: Any) -> Path:
    """Downloads a pipeline from the Hub; returns its folder in the client's cache. Options and errors as in `pull`.

    most_bytes: PdiffError, before anything is downloaded, if the files of the pipeline are larger together. The Hub is
    asked for their sizes.
    """
    if not is_repo_id(repo_id):
        raise FileNotFoundError(
            f"no pipeline folder {repo_id!r}; expected a folder with {INDEX}, or a Hub id such as 'user/name'."
        )
    try:
        if most_bytes is not None:
            options["revision"], sizes = list_files(
                repo_id, repo_type="model", revision=options.get("revision"), token=options.get("token")
            )
            ours = {path: size for path, size in sizes.items() if any(fnmatch(path, glob) for glob in _DOWNLOADED)}
            if len(ours) > _MOST_FILES or sum(ours.values()) > most_bytes:
                raise PdiffError(
                    f"{repo_id!r} has {len(ours):,} files of a pipeline with {sum(ours.values()):,} bytes, expected at "
                    f"most {_MOST_FILES} files with {most_bytes:,} bytes; open a smaller pipeline here."
                )
        return pull(repo_id, repo_type="model", what="pipeline", required=INDEX, allow_patterns=_DOWNLOADED, **options)
    except (FileNotFoundError, ConnectionError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ConnectionError
        missing = f"{repo_id!r} is no folder here, and {error}{hint(repo_id)}"
    raise kind(missing)


def load_arguments(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `PDiffPipeline`: components by name, and settings. Those not given come from the folder.

    This is a part of `PDiffPipeline.from_pretrained`; errors as there.
    """
    if not (folder / INDEX).is_file():
        other = shipped().get(str(folder))
        instead = "" if other is None else f" The shipped pipeline of this name is in {other}."
        raise FileNotFoundError(
            f"{folder} is no pipeline: it has no {INDEX}. `pdiff run` and `pdiff train` write such a folder.{instead}"
        )
    for name in set(COMPONENTS) & given.keys():
        # A compiled U-Net is no `UNet1DModel`, but all have a configuration.
        expected = f"a {getattr(_KINDS.get(name), '__name__', 'scheduler')}; leave it out to take the folder's"
        require(hasattr(given[name], "config"), name, given[name], expected)
    index = _read_index(folder / INDEX)
    arguments = {**{name: index[name] for name in _SETTINGS if name in index}, **given}
    for name, kind in _KINDS.items():
        if name not in given and index[name] is not None:
            arguments[name] = load_component(kind, folder / name, give_back)
    if "autoencoder" not in given:
        arguments["autoencoder"].release = give_back
    if "scheduler" not in given:
        steps = index.get("default_num_inference_steps", _DEFAULT_STEPS)
        channels = arguments["autoencoder"].config.latent_channels
        arguments["scheduler"] = load_scheduler(index["scheduler"], folder, steps, channels)
    return arguments


def _read_index(file: Path) -> dict[str, Any]:
    """The content of the index: settings, and a class name for each component that it has, or None."""
    index = read_json(file)
    require_known_format(index.get("format_version", 1), str(file))
    steps = index.get("default_num_inference_steps", _DEFAULT_STEPS)
    require(
        type(steps) is int and 1 <= steps <= MOST_TRAIN_TIMESTEPS,
        f"{file}: default_num_inference_steps",
        steps,
        f"a whole number from 1 to {MOST_TRAIN_TIMESTEPS:,}",
    )
    for name in (*COMPONENTS, CONDITIONER):
        entry = index.get(name)
        if name == CONDITIONER and (entry is None or entry == [None, None]):  # as diffusers writes that there is none
            index[name] = None
            continue
        pair = entry if isinstance(entry, list) and len(entry) == 2 else [None, None]
        kind = _KINDS.get(name)
        if not all(isinstance(each, str) for each in pair) or (kind is not None and pair[1] != kind.__name__):
            expected = "a scheduler" if kind is None else f"a {kind.__name__}"
            raise PdiffError(
                f"{file} describes no PDiffPipeline: its {name} is {str(entry)[:80]!r}, expected the file and class of "
                f"{expected}; restore the file."
            )
        index[name] = pair[1]
    return index


@torch.no_grad()
def rehearse(pipe: PDiffPipeline, folder: Path) -> None:
    """PdiffError if the U-Net of `pipe`, opened from `folder`, does not answer latents with latents.

    It is tried on shapes alone, without memory or arithmetic.
    """
    channels, length = pipe.autoencoder.config.latent_channels, pipe.autoencoder.config.latent_length
    sketch = {name: tensor.to("meta") for name, tensor in pipe.unet.state_dict().items()}
    noise = torch.empty(1, pipe.unet.config.in_channels, length, device="meta")
    file = folder / "unet" / "config.json"
    try:
        with sketching(len(sketch)):
            answer = torch.func.functional_call(pipe.unet, sketch, (noise, torch.zeros(1, dtype=torch.int64)))
    except Exception as error:  # a made-up config can make it raise anything
        raise PdiffError(
            f"{file} describes a U-Net that cannot take latents of {channels} x {length} ({one_line(error)}); restore "
            "the folder."
        ) from error
    if (found := list(answer.sample.shape)) != [1, channels, length]:
        raise PdiffError(
            f"{file} describes a U-Net whose answer is of shape {found[1:]}, expected that of a latent, "
            f"[{channels}, {length}]; restore the folder."
        )
