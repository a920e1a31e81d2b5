"""The identity of the pipeline in a folder. It shows whether files beside the pipeline describe it or are stale."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pdiff_hub.records.run_folder import RunFolder
from pdiff_hub.safe_files import read_json
from pdiff_hub.travelling.pipeline_pdiff import MODELS, WEIGHTS


def fingerprint(folder: RunFolder) -> dict[str, Any]:
    """SHA-256 of a pipeline's weight files, and its configurations without format versions and `_` keys."""
    found: dict[str, Any] = {}
    for name in MODELS:
        for file in weight_files(folder.path / name):
            with file.open("rb") as opened:
                found[f"{name}/{file.name}"] = hashlib.file_digest(opened, "sha256").hexdigest()
    for file in (folder.index, *config_files(folder.path)):
        found[file.relative_to(folder.path).as_posix()] = _told(read_json(file)) if file.is_file() else None
    return found


def weight_files(component: Path) -> list[Path]:
    """The safetensors files in a component's folder, in a fixed order."""
    return sorted(file for pattern in WEIGHTS for file in component.glob(pattern))


def config_files(folder: Path) -> list[Path]:
    """The configurations of the components of the pipeline in `folder`."""
    files = [*(folder / name / "config.json" for name in MODELS), folder / "scheduler" / "scheduler_config.json"]
    return [file for file in files if file.is_file()]


def _told(config: dict[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in config.items() if not key.startswith("_") and key != "format_version"}
    for key in ("held_out", "num_checkpoints", "checkpoints_sha256"):
        if not told.get(key):  # older folders do not have it, which says the same
            told.pop(key, None)
    return told
