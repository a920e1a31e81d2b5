"""Pushing and pulling files: all or nothing, tried again when the network fails, nothing transferred twice."""

from pdiff_hub.transfer.files import Pushed, PushOptions, RepoType, commit_of, is_repo_id, list_files, pull, push_files

__all__ = ["PushOptions", "Pushed", "RepoType", "commit_of", "is_repo_id", "list_files", "pull", "push_files"]
