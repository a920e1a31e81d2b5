"""Checkpoints that exist already: files of a folder, or revisions on the Hub.

One file is read at a time and reduced to its selected tensors, so memory holds K times the selection and one network.
Shapes: K checkpoints, P parameters.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset, check_finite
from pdiff_hub.collect.importing.base import NETWORK, Base
from pdiff_hub.collect.importing.condition_table import read_condition_table
from pdiff_hub.collect.importing.config import HubFile
from pdiff_hub.collect.importing.sources import at_home, download, file_names, hub_names
from pdiff_hub.collect.importing.tensor_names import NamedState, TensorNames
from pdiff_hub.collect.importing.weight_files import read_state_dict
from pdiff_hub.collect.journal import CheckpointJournal, TrainingState
from pdiff_hub.collect.shared_tensors import first_difference, remedy
from pdiff_hub.errors import PdiffError
from pdiff_hub.progress import progress_bar
from pdiff_hub.travelling.param_autoencoder import FrozenEntry, ParamLayout

_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter|iteration)s?[-_=]?(\d+)", re.IGNORECASE)
_PART_BYTES = 64 << 20
logger = logging.getLogger(__name__)


def import_checkpoints(
    source: str | Path,
    layout: ParamLayout,
    *,
    network: Mapping[str, Any],
    task: Mapping[str, Any] | None = None,
    pattern: str | None = None,
    key: str | None = None,
    prefix: str = "",
    base: str | Path | None = None,
    ignore: Sequence[str] = (),
    hub: HubFile | None = None,
    conditions: str | Path | None = None,
    build: Callable[[int], nn.Module] | None = None,
    output_dir: str | Path | None = None,
) -> CheckpointDataset:
    """Reads existing checkpoints of one network into a `CheckpointDataset`.

    Args:
        source: a folder; with `hub`, a repository id. In all paths, `~` is the user's home folder.
        layout: what to keep of each checkpoint: `ParamLayout.from_module(build_network(network), select)`.
        network: the resolved spec that rebuilds the network.
        task: the resolved spec of its data, if known.
        pattern: which files, as a glob in the folder (e.g. "*/model.safetensors"); default: all .safetensors, .pt and
            .pth directly in it, or if there are none, files of weights called .bin, .ckpt, .pth.tar or without a
            suffix. They must then be of one kind. With a pattern, a file may have any name; its content decides how it
            is read. A checkpoint in several shards is named by its `*.index.json`, or by its shards. Files are read in
            natural order: 2 before 10.
        key: the entry of a torch.save file that holds the state dict, if another dict is around it, e.g. "state_dict"
            or "checkpoint.model" (one inside another).
        prefix: what to remove from the front of every tensor's name, e.g. "module."; by default the prefix, if there is
            one, with which the names are exactly the network's.
        base: the whole network that the files were trained from, if they hold the trained layers only: a file (also
            sought in the folder, where it is no checkpoint then), a folder with a `model.safetensors`, a Hub id
            ("user/name", or "user/name@revision/file"), or "network", which is the network as `build` makes it. A
            network whose spec has `pretrained` weights needs none. It gives only what is not selected.
        ignore: globs of the names of tensors in the files that are left out, e.g. "teacher.*". What thop, AveragedModel
            and a loss with weights leave in state dicts (`total_ops`, `total_params`, `n_averaged`, `criterion.*`) is
            left out by itself, if the network has no such names. All that is left out is said, and recorded in
            `collect["ignored"]`.
        hub: which revisions of a Hub repository to read (in the order given), instead of a folder.
        conditions: a .csv or .json table in the folder (or another path) with what is known of the checkpoints, such as
            how they were trained (`condition_table`). Its column `file` has their names, as the metadata's column
            `file` does; with `hub`, their revisions. Its other columns, of numbers or names, become columns of the
            metadata, so that `with_conditions` and a recipe's `condition` take them.
        build: makes the network from a seed, with its pretrained weights, when `base` needs it.
        output_dir: collect into this folder: a killed import can then resume, and the rows are not kept in memory.

    What is not selected must be equal in all files, also integers; only counters of batches may differ, and are taken
    from the first. It may hold infinities (a mask), but no NaN.
    Raises FileNotFoundError for files that do not exist. Raises ValueError, which names the file and the tensor, for a
    tensor that is missing, unexpected, mis-shaped or not finite; also for a file that is truncated, needs to run code
    or is of another network, and for one checkpoint only. Errors of `conditions` are those of `read_condition_table`.
    """
    folder = None if hub else at_home(source)
    source, ignore = str(source), tuple(ignore)
    rest = Base(base, folder, TensorNames(layout, "", ()), key, build, bool(network.get("pretrained")))
    table_file = None if conditions is None else (folder or Path()) / at_home(conditions)
    others = [file.resolve() for file in (rest.file, table_file) if file]
    names = hub_names(source, hub) if hub else file_names(at_home(source), pattern, others)
    if len(names) < 2:
        raise PdiffError(f"{source} has one checkpoint only, {names[0]}; a set needs at least two.")
    label = source if folder is None else folder.resolve().name  # no path of this machine in what may be published
    collect: dict[str, Any] = {"method": "import", "source": label, "key": key, "prefix": prefix}
    if base is not None:
        collect["base"] = NETWORK if base == NETWORK else rest.file.name if rest.file else str(base)
    if ignore:
        collect["ignore"] = list(ignore)
    keys = list(hub.revisions) if hub else names
    table = None
    if table_file is not None:
        table = read_condition_table(table_file, keys)
        collect["conditions"] = dict(table.source)

    def metadata_of(index: int) -> dict[str, Any]:
        known = _metadata(label, names[index])
        return known if table is None else table.added(keys[index], known)

    journal = None
    if output_dir is not None:
        journal = CheckpointJournal(output_dir, {**collect, "files": names}, layout)
        if journal.finished:
            return CheckpointDataset.from_pretrained(journal.directory)
    reading = _Reading(layout, TensorNames(layout, prefix, ignore), rest, key, ignore)

    def open_file(index: int) -> tuple[str, NamedState]:
        path = download(source, hub, hub.revisions[index]) if hub else at_home(source) / names[index]
        return reading.open(path, names[index] if hub else str(path))

    where, first = open_file(0)
    # Copies, because a safetensors file is memory-mapped, and may change later.
    frozen = {name: tensor.clone() for name, tensor in reading.frozen(first.state, where).items()}
    start = journal.num_checkpoints if journal else 0
    ignored = set(first.ignored)
    if journal and journal.state:
        ignored |= set(journal.state.info.get("ignored", []))
    part_rows = max(1, _PART_BYTES // (4 * layout.num_params)) if journal else len(names)
    progress = progress_bar(len(names), "import", "file", initial=start)
    for begin in range(start, len(names), part_rows):
        params_RP = torch.empty(min(part_rows, len(names) - begin), layout.num_params)
        for row in range(len(params_RP)):
            where, named = open_file(begin + row) if begin + row else (where, first)
            params_RP[row] = reading.flatten(named.state, where)
            if differs := first_difference(frozen, reading.frozen(named.state, where)):
                raise PdiffError(
                    f"{where}: tensor {differs!r} is not selected, but differs from that in {names[0]}; "
                    f"{remedy(frozen[differs])}; or give a base that has it, and ignore: [{differs!r}]."
                )
            ignored |= set(named.ignored)
            progress.update()
        metadata = [metadata_of(index) for index in range(begin, begin + len(params_RP))]
        if journal is None:
            break
        journal.append(params_RP, metadata, TrainingState(info={"ignored": sorted(ignored)} if ignored else {}))
    progress.close()
    collect["prefix"] = first.prefix
    done = {"wrappers": list(first.wrappers), "ignored": sorted(ignored), "base": rest.source}
    collect |= {name: value for name, value in done.items() if value}
    _say(source, prefix, collect)
    if journal:
        return journal.finish(network=network, task=task, frozen=frozen, collect=collect)
    return CheckpointDataset(
        params_RP, layout, network=network, task=task, frozen=frozen, metadata=metadata, collect=collect
    )


class _Reading:
    """Reads one file at a time for a layout."""

    def __init__(self, layout: ParamLayout, names: TensorNames, rest: Base, key: str | None, ignore: Sequence[str]):
        self._layout, self._names, self._rest, self._key, self._ignore = layout, names, rest, key, ignore

    def open(self, path: Path, where: str) -> tuple[str, NamedState]:
        """The tensors of a file by the network's names; tied tensors under all of their names."""
        named = self._names.read(read_state_dict(path, where, self._key, self._ignore), where)
        for entry in self._layout.entries:
            names = (entry.name, *entry.aliases)
            held = next((named.state[name] for name in names if name in named.state), None)
            if held is not None:  # safetensors files usually keep only one name
                for name in names:
                    named.state.setdefault(name, held)
        return where, named

    def flatten(self, state: Mapping[str, Tensor], where: str) -> Tensor:
        try:
            params_P = self._layout.flatten(state)
            check_finite(self._layout, params_P[None])  # a float64 value may lie outside the range of float32
            return params_P
        except ValueError as error:
            raise PdiffError(f"{where}: {error}{self._names.hint(state)}") from error

    def frozen(self, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """The tensors of one file that are not selected, or those of its base, checked and in the layout's dtypes."""
        frozen: dict[str, Tensor] = {}
        for entry in self._layout.frozen:
            held = next((state[name] for name in (entry.name, *entry.tied) if name in state), None)
            if held is None and (hint := self._names.hint(state)):
                raise PdiffError(f"{where}: missing tensor {entry.name!r}.{hint}")
            found, origin = (held, where) if held is not None else self._rest.tensor(entry, where)
            frozen[entry.name] = _frozen_tensor(entry, found, origin)
        return frozen


def _frozen_tensor(entry: FrozenEntry, found: Tensor, where: str) -> Tensor:
    if tuple(found.shape) != entry.shape:
        raise PdiffError(f"{where}: tensor {entry.name!r} has shape {list(found.shape)}, expected {list(entry.shape)}.")
    if (found.is_floating_point() or found.is_complex()) and bool(torch.isnan(found).any()):
        raise PdiffError(f"{where}: tensor {entry.name!r} holds NaN; expected numbers.")
    wanted: torch.dtype = getattr(torch, entry.dtype)
    if found.dtype == wanted:
        return found
    tensor = found.to(wanted) if wanted.is_complex or not found.is_complex() else None
    if tensor is None or not torch.equal(tensor.to(found.dtype), found):
        raise PdiffError(f"{where}: tensor {entry.name!r} is {found.dtype}, and does not fit into {wanted} exactly.")
    return tensor


def _metadata(label: str, name: str) -> dict[str, Any]:
    steps = _STEP.findall(name) or re.findall(r"^(\d+)$", Path(name).stem)
    return {"run": label, "step": int(steps[-1]) if steps else None, "file": name}


def _say(source: str, prefix: str, collect: Mapping[str, Any]) -> None:
    """Tells what was decided without being asked for."""
    if collect["prefix"] != prefix:
        logger.warning("%s: the prefix %r was removed from all names.", source, collect["prefix"])
    if names := collect.get("ignored"):
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        logger.warning("%s: left out %s%s, which the network does not have.", source, ", ".join(names[:5]), more)
