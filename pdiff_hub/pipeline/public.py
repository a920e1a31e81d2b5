"""What of a configuration everyone may see."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any


def public(value: Any) -> Any:
    """`value` with the last part instead of each path of this machine: an absolute one, or one in a home folder."""
    if isinstance(value, dict):
        # diffusers notes there where a component was opened.
        return {key: public(each) for key, each in value.items() if key != "_name_or_path"}
    if isinstance(value, list):
        return [public(each) for each in value]
    if not isinstance(value, str) or len(value) < 2:
        return value
    if not value.startswith(("/", "~/", "~\\", "\\\\")) and value[1:3] not in (":\\", ":/"):
        return value
    return PurePath(value.replace("\\", "/")).name or "folder"
