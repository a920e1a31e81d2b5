"""The part of a configuration that everyone may see."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any


def public(value: Any) -> Any:
    """`value`, with each path of this machine (absolute, or in a home folder) replaced by its last part."""
    if isinstance(value, dict):
        # The key in which diffusers notes where a component was opened from.
        return {key: public(each) for key, each in value.items() if key != "_name_or_path"}
    if isinstance(value, list):
        return [public(each) for each in value]
    if not isinstance(value, str) or len(value) < 2:
        return value
    if not value.startswith(("/", "~/", "~\\", "\\\\")) and value[1:3] not in (":\\", ":/"):
        return value
    return PurePath(value.replace("\\", "/")).name or "folder"
