"""`CheckpointJournal`: keeps checkpoints safe while they are collected, so that a killed run resumes exactly.

While collecting, the folder holds `parts/`: `settings.json`, `part-00000.safetensors`, ... (rows and their metadata)
and one `state-00003.safetensors`, the training state after three parts. A part is committed when it is renamed to its
final name, after its state is on the disk. The next start removes whatever else a kill has left. When all is
collected, the folder becomes a `CheckpointDataset` and `parts/` is removed.
Shapes: R rows of one part, P parameters.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset, check_finite
from pdiff_hub.checkpoints.files import metadata_table, remove_unlisted
from pdiff_hub.checkpoints.index import INDEX_NAME, read_index
from pdiff_hub.checkpoints.rows import SHARD_TENSOR, ShardRows
from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files import read_json, remove_unfinished, require_same_settings, write_json, write_safetensors
from pdiff_hub.safe_files.checking import checked
from pdiff_hub.safe_files.lock import FolderLock, alone_in, remove_stale_lock
from pdiff_hub.safe_files.tensors import read_tensors
from pdiff_hub.travelling.conditioner import ConditionSpec
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_Kind = TypeVar("_Kind")
_PARTS, _SETTINGS = "parts", "settings.json"
_NAME = re.compile(r"(part|state)-(\d{5,})\.safetensors")


@dataclass(frozen=True)
class TrainingState:
    """What a collector needs to resume: named tensors, and other data as JSON. Only the collector interprets it."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


