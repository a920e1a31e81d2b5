"""Options that diffusers has for opening and saving: what they mean here, or a sentence that says what to do instead.

A value that asks for nothing, None or False, is taken, so that code which passes such an option on works here, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pdiff_hub.errors import PdiffError, require, shortened, unknown_name
from pdiff_hub.networks.devices import require_device

_MEMORY = "weights are read through a memory map, so leave it out"
_NO_CODE = "no downloaded code is ever run here, so leave it out"
_ONE_KIND = "weights are safetensors in the format of torch, so leave it out"
_VARIANT = "a pipeline has one set of weights"
# Option -> what to do instead of giving it.
_OPENING = {
    "variant": f"{_VARIANT}; for numbers of another type give dtype=torch.float16",
    "proxies": "set the environment variable HTTPS_PROXY",
    "mirror": "set the environment variable HF_ENDPOINT",
    "force_download": "files are compared with the Hub's checksums when they arrive; to drop a copy use `hf cache rm`",
    "custom_pipeline": _NO_CODE,
    "custom_revision": _NO_CODE,
    "trust_remote_code": f"{_NO_CODE} (`build_network` and `fit` take it, for networks by module:function)",
    "load_connected_pipeline": "no pipeline is connected to another, so leave it out",
    "quantization_config": "a U-Net of some megabytes gains nothing by it, so leave it out",
    "max_memory": "one device holds the pipeline: give device_map='cuda'",
    "offload_folder": _MEMORY,
    "offload_state_dict": _MEMORY,
    "disable_mmap": _MEMORY,
    "use_onnx": _ONE_KIND,
    "use_flashpack": _ONE_KIND,
    "provider": _ONE_KIND,
    "provider_options": _ONE_KIND,
    "sess_options": _ONE_KIND,
    "output_loading_info": "an error names each tensor that is missing or too many, so leave it out",
}
_TAKEN = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "dtype", "torch_dtype", "device_map")
_ONLY_TRUE = {
    "use_safetensors": "reading a pickle can run code, so safetensors alone are opened",
    "low_cpu_mem_usage": _MEMORY,
}
_SAVING = {
    "variant": f"{_VARIANT}; for numbers of another type save pipe.to(dtype=torch.float16)",
    "max_shard_size": "what is larger than 256 MB is split by itself, so leave it out",
    "push_to_hub": "call pipe.push_to_hub('user/name'), which writes a card, too",
    "use_flashpack": _ONE_KIND,
}
_SHARED = "components are shared, so the other pipeline would change, too; call pipe.to(dtype=...) if it may"
_SHARING = {
    "dtype": _SHARED,
    "torch_dtype": _SHARED,
    "custom_pipeline": _NO_CODE,
    "custom_revision": _NO_CODE,
    "trust_remote_code": _NO_CODE,
}


def check_opening(given: Mapping[str, Any], components: Iterable[str]) -> dict[str, Any]:
    """The components and settings among the options of `from_pretrained`.

    PdiffError for an option of diffusers that means nothing here, and for one that is unknown: it names the nearest.
    """
    known = {*components, *_TAKEN, *_ONLY_TRUE, *_OPENING}
    for name in given:
        if name not in known:
            # Only those that may be given are worth suggesting.
            raise unknown_name("option of from_pretrained", name, sorted(known - _OPENING.keys()))
    _refuse("from_pretrained", given, _OPENING)
    for name, reason in _ONLY_TRUE.items():
        if given.get(name) not in (None, True):
            raise PdiffError(f"from_pretrained: {name}={shortened(given[name])} cannot be had: {reason}.")
    return {name: value for name, value in given.items() if name in components}


def check_saving(safe_serialization: bool, given: Mapping[str, Any]) -> None:
    """PdiffError for an option of diffusers' `save_pretrained` that means nothing here, and for one that is unknown."""
    if safe_serialization is not True:
        raise PdiffError(
            f"save_pretrained: safe_serialization={shortened(safe_serialization)} cannot be had: reading a pickle can "
            "run code, so weights are written as safetensors alone; leave it out."
        )
    for name in given:
        if name not in _SAVING:
            raise unknown_name("option of save_pretrained", name, ["safe_serialization", *_SAVING])
    _refuse("save_pretrained", given, _SAVING)


def check_sharing(given: Mapping[str, Any], components: Iterable[str]) -> None:
    """As `check_saving`, for `from_pipe`, which also takes components."""
    known = {*components, *_SHARING}
    for name in given:
        if name not in known:
            raise unknown_name("option of from_pipe", name, sorted(known - _SHARING.keys()))
    _refuse("from_pipe", given, _SHARING)


def dtype_of(dtype: Any, torch_dtype: Any) -> torch.dtype | None:
    """The type of the numbers, by its new name in diffusers or its old one; PdiffError for one without fractions."""
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise PdiffError(f"dtype is {shortened(dtype)} and torch_dtype is {shortened(torch_dtype)}: give one of them.")
    wanted = torch_dtype if dtype is None else dtype
    fits = wanted is None or (isinstance(wanted, torch.dtype) and wanted.is_floating_point)
    require(fits, "dtype", wanted, "a type of numbers with fractions such as torch.float16, for all components alike")
    return wanted if isinstance(wanted, torch.dtype) else None


def device_asked(device_map: Any) -> torch.device | None:
    """The device for all components; PdiffError for a map that would spread them."""
    if device_map is None:
        return None
    try:
        device = torch.device(str(device_map))
    except RuntimeError:  # also of "auto", "balanced" and of a mapping
        raise PdiffError(
            f"device_map is {shortened(device_map)}, expected one device such as 'cuda', since a pipeline is too small "
            "to be spread over several."
        ) from None
    require_device(device, "device_map")
    return device


def _refuse(method: str, given: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    for name, value in given.items():
        if name in reasons and value is not None and value is not False:
            raise PdiffError(f"{method}: {name}={shortened(value)} cannot be had: {reasons[name]}.")
