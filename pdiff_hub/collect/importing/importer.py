"""Checkpoints that exist already: a folder of safetensors or `.pt`/`.pth` files, or revisions on the Hub.

One file is read at a time and reduced to its selected tensors, so memory holds K times the selection and one network.
Shapes: K checkpoints, P parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pdiff_hub.checkpoints import CheckpointDataset, check_finite
from pdiff_hub.collect.importing.condition_table import read_condition_table
from pdiff_hub.collect.importing.weight_files import SUFFIXES, read_state_dict
from pdiff_hub.collect.journal import CheckpointJournal, TrainingState
from pdiff_hub.errors import PdiffError, require
from pdiff_hub.travelling.param_autoencoder import FrozenEntry, ParamLayout

_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter|iteration)s?[-_=]?(\d+)", re.IGNORECASE)
_PART_BYTES = 64 << 20


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
    """The options of `collect: {method: import, ...}` in a recipe, as `import_checkpoints` takes them.

    Args:
        source: a folder; with `revisions`, a Hub repository id.
        buffers: whether running statistics are kept, as in `ParamLayout.from_module`.
        pattern, key, prefix: as in `import_checkpoints`.
        revisions, filename: of the Hub repository.
        conditions: as in `import_checkpoints`.

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

    def __post_init__(self) -> None:
        if not self.source or not isinstance(self.source, str):
            raise PdiffError(
                f"source is {self.source!r}; expected a folder of checkpoints, or with revisions a Hub repository id."
            )
        if isinstance(self.revisions, str) or not all(isinstance(each, str) for each in self.revisions):
            raise PdiffError(f"revisions is {self.revisions!r}; expected a list of names (quote those made of digits).")
        if self.revisions and self.pattern is not None:
            raise PdiffError("pattern chooses files of a folder; with revisions, give filename.")
        named = self.conditions is None or isinstance(self.conditions, str)
        require(named, "conditions", self.conditions, "the name of a .csv or .json file")

    @property
    def hub(self) -> HubFile | None:
        """The file on the Hub; None for a folder."""
        return HubFile(self.revisions, self.filename) if self.revisions else None


