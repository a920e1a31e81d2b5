"""Pushing and pulling files: all or nothing, tried again when the network fails, nothing transferred twice."""

from pdiff_hub.transfer.client import bounded
from pdiff_hub.transfer.files import (
    Pushed,
    PushOptions,
    RepoType,
    commit_of,
    folder_of_model,
    is_repo_id,
    list_files,
    pull,
    push_files,
)
from pdiff_hub.transfer.own_files import require_own
from pdiff_hub.transfer.staging import staging, temporary_folder

__all__ = [
    "PushOptions",
    "Pushed",
    "RepoType",
    "bounded",
    "commit_of",
    "folder_of_model",
    "is_repo_id",
    "list_files",
    "pull",
    "push_files",
    "require_own",
    "staging",
    "temporary_folder",
]
