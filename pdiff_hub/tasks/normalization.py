"""How pixels become inputs of a network: less a mean, over a standard deviation, of each channel.

By default both are those of the training split. Networks that were trained elsewhere expect what they were trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pdiff_hub.errors import PdiffError, require, require_known, unknown_name

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and standard deviation of pixels that are scaled to [0, 1]. One number stands for every channel.
NAMED: dict[str, Statistics] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "zero_one": ((0.0,), (1.0,)),  # as torchvision's ToTensor
    "none": ((0.0,), (1 / 255,)),  # pixels from 0 to 255, as they are
}
_LEAST_STD = 1e-6


def checked_normalize(value: Any) -> str | dict[str, list[float]]:
    """The option `normalize` of a task. ValueError if it is neither a known name nor a mean and a std."""
    if isinstance(value, str):
        if value not in NAMED:
            raise unknown_name("normalize of a task", value, NAMED)
        return value
    if not isinstance(value, Mapping) or value.keys() != {"mean", "std"}:
        if isinstance(value, Mapping):
            require_known("normalize option", value, ("mean", "std"))
        raise PdiffError(
            f"normalize of a task must be one of {', '.join(NAMED)}, or {{mean: [...], std: [...]}}; found {value!r}"
        )
    mean, std = (_numbers(name, value[name]) for name in ("mean", "std"))
    if max(map(abs, mean)) > 1:
        raise PdiffError(
            f"normalize: a mean is {max(mean, key=abs)}, and pixels are from 0 to 1 by then; divide mean and std by 255"
        )
    if min(std) < _LEAST_STD:
        raise PdiffError(f"normalize: a std must be at least {_LEAST_STD}, found {min(std)}")
    return {"mean": mean, "std": std}


def statistics_of(normalize: str | Mapping[str, Any], channels: int) -> Statistics:
    """Mean and std of each of `channels` channels, by a checked option. ValueError if it is for another number."""
    mean, std = NAMED[normalize] if isinstance(normalize, str) else (normalize["mean"], normalize["std"])
    for values in (mean, std):
        if len(values) not in (1, channels):
            raise PdiffError(
                f"normalize of the task ({normalize}) is for {len(values)} channels, and the images have {channels}; "
                f"give {{mean: [...], std: [...]}} with {channels} number(s) each"
            )
    return tuple(mean) * (channels // len(mean)), tuple(std) * (channels // len(std))


def recorded_statistics(spec: Mapping[str, Any]) -> Statistics | None:
    """What a complete spec of a task records, in whatever file it lay; None if it records nothing."""
    resolved = spec.get("resolved")
    if not isinstance(resolved, Mapping) or "mean" not in resolved:
        return None
    checked = checked_normalize({"mean": resolved["mean"], "std": resolved.get("std")})
    assert isinstance(checked, dict)
    require(
        len(checked["mean"]) == len(checked["std"]), "the recorded std of a task", checked["std"], "as many as the mean"
    )
    return tuple(checked["mean"]), tuple(checked["std"])


def shown(spec: Mapping[str, Any]) -> str | None:
    """How the images of a task are normalised, for people; None if its spec does not say so itself."""
    if spec.get("normalize") is None:
        return None
    normalize = checked_normalize(spec["normalize"])  # it may have come from anybody
    if isinstance(normalize, str):
        return normalize
    mean, std = (", ".join(f"{number:g}" for number in normalize[name]) for name in ("mean", "std"))
    return f"mean {mean}; std {std}"


def _numbers(name: str, value: Any) -> list[float]:
    values = value if isinstance(value, (list, tuple)) else [value]
    right = bool(values) and all(type(each) in (int, float) and math.isfinite(each) for each in values)
    require(right, f"normalize: {name}", value, "finite numbers, one of each channel or one of all")
    return [float(each) for each in values]
