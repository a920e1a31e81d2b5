"""Pushing and pulling files: all or nothing, tried again when the network fails, nothing transferred twice."""

from pdiff_hub.transfer.client import bounded, is_repo_id
from pdiff_hub.transfer.errors import RepoType
from pdiff_hub.transfer.own_files import require_own
from pdiff_hub.transfer.pulling import commit_of, folder_of_model, list_files, pull
from pdiff_hub.transfer.pushing import Pushed, PushOptions, push_files
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
