"""`CheckpointDataset`: a set of checkpoints of one network, in memory, in a folder or on the Hub.

Shapes: K checkpoints, P parameters, R some of the rows, S a slice of the parameters, D numbers of a condition.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from hashlib import sha256
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import torch
from torch import Tensor

from pdiff_hub.checkpoints.checks import CheckedRows, check_finite, check_frozen, json_able
from pdiff_hub.checkpoints.conditions import checked_conditions, from_column, from_table, with_column
from pdiff_hub.checkpoints.files import metadata_table, write_folder
from pdiff_hub.checkpoints.held_out import require_unseen
from pdiff_hub.checkpoints.hub import Pulled, append, find_folder, find_held_out, push_folder, require_rows
from pdiff_hub.checkpoints.index import HELD_OUT, INDEX_NAME, read_index
from pdiff_hub.checkpoints.reading import read_folder
from pdiff_hub.checkpoints.rows import PickedRows, Rows, TensorRows
from pdiff_hub.errors import PdiffError
from pdiff_hub.transfer import Pushed, PushOptions, commit_of, temporary_folder
from pdiff_hub.travelling.conditioner import ConditionSpec
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_KEPT_BYTES = 256 << 20
_DIGESTED = 2**20  # numbers from each end of the vectors, of all checkpoints together


class CheckpointDataset:
    """K checkpoints of one network as rows of P numbers (raw weight units), in a fixed order.

    Args:
        params_KP: float [K,P], kept as float32 on the CPU; or `Rows` that are read from files when needed.
        layout: which tensors the P numbers are.
        network: the resolved spec that rebuilds the network (`networks.resolve_network`), JSON-able.
        task: the resolved spec of the data it was trained on, JSON-able; None if unknown.
        frozen: the tensors that all checkpoints share, as `layout.frozen_state` gives them.
        metadata: one dict per checkpoint: run, seed, step, train_loss, validation_loss, validation_accuracy (a
            fraction) and others. Values are str, int, float, bool or None (unknown).
        collect: how the checkpoints were collected, JSON-able.
        conditions: what the networks can be asked for; None if they cannot. `with_conditions` makes it of metadata.
        conditions_KD: float [K,D], kept as float32, a row per checkpoint; a row of NaN has no condition.

    `hub_id` and `hub_revision` (the commit) are None unless the set came from the Hub or was pushed to it.

    Raises ValueError if these do not fit together; it names a tensor that holds NaN or Inf, is missing or mis-shaped.
    """

    def __init__(
        self,
        params_KP: Tensor | Rows,
        layout: ParamLayout,
        *,
        network: Mapping[str, Any],
        task: Mapping[str, Any] | None = None,
        frozen: Mapping[str, Tensor] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        collect: Mapping[str, Any] | None = None,
        conditions: ConditionSpec | None = None,
        conditions_KD: Tensor | None = None,
    ):
        if isinstance(params_KP, Tensor):
            if params_KP.ndim != 2 or not params_KP.is_floating_point():
                raise PdiffError(f"params_KP is {params_KP.dtype} {list(params_KP.shape)}, expected float [K,P].")
            params_KP = TensorRows(params_KP.detach().to("cpu", torch.float32).contiguous())
        self.layout = layout
        self._rows: Rows = params_KP
        self._folder: Path | None = None  # the rows are read from it, if it is set
        self._pulled: Pulled | None = None  # of what this folder is a copy, if it is one
        self._whole_folder: Rows | None = None  # the rows, if they are all rows of that folder in its order
        self.hub_id: str | None = None
        self.hub_revision: str | None = None
        if self._rows.num_rows < 1 or self._rows.num_params != layout.num_params:
            raise PdiffError(
                f"the checkpoints have shape [{self._rows.num_rows}, {self._rows.num_params}], expected "
                f"at least one row of {layout.num_params} numbers, as the layout says."
            )
        rows = [{}] * len(self) if metadata is None else metadata
        if len(rows) != len(self):
            raise PdiffError(f"there are {len(rows)} metadata rows for {len(self)} checkpoints.")
        self._table = metadata_table(rows)
        self.metadata: list[dict[str, Any]] = self._table.drop_columns("index").to_pylist()
        self.network = json_able("network", network)
        self.task = None if task is None else json_able("task", task)
        self.collect = json_able("collect", collect or {})
        self.frozen = dict(frozen or {})
        self.conditions = conditions
        self.conditions_KD = checked_conditions(conditions, conditions_KD, len(self))
        check_frozen(layout, self.frozen)
        if isinstance(params_KP, TensorRows):
            check_finite(layout, params_KP.params_KP)
        else:
            self._rows = CheckedRows(params_KP, layout)

    def __len__(self) -> int:
        return self._rows.num_rows

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> CheckpointDataset: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | CheckpointDataset:
        """A checkpoint as a row: its metadata, its "params" (float32 [P]) and, if the set has conditions, its
        "condition" (float32 [D]). -1 is the last one; a slice gives a set of those checkpoints.
        """
        if isinstance(index, slice):
            return self.select_rows(range(*index.indices(len(self))))
        try:
            index = operator.index(index)
        except TypeError as error:
            raise TypeError(f"the index of a checkpoint is {index!r}, expected a whole number or a slice.") from error
        if not -len(self) <= index < len(self):  # Python ends a loop by this error
            raise IndexError(f"checkpoint {index} does not exist; there are {len(self)}, counted from 0.")
        return self._row(index % len(self), self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows, as `dataset[i]` gives them; of a large set one at a time is in memory."""
        rows = self.rows
        return (self._row(index, rows) for index in range(len(self)))

    def _row(self, index: int, rows: Rows) -> dict[str, Any]:
        row = {"params": rows.read(index, index + 1, 0, self.layout.num_params)[0], **self.metadata[index]}
        return row if self.conditions_KD is None else {**row, "condition": self.conditions_KD[index]}

    def __repr__(self) -> str:
        return f"CheckpointDataset(num_checkpoints={len(self)}, num_params={self.layout.num_params})"

    @property
    def folder(self) -> Path | None:
        """The folder that it was opened from (from the Hub: the copy in the cache), or None."""
        return self._folder

    @property
    def in_memory(self) -> bool:
        """Whether the set is in no folder and on no Hub that is known."""
        return self._folder is None and self.hub_id is None

    @property
    def rows(self) -> Rows:
        """The checkpoints as `Rows`, for streaming. A small set is read once and kept in memory."""
        if 4 * len(self) * self.layout.num_params <= _KEPT_BYTES:  # else every read decodes parquet again
            return TensorRows(self.params_KP)
        return self._rows

    @property
    def params_KP(self) -> Tensor:
        """All checkpoints, float32 [K,P]; read, on the CPU, on first use and kept (see `read_slice` for large sets)."""
        if not isinstance(self._rows, TensorRows):
            self._rows = TensorRows(self._rows.read(0, len(self), 0, self.layout.num_params))
        return self._rows.params_KP

    def read_slice(self, start: int, stop: int) -> Tensor:
        """Columns start..stop of all checkpoints, float32 [K, stop-start], without keeping the rest in memory."""
        if not 0 <= start <= stop <= self.layout.num_params:
            raise PdiffError(f"slice {start}..{stop} does not lie in the {self.layout.num_params} parameters.")
        return self._rows.read(0, len(self), start, stop)

    def with_rows(self, rows: Rows) -> CheckpointDataset:
        """The same set, whose numbers are read from `rows`: a copy of its own `rows`, on another device say."""
        changed = copy(self)
        changed._rows = rows
        return changed

    def digest(self, num_rows: int) -> str:
        """SHA-256 (hex) of the first and last numbers of the first `num_rows` checkpoints, which need not all be read.

        It tells whether these are the same checkpoints in the same order.
        """
        columns, digest = min(max(1, _DIGESTED // num_rows), self.layout.num_params), sha256()
        for start in (0, self.layout.num_params - columns):
            digest.update(self._rows.read(0, num_rows, start, start + columns).contiguous().numpy().data)
        return digest.hexdigest()

    def state_dict(self, index: int) -> dict[str, Tensor]:
        """Checkpoint `index` (0..K-1) as a state dict that loads with `strict=True`; the frozen tensors are shared."""
        self._check_index(index)
        params_P = self._rows.read(index, index + 1, 0, self.layout.num_params)[0]
        unflattened = self.layout.unflatten(params_P)
        assert isinstance(unflattened, dict)
        return {**self.frozen, **unflattened}

    def select_rows(self, indices: Sequence[int]) -> CheckpointDataset:
        """The checkpoints `indices` (each 0..K-1) in that order, as a new set."""
        indices = [self._check_index(index) for index in indices]
        rows: Rows = PickedRows(self._rows, indices)
        if isinstance(self._rows, TensorRows):
            rows = TensorRows(self._rows.params_KP[indices])
        picked = CheckpointDataset(
            rows,
            self.layout,
            network=self.network,
            task=self.task,
            frozen=self.frozen,
            metadata=[self.metadata[index] for index in indices],
            collect=self.collect,
            conditions=self.conditions,
            conditions_KD=None if self.conditions_KD is None else self.conditions_KD[indices],
        )
        picked._folder, picked._pulled = self._folder, self._pulled
        return picked

    def with_conditions(self, column: str) -> CheckpointDataset:
        """The same checkpoints, which can be asked for by a column of the metadata, e.g. "validation_accuracy".

        A column of numbers gives a scalar, one of texts a class. ValueError for one that is unknown, or tells no
        checkpoints apart.
        """
        spec, conditions_KD = from_column(self.metadata, column)
        changed = copy(self)
        changed.conditions, changed.conditions_KD = spec, conditions_KD
        return changed

    def save_pretrained(self, path: str | Path) -> None:
        """Writes the set, and its `held_out` one, into folder `path` (`checkpoints/files.py`), replacing a set in it.

        Other files in the folder stay. A kill leaves the old set or the new one. After an OSError (e.g. a full disk),
        which names the file, the set in the folder is as it was.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise PdiffError(f"{path} is a file; give a folder to save the data set in.")
        self._save_held_out(path / HELD_OUT)
        write_folder(path, self._rows, self._columns(), self._description(), self.frozen)
        if self._folder == path.resolve() and not isinstance(self._rows, TensorRows):
            # The save may have replaced the files that the rows were read from.
            self._rows = self._whole_folder = CheckedRows(read_folder(path, read_index(path))[0], self.layout)

    def _save_held_out(self, place: Path) -> None:
        """Writes the held-out networks into `place`; PdiffError if it holds those of another set."""
        is_part = self._pulled is not None and self._whole_folder is None  # who asks for some rows gets no others
        held_out = None if is_part else self.held_out()
        if held_out is not None and held_out.folder != place.resolve():
            held_out.save_pretrained(place)
        elif held_out is None and (place / INDEX_NAME).is_file():
            try:
                require_unseen(self, CheckpointDataset.from_pretrained(place))
            except PdiffError as error:
                raise PdiffError(
                    f"{place} is of another data set, and would be taken for a part of this one ({error}); remove it, "
                    "or save elsewhere."
                ) from error

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        rows: Sequence[int] | None = None,
    ) -> CheckpointDataset:
        """Opens a folder, or a data set repository on the Hub ("user/name", at `revision`).

        Parameters are read when needed, through a memory map. With `rows` (each 0..K-1) the set holds those checkpoints
        in that order, and only the files that hold them are downloaded. FileNotFoundError if there is no such set.
        ValueError names a file that is damaged, has a newer format, or does not fit the rest. Other errors are those of
        `transfer.pull`.
        """
        folder = find_folder(
            path_or_id, rows, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        index = read_index(folder)
        which = None if rows is None else require_rows(rows, index["num_checkpoints"])
        read, table, frozen = read_folder(folder, index, which)
        try:
            conditions = None if index.get("conditions") is None else ConditionSpec.from_dict(index["conditions"])
            table, conditions_KD = from_table(table, conditions)
            dataset = cls(
                read,
                ParamLayout.from_dict(index["layout"]),
                network=index["network"],
                task=index["task"],
                frozen=frozen,
                metadata=table.drop_columns("index").to_pylist(),
                collect=index["collect"],
                conditions=conditions,
                conditions_KD=conditions_KD,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PdiffError(f"{folder / INDEX_NAME} does not fit its files or is damaged: {error}") from error
        dataset._folder = folder.resolve()
        dataset._whole_folder = dataset._rows if rows is None else None
        if not Path(path_or_id).is_dir():
            dataset.hub_id, dataset.hub_revision = str(path_or_id), commit_of(folder)
            dataset._pulled = Pulled(dataset.hub_id, dataset.hub_revision, token, cache_dir, local_files_only)
        return dataset

    def held_out(self) -> CheckpointDataset | None:
        """The networks of the tasks that were held out of a family, a set of their own; None if there are none.

        They lie in `unseen/` of the set's folder or repository, and are saved and pushed with the set or a part of it;
        but a part of a set from the Hub goes alone. They are asked for as these are: after `with_conditions` there are
        none. ValueError if they were not collected with this set, or hold a task of its own.
        """
        if self.collect.get("method") != "family" or self._folder is None:
            return None
        folder = find_held_out(self._folder, self._pulled)
        if folder is None or self._description().get("conditions") != read_index(self._folder).get("conditions"):
            return None
        found = CheckpointDataset.from_pretrained(folder)
        require_unseen(self, found)
        return found

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload checkpoints",
        create_pr: bool = False,
        token: str | bool | None = None,
        append: bool = False,
    ) -> str:
        """Puts the set and a card into the Hub's data set repository `repo_id` in one commit; -> the commit's URL.

        Makes the repository if needed, and replaces the set in it with its `held_out` networks. Files that are there
        already are not uploaded.

        Args:
            private: whether a new repository is private (None: the account's default).
            revision: a branch, by default main.
            create_pr: open a pull request instead; -> its URL.
            append: add these checkpoints to the set there. Its own are neither downloaded nor uploaded again.
                ValueError says what differs if network, data or layout are not the same, and that sets with
                held-out tasks are pushed whole.

        Other errors are those of `transfer.push_files`.
        """
        options = PushOptions(
            private=private, revision=revision, commit_message=commit_message, create_pr=create_pr, token=token
        )
        pushed = self._append(repo_id, options) if append else None
        if pushed is None:
            folder = self._unchanged_folder()
            if folder is not None:
                pushed = push_folder(folder, repo_id, options, with_held_out=self.held_out() is not None)
            else:
                with temporary_folder("pdiff-checkpoints") as temporary:
                    self.save_pretrained(temporary)
                    has_held_out = (temporary / HELD_OUT / INDEX_NAME).is_file()
                    pushed = push_folder(temporary, repo_id, options, with_held_out=has_held_out)
        self.hub_id, self.hub_revision = repo_id, pushed.commit
        return pushed.url

    def _append(self, repo_id: str, options: PushOptions) -> Pushed | None:
        held_out = self.held_out() is not None
        rows, table, description = self._rows, self._columns(), self._description()
        return append(rows, table, description, self.frozen, repo_id, options, held_out=held_out)

    def _columns(self) -> pa.Table:
        return with_column(metadata_table(self.metadata), self.conditions_KD)

    def _description(self) -> dict[str, Any]:
        """What dataset.json says; a set without conditions says nothing of them, as before there were any."""
        known = {"layout": self.layout.to_dict(), "network": self.network, "task": self.task, "collect": self.collect}
        return known if self.conditions is None else {**known, "conditions": self.conditions.to_dict()}

    def _unchanged_folder(self) -> Path | None:
        """The folder that this set was opened from, if saving the set would give the same content; else None."""
        if self._folder is None or self._rows is not self._whole_folder:
            return None
        index = read_index(self._folder)
        _, table, frozen = read_folder(self._folder, index)
        same = (
            all(index.get(key) == value for key, value in self._description().items())
            and table.equals(self._columns())
            and frozen.keys() == self.frozen.keys()
            and all(torch.equal(tensor, self.frozen[name]) for name, tensor in frozen.items())
        )
        return self._folder if same else None

    def _check_index(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise PdiffError(f"checkpoint {index} does not exist; there are {len(self)}, counted from 0.")
        return int(index)
