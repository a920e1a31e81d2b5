"""training/row_slices.py: its slices are the numbers of the data set, bit for bit, wherever they lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

import checkpoint_sets
import pytest
import torch

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints import dataset as checkpoints
from pdiff_hub.checkpoints.rows import Digests
from pdiff_hub.errors import PdiffError
from pdiff_hub.training import row_slices
from pdiff_hub.training.autoencoder import _statistics
from pdiff_hub.training.config import AutoencoderConfig
from pdiff_hub.training.row_slices import RowSlices

ROWS = [0, 1, 2, 4, 7, 3]


@pytest.mark.parametrize("form", checkpoint_sets.FORMS)
def test_slices_are_the_rows_in_their_order(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = checkpoint_sets.dataset(9)
    checkpoint_sets.use_small_files(form, monkeypatch)
    made.save_pretrained(tmp_path)
    monkeypatch.setattr(checkpoints, "_KEPT_BYTES", 0)
    monkeypatch.setattr(row_slices, "MAX_PARQUET_PARAMS", 1 if form == "shards" else 10**6)
    monkeypatch.setattr(row_slices, "_READ_BYTES", 4 * 2 * 20)  # two rows of the longest slice
    monkeypatch.setattr(row_slices, "_BLOCK_BYTES", 1)  # blocks of 16 numbers
    opened = CheckpointDataset.from_pretrained(tmp_path)
    slices, config = RowSlices(opened, ROWS), AutoencoderConfig(normalization="per_parameter")
    in_memory = RowSlices(made, ROWS)
    statistics = _statistics(opened, slices, config)
    monkeypatch.setattr(row_slices, "_BLOCK_BYTES", 1 << 20)
    for name, expected in _statistics(made, in_memory, config).named_buffers():
        assert torch.equal(statistics.get_buffer(name), expected), name
    monkeypatch.setattr(row_slices, "_BLOCK_BYTES", 1)
    for start, stop in ((0, 20), (3, 20), (19, 38), (37, 38)):  # shorter ones after longer ones
        expected_RS = made.params_KP[ROWS, start:stop]
        assert torch.equal(slices(start, stop), expected_RS)
        normalized_RS = slices.normalized(statistics, start, stop)
        assert torch.equal(normalized_RS, statistics.normalize(expected_RS, start)) and normalized_RS.is_contiguous()
        assert torch.equal(slices(start, stop), expected_RS)  # neither the set nor a kept slice was written to
    assert torch.equal(made.params_KP, checkpoint_sets.dataset(9).params_KP)


def test_no_run_of_rows_is_longer_than_asked_and_no_row_is_lost() -> None:
    assert list(row_slices._runs(ROWS, 2)) == [(0, 0, 2), (2, 2, 3), (3, 4, 5), (4, 7, 8), (5, 3, 4)]
    assert list(row_slices._runs(ROWS, 10)) == [(0, 0, 3), (3, 4, 5), (4, 7, 8), (5, 3, 4)]


def test_files_that_are_compared_at_the_same_time_are_all_compared(tmp_path: Path) -> None:
    files = [tmp_path / str(index) for index in range(20)]
    for file in files:
        file.write_bytes(b"as it was")
    right = "a1" * 32
    with pytest.raises(PdiffError, match=r"was changed or is damaged.*lists a1a1a1a1"):
        Digests(dict.fromkeys(files, right)).compare_all(files)
    digests = Digests(dict.fromkeys(files, hashlib.sha256(b"as it was").hexdigest()))
    digests.compare_all(files)
    files[3].write_bytes(b"other")
    digests.compare_all(files)  # each is compared once
