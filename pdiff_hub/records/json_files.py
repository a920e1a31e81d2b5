"""Reading YAML, and JSON's lack of NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pdiff_hub.errors import PdiffError


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; PdiffError if the file holds none."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PdiffError(f"{file} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise PdiffError(f"{file} holds {type(content).__name__}, expected a mapping.")
    return content


def without_nan(value: Any) -> Any:
    """`value` with None for every NaN and Inf, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
