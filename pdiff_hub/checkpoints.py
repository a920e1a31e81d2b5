"""`CheckpointDataset`: a set of checkpoints of one network, in memory, in a folder or on the Hub.

Shapes: K checkpoints, P parameters, R some of the rows, S a slice of the parameters.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdiff_hub.checkpoint_files import FILE_PATTERNS, INDEX_NAME, metadata_table, read_folder, read_index, write_folder
from pdiff_hub.checkpoint_rows import PickedRows, Rows, TensorRows
from pdiff_hub.param_autoencoder import ParamLayout


class CheckpointDataset:
    """K checkpoints of one network as rows of P numbers (raw weight units), in a fixed order.

    Args:
        params_KP: float [K,P], kept as float32 on the CPU; or `Rows` that are read from files when needed.
        layout: which tensors the P numbers are.
        network: the resolved spec that rebuilds the network (`networks.resolve_network`), JSON-able.
        task: the resolved spec of the data it was trained on, JSON-able; None if unknown.
        frozen: the tensors that all checkpoints share, as `layout.frozen_state` gives them.
        metadata: a dict a checkpoint: run, seed, step, train_loss, validation_loss, validation_accuracy (a fraction)
            and others; what is not known is None. Values are str, int, float, bool or None.
        collect: how the checkpoints were collected, JSON-able.

    Raises ValueError if these do not fit together, naming the tensor that holds NaN or Inf, is missing or mis-shaped.
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
    ):
        if isinstance(params_KP, Tensor):
            if params_KP.ndim != 2 or not params_KP.is_floating_point():
                raise ValueError(f"params_KP is {params_KP.dtype} {list(params_KP.shape)}, expected float [K,P].")
            params_KP = TensorRows(params_KP.detach().to("cpu", torch.float32).contiguous())
        self.layout = layout
        self._rows: Rows = params_KP
        self._folder: Path | None = None  # where the rows are read from, if anywhere
        if self._rows.num_rows < 1 or self._rows.num_params != layout.num_params:
            raise ValueError(f"the checkpoints have shape [{self._rows.num_rows}, {self._rows.num_params}], expected "
                             f"at least one row of {layout.num_params} numbers, as the layout says.")
        rows = [{}] * len(self) if metadata is None else metadata
        if len(rows) != len(self):
            raise ValueError(f"there are {len(rows)} metadata rows for {len(self)} checkpoints.")
        self._table = metadata_table(rows)
        self.metadata: list[dict[str, Any]] = self._table.drop_columns("index").to_pylist()
        self.network = _json_able("network", network)
        self.task = None if task is None else _json_able("task", task)
        self.collect = _json_able("collect", collect or {})
        self.frozen = dict(frozen or {})
        _check_frozen(layout, self.frozen)
        if isinstance(params_KP, TensorRows):
            check_finite(layout, params_KP.params_KP)
        else:
            self._rows = _CheckedRows(params_KP, layout)

    def __len__(self) -> int:
        return self._rows.num_rows

    def __repr__(self) -> str:
        return f"CheckpointDataset(num_checkpoints={len(self)}, num_params={self.layout.num_params})"

    @property
    def params_KP(self) -> Tensor:
        """All checkpoints, float32 [K,P] on the CPU; read on first use and kept (see `read_slice` for large sets)."""
        if not isinstance(self._rows, TensorRows):
            self._rows = TensorRows(self._rows.read(0, len(self), 0, self.layout.num_params))
        return self._rows.params_KP

    def read_slice(self, start: int, stop: int) -> Tensor:
        """Columns start..stop of all checkpoints, float32 [K, stop-start], without keeping the rest in memory."""
        if not 0 <= start <= stop <= self.layout.num_params:
            raise ValueError(f"slice {start}..{stop} does not lie in the {self.layout.num_params} parameters.")
        return self._rows.read(0, len(self), start, stop)

    def state_dict(self, index: int) -> dict[str, Tensor]:
        """Checkpoint `index` (0..K-1) as a state dict that loads with `strict=True`; the frozen tensors are shared."""
        self._check_index(index)
        params_P = self._rows.read(index, index + 1, 0, self.layout.num_params)[0]
        unflattened = self.layout.unflatten(params_P)
        assert isinstance(unflattened, dict)
        return {**self.frozen, **unflattened}

    def select_rows(self, indices: Sequence[int]) -> CheckpointDataset:
        """The checkpoints `indices` (each 0..K-1) in that order, as a set of their own."""
        indices = [self._check_index(index) for index in indices]
        rows: Rows = PickedRows(self._rows, indices)
        if isinstance(self._rows, TensorRows):
            rows = TensorRows(self._rows.params_KP[indices])
        picked = CheckpointDataset(rows, self.layout, network=self.network, task=self.task, frozen=self.frozen,
                                   metadata=[self.metadata[index] for index in indices], collect=self.collect)
        picked._folder = self._folder
        return picked

    def save_pretrained(self, path: str | Path) -> None:
        """Writes the set into folder `path` in the format of `checkpoint_files`, replacing a set that is there.

        Other files in the folder stay. A kill leaves the old set or the new one; OSError (e.g. a full disk) names the
        file and leaves the folder as it was.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; give a folder to save the data set in.")
        description = {"layout": self.layout.to_dict(), "network": self.network, "task": self.task,
                       "collect": self.collect}
        write_folder(path, self._rows, metadata_table(self.metadata), description, self.frozen)
        if self._folder == path.resolve() and not isinstance(self._rows, TensorRows):
            # The files that the rows were read from may be the ones just replaced.
            self._rows = _CheckedRows(read_folder(path, read_index(path))[0], self.layout)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> CheckpointDataset:
        """Opens a folder, or a data set repository on the Hub ("user/name", at `revision`).

        Parameters are read when needed, through a memory map. FileNotFoundError if there is no such set; ValueError
        names the file that is damaged, from a newer format, or does not fit the rest.
        """
        folder = Path(path_or_id)
        if not folder.is_dir():
            folder = _download(str(path_or_id), revision, token, cache_dir, local_files_only)
        elif revision is not None:
            raise ValueError(f"{folder} is a local folder, which has no revision {revision!r}.")
        index = read_index(folder)
        rows, table, frozen = read_folder(folder, index)
        try:
            layout = ParamLayout.from_dict(index["layout"])
            dataset = cls(rows, layout, network=index["network"], task=index["task"], frozen=frozen,
                          metadata=table.drop_columns("index").to_pylist(), collect=index["collect"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / INDEX_NAME} does not fit its files or is damaged: {error}") from error
        dataset._folder = folder.resolve()
        return dataset

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | bool | None = None,
        revision: str | None = None, commit_message: str = "Upload checkpoints",
    ) -> str:
        """Puts the set into the Hub's data set repository `repo_id` in one commit (made if needed); -> its URL."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            commit = api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder, revision=revision,
                                       commit_message=commit_message, delete_patterns=list(FILE_PATTERNS))
        return str(commit.commit_url)

    def _check_index(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise ValueError(f"checkpoint {index} does not exist; there are {len(self)}, counted from 0.")
        return int(index)


class _CheckedRows:
    """Rows from files, each rectangle of which is checked for NaN and Inf when it is read."""

    def __init__(self, rows: Rows, layout: ParamLayout):
        self._rows, self._layout = rows, layout
        self.num_rows, self.num_params = rows.num_rows, rows.num_params

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        params_RS = self._rows.read(first, last, start, stop)
        check_finite(self._layout, params_RS, first, start)
        return params_RS


def check_finite(layout: ParamLayout, params_RS: Tensor, first: int = 0, start: int = 0) -> None:
    """ValueError naming checkpoint and tensor if params_RS, from row `first`, column `start` on, has NaN or Inf."""
    # The extremes are not finite exactly if something is not; they take one pass and no memory.
    if params_RS.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(params_RS)):
        return
    row, column = (~torch.isfinite(params_RS)).nonzero()[0].tolist()
    _, entry = layout.overlapping(start + column, start + column + 1)[0]
    raise ValueError(f"checkpoint {first + row}: tensor {entry.name!r} holds NaN or Inf; expected finite numbers.")


def _check_frozen(layout: ParamLayout, frozen: Mapping[str, Tensor]) -> None:
    expected = {entry.name: f"{entry.dtype} {list(entry.shape)}" for entry in layout.frozen}
    found = {name: f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for name, each in frozen.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(f"frozen tensor {name!r} is {found.get(name, 'missing')}, and the layout expects "
                             f"{expected.get(name, 'no such tensor')}; give what layout.frozen_state returns.")


def _json_able(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `value` as it comes back from a file."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be written as JSON: {error}.") from error
    return copy


def _download(
    repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None, local_files_only: bool
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(
            repo_id, repo_type="dataset", revision=revision, token=token, cache_dir=cache_dir,
            local_files_only=local_files_only, allow_patterns=[INDEX_NAME, *FILE_PATTERNS]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"{repo_id!r} is neither a folder here nor a data set that the Hub gives out "
                                f"({error}).") from error
