"""Opening one component of a pipeline: its files are compared with its configuration before anything is built.

diffusers' `from_pretrained` is not used. It replaces parts of torch for the whole process while it works, so that what
another thread builds meanwhile is empty, and openings at the same time leave torch broken.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME
from torch import Tensor, nn

from pdiff_hub.errors import PdiffError, one_line
from pdiff_hub.networks.building import sketching
from pdiff_hub.records import fingerprint
from pdiff_hub.records.component_configs import check_config
from pdiff_hub.safe_files import read_json
from pdiff_hub.safe_files.tensors import Stored, read_header, read_tensors, require_finite
from pdiff_hub.travelling.pipeline_pdiff import WEIGHTS

_LARGE_BYTES = 1 << 28  # as large as the files that `ParamAutoencoder` splits its weights into
# The numbers that a pipeline may be saved in. All are opened as float32, as by diffusers.
_SAVED_IN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

T = TypeVar("T", bound=nn.Module)


def load_component(kind: type[T], folder: Path, release: Callable[[Tensor], None]) -> T:
    """The component in `folder`, in eval mode; its numbers are memory-mapped.

    Until its files are found to fit, nothing that they claim costs memory or time.

    Args:
        kind: `UNet1DModel`, `ParamAutoencoder` or `Conditioner`.
        release: called with each tensor of a large component once it has been looked at, so that its memory can be used
            for others.

    Raises:
        PdiffError: names a file that is damaged, does not fit the rest, or holds NaN or infinity.
        FileNotFoundError: names a file that is missing.
    """
    config_file = folder / "config.json"
    config = read_json(config_file)
    there: dict[str, Stored] = {}
    places: dict[str, Path] = {}
    for file in weight_files(folder):
        there |= (stored := read_header(file))
        places |= dict.fromkeys(stored, file)
    _require_true_index(folder, {name: file.name for name, file in places.items()})
    check_config(kind, config, config_file, len(there))
    made: Any = kind
    try:
        with sketching(len(there)):
            component: T = made.from_config(config)
    except Exception as error:  # a made-up config can make a constructor raise anything
        raise PdiffError(
            f"{config_file} describes no {kind.__name__} that can be built ({one_line(error)})."
        ) from error
    expected = component.state_dict()
    _require_fit(there, places, expected, config_file)
    weights: dict[str, Tensor] = {}
    files = dict.fromkeys(places.values())
    large = sum(file.stat().st_size for file in files) > _LARGE_BYTES
    for file in files:
        tensors = {name: tensor.to(expected[name].dtype) for name, tensor in read_tensors(file).items()}
        require_finite(file, tensors, release if large else None)
        weights |= tensors
    component.load_state_dict(weights, assign=True)
    return component.eval()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component's folder; PdiffError if there are none."""
    if not (files := fingerprint.weight_files(folder)):
        raise PdiffError(
            f"{folder} has no {WEIGHTS[0]}. Weights in another format are not opened, because reading a "
            "pickle can run code; ask its author for safetensors."
        )
    return files


def _require_true_index(folder: Path, places: dict[str, str]) -> None:
    """PdiffError if an index of shards differs from `places` (tensor -> file), or lies beside a single file."""
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


def _require_fit(
    there: dict[str, Stored], places: dict[str, Path], expected: dict[str, Tensor], config_file: Path
) -> None:
    """PdiffError names the first tensor that is missing, too many, or of another shape or type than expected."""
    saved_in = next((stored.dtype for name, stored in there.items() if _is_float(expected.get(name))), None)
    for name in sorted({*there, *expected}):
        wanted = None
        if name in expected:
            dtype = expected[name].dtype
            # Whoever saves a pipeline in another type saves all of it so.
            wanted = Stored(
                saved_in if _is_float(expected[name]) and saved_in in _SAVED_IN else dtype, tuple(expected[name].shape)
            )
        found = there.get(name)
        if found != wanted:
            other_type = found is not None and wanted is not None and found.dtype != wanted.dtype
            texts = [str(each if other_type else list(each.shape)) if each else "" for each in (found, wanted)]
            raise PdiffError(
                f"the weights in {places.get(name, config_file.parent)} do not fit {config_file}: tensor {name!r} is "
                f"{texts[0] or 'missing'}, expected {texts[1] or 'none'}."
            )


def _is_float(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point()
