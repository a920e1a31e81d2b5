"""What the config.json of a pipeline's component may say: types, ranges, and no more than its weights have room for.

A configuration may come from anybody, and some sizes are computed before any tensor is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers import UNet1DModel
from pydantic import Field

from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files.checking import checked
from pdiff_hub.safe_files.layouts import MOST, EntryFields, LayoutFields, Place
from pdiff_hub.safe_files.tensors import DTYPES
from pdiff_hub.travelling.conditioner import Conditioner
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder

_MOST_LEVELS = 64  # of a U-Net, layers of an autoencoder
_LARGEST_BLOCK = 2**20  # parameters that one column of latents stands for, in a network that has fewer

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*DTYPES.values(), torch.complex128)}

_Size = Annotated[int, Field(ge=1, le=MOST)]
_Widths = Annotated[list[_Size], Field(min_length=1, max_length=_MOST_LEVELS)]
_Names = Annotated[list[str], Field(max_length=_MOST_LEVELS)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class _UNet:
    block_out_channels: _Widths
    down_block_types: _Names
    up_block_types: _Names
    in_channels: _Size
    out_channels: _Size
    extra_in_channels: Place = 0
    layers_per_block: _Size = 1
    mid_block_type: str | None = None
    out_block_type: str | None = None
    act_fn: str | None = None
    norm_num_groups: _Size | None = None
    time_embedding_type: str = "fourier"
    time_embedding_dim: _Size | None = None
    flip_sin_to_cos: bool = True
    use_timestep_embedding: bool = False
    downsample_each_block: bool = False
    freq_shift: _Number = 0.0
    sample_size: Place | None = None
    sample_rate: Place | None = None


@dataclass(frozen=True)
class _Autoencoder:
    layout: LayoutFields
    form: str = "linear"
    normalization: str = "per_tensor"
    latent_channels: _Size = 4
    latent_length: _Size = 16
    num_components: Place = 64  # none in the other form
    encoder_widths: _Widths = field(default_factory=lambda: [4, 4, 4, 4])
    decoder_widths: _Widths = field(default_factory=lambda: [4, 256, 256, 8])
    kernel_size: _Size = 5
    slice_size: _Size = 1_000_000
    network: dict[str, Any] | None = None
    task: dict[str, Any] | None = None
    held_out: list[Place] = field(default_factory=list)
    num_checkpoints: _Size | None = None
    checkpoints_sha256: str | None = None


@dataclass(frozen=True)
class _Conditioner:
    condition: dict[str, Any]
    latent_channels: _Size
    latent_length: _Size
    num_known: _Size = 1
    squared_length: _Number = 1.0


_KINDS: dict[Any, type[Any]] = {UNet1DModel: _UNet, ParamAutoencoder: _Autoencoder, Conditioner: _Conditioner}


def check_config(kind: Any, config: Mapping[str, Any], file: Path, num_tensors: int) -> None:
    """PdiffError, naming `file` and what is wrong, unless `config` could be that of a `kind` with `num_tensors`."""
    named = config.get("_class_name", kind.__name__)
    if named != kind.__name__:
        raise PdiffError(f"{file} is of a {str(named)[:60]!r}, expected {kind.__name__!r}; restore the folder.")
    if config.get("quantization_config") is not None:
        raise PdiffError(
            f"{file} has a quantization_config, and quantised weights are not read: save the pipeline in float32, "
            "float16 or bfloat16."
        )
    what = f"{file} describes no {kind.__name__}"
    require_numbers(config, what)
    found: Any = checked(_KINDS[kind], config, what, "restore the file.")
    if isinstance(found, _Autoencoder):
        _check_autoencoder(found, file, num_tensors)


def require_numbers(value: Any, what: str, finite: bool = True) -> None:
    """PdiffError unless all numbers in `value`, as read from JSON, are of a size that a number in JSON can have.

    finite: whether infinity is wrong, too. NaN always is.
    """
    if isinstance(value, (dict, list)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            require_numbers(each, f"{what}: {key}" if isinstance(key, str) else what, finite)
    elif (isinstance(value, float) and (math.isnan(value) or (finite and math.isinf(value)))) or (
        isinstance(value, int) and abs(value) > MOST
    ):
        text = "a whole number with very many digits" if isinstance(value, int) else str(value)
        raise PdiffError(f"{what}: {text} is there, expected a number of at most {MOST:,}; restore the file.")


def _check_autoencoder(config: _Autoencoder, file: Path, num_tensors: int) -> None:
    what = f"{file} describes no ParamAutoencoder"
    names: set[str] = set()
    for entry in [*config.layout.entries, *config.layout.frozen]:
        dtype = _DTYPES.get(entry.dtype)
        generated = isinstance(entry, EntryFields)
        if dtype is None or (generated and not (dtype.is_floating_point or dtype.is_complex)):
            raise PdiffError(
                f"{what}: the layout's tensor {entry.name!r} is of type {entry.dtype!r}, expected "
                f"{'one that holds fractions' if generated else 'one that is stored'}, such as 'float32'."
            )
        for name in (entry.name, *(entry.aliases if isinstance(entry, EntryFields) else ())):
            if name in names:
                raise PdiffError(f"{what}: the layout has the tensor {name!r} twice; restore the file.")
            names.add(name)
    num_params = sum(entry.stop - entry.start for entry in config.layout.entries)
    if config.form == "linear":
        slices = -(-num_params // config.slice_size)
        if slices > num_tensors:
            raise PdiffError(
                f"{what}: {num_params:,} parameters in slices of {config.slice_size:,} are {slices:,} tensors, and "
                f"{num_tensors} are stored; restore the folder."
            )
        return
    most = max(num_params, _LARGEST_BLOCK)
    if config.kernel_size ** len(config.encoder_widths) > most:
        raise PdiffError(
            f"{what}: a column of latents stands for {config.kernel_size} ** {len(config.encoder_widths)} parameters, "
            f"expected at most {most:,}; restore the file."
        )
