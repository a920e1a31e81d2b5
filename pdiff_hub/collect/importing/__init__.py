"""Checkpoints that exist already: files in a folder, or revisions on the Hub."""

from pdiff_hub.collect.importing.aligning import Alignment
from pdiff_hub.collect.importing.config import HubFile, ImportConfig
from pdiff_hub.collect.importing.importer import import_checkpoints

__all__ = ["Alignment", "HubFile", "ImportConfig", "import_checkpoints"]