def import_checkpoints(
    source: str | Path,
    layout: ParamLayout,
    *,
    network: Mapping[str, Any],
    task: Mapping[str, Any] | None = None,
    pattern: str | None = None,
    key: str | None = None,
    prefix: str = "",
    hub: HubFile | None = None,
    conditions: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> CheckpointDataset:
    """Reads existing checkpoints of one network into a `CheckpointDataset`.

    Args:
        source: a folder; with `hub`, a repository id.
        layout: what to keep of each checkpoint: `ParamLayout.from_module(build_network(network), select)`.
        network: the resolved spec that rebuilds the network.
        task: the resolved spec of its data, if known.
        pattern: which files, as a glob in the folder (e.g. "*/model.safetensors"); default: all .safetensors, .pt and
            .pth directly in it, which must then be of one kind. Files are read in natural order: 2 before 10.
        key: the entry of a .pt/.pth file that holds the state dict, if another dict is around it, e.g. "state_dict" or
            "model".
        prefix: what to remove from the front of every tensor's name, e.g. "module.".
        hub: which revisions of a Hub repository to read (in the order given), instead of a folder.
        conditions: a .csv or .json table in the folder (or another path) with what is known of the checkpoints, such as
            how they were trained (`condition_table`). Its column `file` has their names, as the metadata's column
            `file` does; with `hub`, their revisions. Its other columns, of numbers or names, become columns of the
            metadata, so that `with_conditions` and a recipe's `condition` take them.
        output_dir: collect into this folder: a killed import can then resume, and the rows are not kept in memory.

    What is not selected must be equal in all files (integer buffers, which count batches, are taken from the first).
    Raises FileNotFoundError for files that do not exist. Raises ValueError, which names the file and the tensor, for a
    tensor that is missing, unexpected, mis-shaped or not finite; also for a file that is truncated, needs to run code
    or is of another network, and for one checkpoint only. Errors of `conditions` are those of `read_condition_table`.
    """
    source = str(source)
    names = _hub_names(source, hub) if hub else _file_names(Path(source), pattern)
    if len(names) < 2:
        raise PdiffError(f"{source} has one checkpoint only, {names[0]}; a set needs at least two.")
    label = source if hub else Path(source).resolve().name  # no path of this machine in what may be published
    collect: dict[str, Any] = {"method": "import", "source": label, "key": key, "prefix": prefix}
    keys = list(hub.revisions) if hub else names
    table = None
    if conditions is not None:
        table = read_condition_table(Path(conditions) if hub else Path(source) / conditions, keys)
        collect["conditions"] = dict(table.source)

    def metadata_of(index: int) -> dict[str, Any]:
        known = _metadata(label, names[index])
        return known if table is None else table.added(keys[index], known)

    journal = None
    if output_dir is not None:
        journal = CheckpointJournal(output_dir, {**collect, "files": names}, layout)
        if journal.finished:
            return CheckpointDataset.from_pretrained(journal.directory)

    def open_file(index: int) -> tuple[str, dict[str, Tensor]]:
        path = _download(source, hub, index) if hub else Path(source) / names[index]
        where = names[index] if hub else str(path)
        return where, _with_tied(layout, read_state_dict(path, where, key, prefix))

    where, first = open_file(0)
    # Copies, because a safetensors file is memory-mapped, and may change later.
    frozen = {name: tensor.clone() for name, tensor in _frozen(layout, first, where).items()}
    start = journal.num_checkpoints if journal else 0
    part_rows = max(1, _PART_BYTES // (4 * layout.num_params)) if journal else len(names)
    progress = tqdm(total=len(names), initial=start, desc="import", unit="file", disable=None)
    for begin in range(start, len(names), part_rows):
        params_RP = torch.empty(min(part_rows, len(names) - begin), layout.num_params)
        for row in range(len(params_RP)):
            where, state = open_file(begin + row) if begin + row else (where, first)
            params_RP[row] = _flatten(layout, state, where)
            _check_equal(frozen, _frozen(layout, state, where), where, names[0])
            progress.update()
        metadata = [metadata_of(index) for index in range(begin, begin + len(params_RP))]
        if journal is None:
            break
        journal.append(params_RP, metadata, TrainingState())
    progress.close()
    if journal:
        return journal.finish(network=network, task=task, frozen=frozen, collect=collect)
    return CheckpointDataset(
        params_RP, layout, network=network, task=task, frozen=frozen, metadata=metadata, collect=collect
    )


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts "step-2" before "step-10", and "a/2" before "a/10/b"; different names never tie ("7", "07")."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(text), "") if text.isdecimal() else (1, 0, text) for text in parts], name


def _file_names(folder: Path, pattern: str | None) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; to read revisions of a Hub repository, give `hub`.")
    files = [file for file in folder.glob(pattern or "*") if file.is_file()]
    if pattern is None:
        files = [file for file in files if file.suffix in SUFFIXES]
        kinds = {"safetensors" if file.suffix == ".safetensors" else "pt" for file in files}
        if len(kinds) > 1:
            raise PdiffError(
                f'{folder} has both .safetensors and .pt/.pth files; choose with pattern, e.g. "*.safetensors".'
            )
    for file in files:
        if file.suffix not in SUFFIXES:
            raise PdiffError(f"{file} is matched by pattern {pattern!r}, but is none of {', '.join(SUFFIXES)}.")
    if not files:
        raise FileNotFoundError(
            f"{folder} has no {pattern or 'checkpoint (' + ', '.join(SUFFIXES) + ')'}; files in "
            'folders below it need a pattern, e.g. "*/model.safetensors".'
        )
    return sorted((file.relative_to(folder).as_posix() for file in files), key=natural_key)


def _hub_names(repo_id: str, hub: HubFile) -> list[str]:
    if not hub.revisions or len(set(hub.revisions)) < len(hub.revisions):
        raise PdiffError(f"revisions of {repo_id} are {list(hub.revisions)}; expected different ones, and some.")
    if Path(hub.filename).suffix not in SUFFIXES:
        raise PdiffError(f"filename {hub.filename!r} is none of {', '.join(SUFFIXES)}.")
    return [f"{repo_id}@{revision}/{hub.filename}" for revision in hub.revisions]


def _download(repo_id: str, hub: HubFile, index: int) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    revision = hub.revisions[index]
    try:
        return Path(
            hf_hub_download(
                repo_id,
                hub.filename,
                revision=revision,
                token=hub.token,
                cache_dir=hub.cache_dir,
                local_files_only=hub.local_files_only,
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{hub.filename} of {repo_id} at revision {revision!r} could not be had from the Hub ({error})."
        ) from error


def _with_tied(layout: ParamLayout, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with tied tensors under all their names: safetensors files usually keep only one name."""
    for entry in layout.entries:
        names = (entry.name, *entry.aliases)
        held = next((state[name] for name in names if name in state), None)
        if held is not None:
            state = {**dict.fromkeys(names, held), **state} if entry.aliases else state
    return state


def _flatten(layout: ParamLayout, state: Mapping[str, Tensor], where: str) -> Tensor:
    try:
        params_P = layout.flatten(state)
        check_finite(layout, params_P[None])  # a float64 value may lie outside the range of float32
        return params_P
    except ValueError as error:
        raise PdiffError(f"{where}: {error}{_prefix_hint(layout, state)}") from error


def _prefix_hint(layout: ParamLayout, state: Mapping[str, Tensor]) -> str:
    known = {entry.name for entry in layout.entries}
    for name in state:
        for each in known:
            if name != each and name.endswith(f".{each}"):
                prefix = name.removesuffix(each)
                if all(other.startswith(prefix) for other in state):
                    return f" All names here begin with {prefix!r}: give it as prefix."
    return ""


def _frozen(layout: ParamLayout, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of one file that are not selected, checked and in the layout's dtypes."""
    frozen: dict[str, Tensor] = {}
    for entry in layout.frozen:
        if entry.name not in state:
            raise PdiffError(
                f"{where}: missing tensor {entry.name!r}, which is not selected, but which every network "
                f"needs; expected shape {list(entry.shape)}.{_prefix_hint(layout, state)}"
            )
        frozen[entry.name] = _frozen_tensor(entry, state[entry.name], where)
    return frozen


def _frozen_tensor(entry: FrozenEntry, found: Tensor, where: str) -> Tensor:
    if tuple(found.shape) != entry.shape:
        raise PdiffError(f"{where}: tensor {entry.name!r} has shape {list(found.shape)}, expected {list(entry.shape)}.")
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        raise PdiffError(f"{where}: tensor {entry.name!r} holds NaN or Inf; expected finite numbers.")
    wanted: torch.dtype = getattr(torch, entry.dtype)
    tensor = found.to(wanted)
    if found.dtype != wanted and not torch.equal(tensor.to(found.dtype), found):
        raise PdiffError(f"{where}: tensor {entry.name!r} is {found.dtype}, and does not fit into {wanted} exactly.")
    return tensor


def _check_equal(frozen: Mapping[str, Tensor], other: Mapping[str, Tensor], where: str, first: str) -> None:
    for name, tensor in frozen.items():
        if tensor.is_floating_point() and not torch.equal(tensor, other[name]):
            raise PdiffError(
                f"{where}: tensor {name!r} is not selected, but differs from that in {first}; select it "
                "too (buffers=True for running statistics), or import checkpoints that share it."
            )


def _metadata(label: str, name: str) -> dict[str, Any]:
    steps = _STEP.findall(name) or re.findall(r"^(\d+)$", Path(name).stem)
    return {"run": label, "step": int(steps[-1]) if steps else None, "file": name}