class CheckpointJournal:
    """The checkpoints collected so far in `directory` (made if needed), which will hold the finished data set.

    Opening it finds what an earlier run committed: `num_checkpoints` rows, and the `state` to resume from. If
    `finished` is true, only `finish()` is left to do. One process at a time may use it: until `finish` or `close`, it
    holds the lock of the directory.

    Args:
        directory: where the data set will be.
        settings: everything that decides which checkpoints come out; JSON-able, and without paths of this machine,
            because the data set keeps it as `collect["settings"]`.
        layout: which tensors are collected.

    Raises ValueError if the directory holds checkpoints collected with other settings (the message names those that
    differ), if its files are damaged, or if another process collects there.
    """

    def __init__(self, directory: str | Path, settings: Mapping[str, Any], layout: ParamLayout):
        self.directory = Path(directory)
        self.layout = layout
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings), allow_nan=False))
        self._parts = self.directory / _PARTS
        self._files: list[tuple[Path, int]] = []
        self._metadata: list[dict[str, Any]] = []
        self._lock = None if self._is_done() else FolderLock(self.directory)
        self.finished = self._is_done()  # perhaps by a process that held the lock until now
        if self.finished:
            self._open_finished()
            return
        self._parts.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self._parts)
        file = self._parts / _SETTINGS
        if file.exists():
            found = _begun(file)
            self._check_same(found.settings, found.layout)
        else:
            write_json(file, {"settings": self.settings, "layout": layout.to_dict()})
        self._open_parts()

    @property
    def num_checkpoints(self) -> int:
        """How many checkpoints are committed (0 once finished: then the data set has them)."""
        return len(self._metadata)

    @property
    def state(self) -> TrainingState | None:
        """The newest training state, on the CPU; None if there is none. It belongs to exactly the committed rows."""
        file = self._state_file(len(self._files))
        if self.finished or not file.exists():
            return None
        info = _in_header(file, "info", dict[str, Any])
        return TrainingState(load_file(file), info)

    def append(self, params_RP: Tensor, metadata: Sequence[Mapping[str, Any]], state: TrainingState) -> None:
        """Commits R >= 1 checkpoints (float [R,P], raw units) and the state to resume from after them.

        They are on the disk when this returns; a kill during the call leaves what was committed before, and its state.
        ValueError for a wrong shape or number of metadata rows; OSError (a full disk) leaves all as it was.
        """
        self._check_open()
        if params_RP.ndim != 2 or not len(params_RP) or params_RP.shape[1] != self.layout.num_params:
            raise PdiffError(
                f"checkpoints have shape {list(params_RP.shape)}, expected [R, {self.layout.num_params}] with R >= 1."
            )
        if len(metadata) != len(params_RP):
            raise PdiffError(f"there are {len(metadata)} metadata rows for {len(params_RP)} checkpoints.")
        params_RP = params_RP.detach().to("cpu", torch.float32)
        check_finite(self.layout, params_RP, self.num_checkpoints)
        # The rows get their types in the data set, checked beside an earlier row: a misfit fails now, not at the end.
        rows = metadata_table([*self._metadata[-1:], *metadata]).drop_columns("index").to_pylist()[-len(params_RP) :]
        number = len(self._files)
        self._write_state(number + 1, state)
        try:
            header = {"metadata": json.dumps(rows)}
            write_safetensors(self._part_file(number), {SHARD_TENSOR: params_RP}, header)
        except OSError:
            self._state_file(number + 1).unlink(missing_ok=True)
            raise
        self._files.append((self._part_file(number), len(rows)))
        self._metadata += rows
        self._state_file(number).unlink(missing_ok=True)

    def save_state(self, state: TrainingState) -> None:
        """Atomically replaces the newest state without adding checkpoints (e.g. while there is none to keep yet)."""
        self._check_open()
        self._write_state(len(self._files), state)

    def once(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that `make` gives; kept until all is collected, so that a resumed run goes on with the same."""
        self._check_open()
        file = self._parts / f"{name}.safetensors"
        if not file.exists():
            write_safetensors(file, make())
        return read_tensors(file)

    def collected(self) -> Tensor:
        """The committed checkpoints, float32 [K,P], in memory."""
        self._check_open()
        return ShardRows(self._files, self.layout.num_params).read(0, self.num_checkpoints, 0, self.layout.num_params)

    def finish(
        self,
        *,
        network: Mapping[str, Any],
        task: Mapping[str, Any] | None,
        frozen: Mapping[str, Tensor],
        collect: Mapping[str, Any],
        conditions: ConditionSpec | None = None,
        conditions_KD: Tensor | None = None,
        params_KP: Tensor | None = None,
    ) -> CheckpointDataset:
        """Turns what was collected into the data set in `directory` and removes the parts.

        params_KP: goes into the data set in place of what was `collected()`, e.g. aligned.

        The data set keeps `collect`, with the settings added. If the data set is finished already, it is only opened.
        """
        if not self.finished:
            if not self._files:
                raise PdiffError(f"no checkpoint was collected in {self.directory}.")
            dataset = CheckpointDataset(
                ShardRows(self._files, self.layout.num_params) if params_KP is None else params_KP,
                self.layout,
                network=network,
                task=task,
                frozen=frozen,
                metadata=self._metadata,
                collect={**collect, "settings": self.settings},
                conditions=conditions,
                conditions_KD=conditions_KD,
            )
            dataset.save_pretrained(self.directory)
            self.finished = True
            shutil.rmtree(self._parts)
            self.close()
        return CheckpointDataset.from_pretrained(self.directory)

    def close(self) -> None:
        """Lets other processes use the directory; so does the end of this object, of its process, and `finish`."""
        if self._lock is not None:
            self._lock.release()

    def _is_done(self) -> bool:
        return (self.directory / INDEX_NAME).exists()

    def _open_finished(self) -> None:
        index = read_index(self.directory)
        self._check_same(index["collect"].get("settings", {}), index["layout"])
        tidy_finished(self.directory)
        self.close()

    def _open_parts(self) -> None:
        numbers: dict[str, set[int]] = {"part": set(), "state": set()}
        for name in (each.name for each in self._parts.iterdir()):
            if match := _NAME.fullmatch(name):
                numbers[match[1]].add(int(match[2]))
        count = len(numbers["part"])
        if numbers["part"] != set(range(count)):
            missing = min(set(range(count)) - numbers["part"])
            raise PdiffError(f"{self._part_file(missing)} is missing; restore it or remove {self._parts}.")
        if count and count not in numbers["state"]:
            raise PdiffError(f"{self._state_file(count)} is missing; remove {self._parts} to start anew.")
        for number in numbers["state"] - {count}:  # of a part that was not committed, or of an earlier one
            self._state_file(number).unlink()
        for number in range(count):
            metadata = _in_header(self._part_file(number), "metadata", list[dict[str, str | int | float | bool | None]])
            self._files.append((self._part_file(number), len(metadata)))
            self._metadata += metadata
        ShardRows(self._files, self.layout.num_params)  # raises if a file is truncated or has another shape

    def _write_state(self, number: int, state: TrainingState) -> None:
        write_safetensors(self._state_file(number), state.tensors, {"info": json.dumps(dict(state.info))})

    def _part_file(self, number: int) -> Path:
        return self._parts / f"part-{number:05d}.safetensors"

    def _state_file(self, number: int) -> Path:
        return self._parts / f"state-{number:05d}.safetensors"

    def _check_open(self) -> None:
        if self.finished:
            raise PdiffError(f"the data set in {self.directory} is finished; nothing can be added to it.")

    def _check_same(self, settings: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
        same = ParamLayout.from_dict(layout) == self.layout
        others = [] if same else ["the layout (which tensors, and their shapes)"]
        require_same_settings(self.directory, settings, self.settings, others)


def settings_of(directory: Path) -> dict[str, Any] | None:
    """The settings that the checkpoints in `directory` are or were collected with; None if there are none yet.

    Raises ValueError for damaged files.
    """
    if (directory / INDEX_NAME).is_file():
        settings: dict[str, Any] = read_index(directory)["collect"].get("settings", {})
        return settings
    file = directory / _PARTS / _SETTINGS
    return _begun(file).settings if file.is_file() else None


def tidy_finished(directory: Path) -> None:
    """Removes what a process left that was killed after the data set in `directory` was saved."""
    parts = directory / _PARTS
    if parts.exists():
        with alone_in(directory):
            remove_unlisted(directory, read_index(directory))
            shutil.rmtree(parts)
    remove_stale_lock(directory)


@dataclass(frozen=True)
class _Begun:
    """What parts/settings.json holds."""

    settings: dict[str, Any]
    layout: dict[str, Any]


def _begun(file: Path) -> _Begun:
    return checked(_Begun, read_json(file), str(file), f"remove {file.parent} to start anew.")


def _in_header(file: Path, name: str, kind: type[_Kind]) -> _Kind:
    """What JSON the header of a safetensors file holds as `name`."""
    remedy = f"remove {file.parent} to start anew."
    try:
        with safe_open(file, framework="pt") as opened:
            content = json.loads((opened.metadata() or {}).get(name, ""))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise PdiffError(f"{file} is damaged ({error}); {remedy}") from error
    return checked(kind, content, f"{file}, {name}", remedy)
