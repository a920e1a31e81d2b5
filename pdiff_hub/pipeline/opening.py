"""Opens a pipeline's files, from a folder or the Hub. Files are checked first, so that a false claim costs no memory.

Neither code nor pickles are downloaded. Errors name the file that is damaged or does not fit the rest.
"""

from __future__ import annotations

import difflib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin, UNet1DModel
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME
from torch import nn

from pdiff_hub.errors import PdiffError
from pdiff_hub.records import fingerprint
from pdiff_hub.records.run_folder import companion_patterns
from pdiff_hub.safe_files import read_json
from pdiff_hub.training.memory import give_back
from pdiff_hub.transfer import is_repo_id, pull
from pdiff_hub.travelling.conditioner import Conditioner
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder
from pdiff_hub.travelling.pipeline_pdiff import COMPONENTS, CONDITIONER, INDEX, WEIGHTS, require_known_format

_SETTINGS = ("default_num_inference_steps", "format_version")
# Only these files are downloaded: no code, no pickles, nothing that is not ours.
_DOWNLOADED = (
    INDEX,
    "*/config.json",
    "*/scheduler_config.json",
    *(f"*/{name}" for name in WEIGHTS),
    f"*/{SAFE_WEIGHTS_INDEX_NAME}",
    *companion_patterns(),
)
_MOST_TRAIN_TIMESTEPS = 1_000_000
_MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


def download(repo_id: str, **options: Any) -> Path:
    """Downloads a pipeline from the Hub; returns its folder in the client's cache. Options and errors as in `pull`."""
    if not is_repo_id(repo_id):
        raise FileNotFoundError(
            f"no pipeline folder {repo_id!r}; expected a folder with {INDEX}, or a Hub id such as 'user/name'."
        )
    try:
        return pull(repo_id, repo_type="model", what="pipeline", required=INDEX, allow_patterns=_DOWNLOADED, **options)
    except FileNotFoundError as error:
        missing = f"{repo_id!r} is no folder here, and {error}"
    raise FileNotFoundError(missing)


def load_arguments(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `PDiffPipeline`: components by name, and settings. Those not given come from the folder.

    This is a part of `PDiffPipeline.from_pretrained`; errors as there.
    """
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} is no pipeline: it has no {INDEX}. `pdiff run` and `pdiff train` write such a folder."
        )
    index = read_json(folder / INDEX)
    if not all(isinstance(index.get(name), list) and len(index[name]) == 2 for name in COMPONENTS):
        raise PdiffError(
            f"{folder / INDEX} describes no PDiffPipeline: expected an autoencoder, a unet and a scheduler."
        )
    require_known_format(index.get("format_version", 1), str(folder / INDEX))
    unknown = set(given) - {*COMPONENTS, CONDITIONER, *_SETTINGS}
    if unknown:
        raise PdiffError(
            f"unknown option {sorted(unknown)[0]!r} for from_pretrained; expected a component name, "
            "revision, cache_dir, token, local_files_only or torch_dtype."
        )
    arguments = {**{name: index[name] for name in _SETTINGS if name in index}, **given}
    for name, kind in (("autoencoder", ParamAutoencoder), ("unet", UNet1DModel), (CONDITIONER, Conditioner)):
        if name not in given and (name in COMPONENTS or index.get(name)):
            arguments[name] = load_component(kind, folder / name)
    if "scheduler" not in given:
        arguments["scheduler"] = load_scheduler(str(index["scheduler"][1]), folder)
    return arguments


def load_component(kind: Any, folder: Path) -> nn.Module:
    """Loads a component after checking that its files fit. Until then, nothing that they claim costs memory."""
    config = read_json(folder / "config.json")
    there: dict[str, list[int]] = {}
    places: dict[str, str] = {}
    for file in weight_files(folder):
        there |= (shapes := _shapes(file))
        places |= dict.fromkeys(shapes, file.name)
    _require_true_index(folder, places)
    try:
        with torch.device("meta"):
            sketch = kind.from_config(config)
    except Exception as error:  # a made-up config can make a constructor raise anything
        raise PdiffError(f"{folder / 'config.json'} describes no {kind.__name__} ({error}).") from error
    expected = {name: list(tensor.shape) for name, tensor in sketch.state_dict().items()}
    for name in sorted({*there, *expected}):
        if there.get(name) != expected.get(name):
            raise PdiffError(
                f"the weights in {folder} do not fit {folder / 'config.json'}: tensor {name!r} is "
                f"{there.get(name, 'missing')}, expected {expected.get(name, 'none')}."
            )
    component: nn.Module = kind.from_pretrained(folder, use_safetensors=True)
    if isinstance(component, ParamAutoencoder):
        component.release = give_back
    return component


def _require_true_index(folder: Path, places: dict[str, str]) -> None:
    """ValueError if an index of shards differs from `places` (tensor -> file), or lies beside a single file."""
    file = folder / SAFE_WEIGHTS_INDEX_NAME
    sharded = WEIGHTS[0] not in places.values()
    if not sharded and not file.exists():
        return
    index = read_json(file)
    if not sharded or index.get("weight_map") != places or not isinstance(index.get("metadata"), dict):
        raise PdiffError(
            f"{file} does not say which file holds which tensor as the weights beside it do; expected "
            f"{'that' if sharded else 'no such file beside ' + WEIGHTS[0]}. Restore the folder."
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component's folder; ValueError if there are none."""
    if not (files := fingerprint.weight_files(folder)):
        raise PdiffError(
            f"{folder} has no {WEIGHTS[0]}. Weights in another format are not opened, because reading a "
            "pickle can run code; ask its author for safetensors."
        )
    return files


def _shapes(file: Path) -> dict[str, list[int]]:
    """Tensor name -> shape, from a safetensors file's header; ValueError if the header does not fit the file's size."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _MOST_HEADER_BYTES:
                raise PdiffError(f"its header claims {length:,} bytes")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end + 8 + length != file.stat().st_size:
            raise PdiffError(
                f"its header claims {end:,} bytes of numbers, and it has {file.stat().st_size - 8 - length:,}"
            )
        return {name: [int(size) for size in entry["shape"]] for name, entry in header.items()}
    except (ValueError, TypeError, LookupError, AttributeError, struct.error, RecursionError) as error:
        raise PdiffError(f"{file} is damaged or no safetensors file ({error}).") from error


def load_scheduler(name: str, folder: Path) -> SchedulerMixin:
    """The scheduler of the pipeline in `folder`, whose class is called `name`."""
    kind: Any = getattr(diffusers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, SchedulerMixin):
        raise PdiffError(
            f"{folder / INDEX} names the scheduler {name!r}, which diffusers does not have. "
            f"The nearest known one is {_nearest_scheduler(name)!r}."
        )
    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= _MOST_TRAIN_TIMESTEPS:
        raise PdiffError(f"{file}: num_train_timesteps is {steps!r}, expected 1 to {_MOST_TRAIN_TIMESTEPS:,}.")
    scheduler_class: Any = kind
    try:
        scheduler: SchedulerMixin = scheduler_class.from_config(config)
        return scheduler
    except Exception as error:  # as in `load_component`
        raise PdiffError(f"{file} describes no {name} ({error}).") from error


def _nearest_scheduler(name: object) -> str:
    known = [each for each in dir(diffusers) if each.endswith("Scheduler")]
    return difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
