"""The options of an import in a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdiff_hub.errors import PdiffError, require


@dataclass(frozen=True)
class HubFile:
    """The file called `filename` in each of several revisions of a model repository on the Hub."""

    revisions: Sequence[str]
    filename: str = "model.safetensors"
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False


@dataclass(frozen=True)
class ImportConfig:
    """Checkpoints that are there are read (`import_checkpoints`).

    Args:
        source (needed, a folder or a Hub id): a folder of checkpoints; with `revisions`, a Hub repository id.
        buffers: whether running statistics are kept, too; null: only if `select` is all.
        pattern: which files, as a glob in the folder, such as `*/model.safetensors`; null: all .safetensors, .pt and
            .pth directly in it, or if there are none, other files of weights. Not with `revisions`.
        key: the entry of a torch.save file that holds the state dict, if another dict is around it, such as state_dict
            or checkpoint.model (one inside another); null: the file is the state dict.
        prefix: what to remove from the front of every tensor's name, such as `module.`; empty: the prefix, if there is
            one, with which the names are exactly the network's.
        revisions: of the Hub repository: each gives one checkpoint, in this order.
        filename: the file that is read of each revision.
        conditions: a .csv or .json table of what is known of the checkpoints; its column `file` has their names, its
            other columns can be asked for (`condition`).
        base: the whole network that the files were trained from, if they hold the trained layers only: a file, a folder
            with a model.safetensors, a Hub id, or "network".
        ignore: globs of the names of tensors in the files that are left out, such as `teacher.*`; one, or a list.
        align: put the hidden units of networks that were trained independently into one order (git re-basin); not for
            snapshots of one training, whose units are in one order already.
        align_rounds (at least 1): how often all networks are matched to a new mean network.

    Raises ValueError naming the option that is out of range.
    """

    source: str = ""
    buffers: bool | None = None
    pattern: str | None = None
    key: str | None = None
    prefix: str = ""
    revisions: Sequence[str] = ()
    filename: str = "model.safetensors"
    conditions: str | None = None
    base: str | None = None
    ignore: str | Sequence[str] = ()
    align: bool = False
    align_rounds: int = 4

    def __post_init__(self) -> None:
        if not self.source or not isinstance(self.source, str):
            raise PdiffError(
                f"source is {self.source!r}; expected a folder of checkpoints, or with revisions a Hub repository id."
            )
        if isinstance(self.revisions, str) or not all(isinstance(each, str) for each in self.revisions):
            raise PdiffError(f"revisions is {self.revisions!r}; expected a list of names (quote those made of digits).")
        if self.revisions and self.pattern is not None:
            raise PdiffError("pattern chooses files of a folder; with revisions, give filename.")
        if self.pattern is not None:
            require_pattern(self.pattern)
        named = self.conditions is None or isinstance(self.conditions, str)
        require(named, "conditions", self.conditions, "the name of a .csv or .json file")
        require(isinstance(self.prefix, str), "prefix", self.prefix, 'the text before the names, such as "module."')
        for option, expected in (
            ("key", 'the name of an entry, such as "state_dict" or "checkpoint.model"'),
            ("base", 'a file, a Hub repository id, or "network"'),
        ):
            value = getattr(self, option)
            require(value is None or (isinstance(value, str) and bool(value)), option, value, expected)
        require(isinstance(self.filename, str) and bool(self.filename), "filename", self.filename, "a file's name")
        require(type(self.align) is bool, "align", self.align, "true or false")
        rounds = self.align_rounds
        require(type(rounds) is int and rounds >= 1, "align_rounds", rounds, "an integer from 1")
        several = isinstance(self.ignore, str | list | tuple) and all(isinstance(each, str) for each in self.ignore)
        require(several, "ignore", self.ignore, "names of tensors to leave out, as globs such as criterion.*")

    @property
    def globs(self) -> tuple[str, ...]:
        """`ignore` as a tuple."""
        return (self.ignore,) if isinstance(self.ignore, str) else tuple(self.ignore)

    @property
    def hub(self) -> HubFile | None:
        """The file on the Hub; None for a folder."""
        return HubFile(self.revisions, self.filename) if self.revisions else None


def require_pattern(pattern: str) -> None:
    """ValueError unless `pattern` is a glob of files inside a folder."""
    good = isinstance(pattern, str) and bool(pattern)
    good = good and not Path(pattern).is_absolute() and ".." not in Path(pattern).parts
    # pathlib refuses a ** that is only a part of a name.
    good = good and not any("**" in part and part != "**" for part in Path(pattern).parts)
    require(good, "pattern", pattern, 'a glob of files inside the folder, such as "*/model.safetensors"')
