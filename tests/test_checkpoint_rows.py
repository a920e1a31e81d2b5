"""A shard written in pieces equals the file that safetensors writes, and rows of a file are judged as tensors are."""

from __future__ import annotations

from pathlib import Path

import checkpoint_sets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pdiff_hub import PDiffPipeline, runs
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints import dataset as checkpoints
from pdiff_hub.checkpoints import rows as checkpoint_rows
from pdiff_hub.checkpoints.checks import CheckedRows
from pdiff_hub.checkpoints.rows import PickedRows, ShardRows, TensorRows, as_rows, pieces_of, write_shard
from pdiff_hub.evaluation.distances import nearest_l2, spread_ratio
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.networks import build_network
from pdiff_hub.pipeline import sample
from pdiff_hub.tasks import load_task

PIPELINE = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"


@given(rows=st.integers(1, 7), params=st.integers(1, 40), piece=st.integers(4, 200), data=st.data())
def test_a_shard_in_pieces_is_the_file_of_safetensors(
    tmp_path_factory: pytest.TempPathFactory, rows: int, params: int, piece: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    first = data.draw(st.integers(0, rows - 1))
    params_KP = torch.randn(rows, params, generator=torch.Generator().manual_seed(rows))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(checkpoint_rows, "_PIECE_BYTES", piece)
        pieces = list(pieces_of(TensorRows(params_KP), first, rows))
    assert max(4 * part.numel() for _, _, part in pieces) <= piece
    write_shard(folder / "ours", rows - first, params, reversed(pieces))
    save_file({"params": params_KP[first:].contiguous()}, folder / "theirs")
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_rows_of_a_file_are_judged_as_the_tensor_is(tmp_path: Path) -> None:
    pipe = PDiffPipeline.from_pretrained(PIPELINE)
    pipe.set_progress_bar_config(disable=True)
    params_NP = sample(pipe, 5, seed=3, num_inference_steps=5)
    rows = runs.write_params(pipe, 5, tmp_path / "a" / "params.safetensors", seed=3, num_inference_steps=5)
    assert torch.allclose(rows.read(0, 5, 0, rows.num_params), params_NP, atol=1e-5)
    params_NP = load_file(tmp_path / "a" / "params.safetensors")["params"]
    task, autoencoder = load_task("digits"), pipe.autoencoder
    judge = Judge(
        build_network(autoencoder.config.network, pretrained=False),
        task,
        autoencoder.layout,
        autoencoder.frozen_state(),
    )
    picked = PickedRows(rows, [4, 0, 1])
    assert torch.equal(judge(picked).test.wrong_BN, judge(params_NP[[4, 0, 1]]).test.wrong_BN)
    assert torch.equal(nearest_l2(picked, rows, leave_one_out=False), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(nearest_l2(rows, rows, leave_one_out=True), nearest_l2(params_NP, params_NP, leave_one_out=True))
    assert spread_ratio(rows, params_NP) == 1.0


def test_judged_networks_leave_no_file_behind(tmp_path: Path) -> None:
    pipe = PDiffPipeline.from_pretrained(PIPELINE)
    pipe.set_progress_bar_config(disable=True)
    with runs.generated_rows(pipe, 3, tmp_path / "new", seed=0, num_inference_steps=2) as rows:
        assert isinstance(rows, ShardRows) and rows.num_rows == 3
    assert not list((tmp_path / "new").iterdir())


def test_rows_side_by_side_are_read_without_a_copy() -> None:
    params_KP = torch.randn(6, 10)
    picked = PickedRows(TensorRows(params_KP), [4, 1, 2, 3])
    assert torch.equal(picked.read(1, 3, 2, 7), params_KP[1:3, 2:7])
    assert picked.read(1, 3, 2, 7).data_ptr() == params_KP[1, 2:].data_ptr()
    assert torch.equal(picked.read(0, 4, 0, 10), params_KP[[4, 1, 2, 3]])
    assert picked.read(2, 2, 3, 5).shape == (0, 2)


def test_rows_are_checked_until_they_were_checked_whole() -> None:
    layout = checkpoint_sets.dataset().layout
    params_KP = torch.zeros(3, layout.num_params)
    params_KP[1, 3] = torch.nan
    rows = CheckedRows(TensorRows(params_KP), layout)
    rows.read(0, 3, 4, layout.num_params)  # says nothing of the first columns
    rows.read(0, 1, 0, layout.num_params)
    for first, last, start, stop in [(0, 3, 0, layout.num_params), (0, 2, 3, 4), (1, 2, 0, 5)]:
        for _ in range(2):  # what failed is not known to be finite
            with pytest.raises(ValueError, match="checkpoint 1: tensor"):
                rows.read(first, last, start, stop)
    assert torch.equal(rows.read(0, 1, 0, 5), params_KP[:1, :5])


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[4\], expected networks x parameters"):
        as_rows(torch.zeros(4))


def test_small_sets_are_read_once_and_large_ones_when_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = checkpoint_sets.dataset()
    made.save_pretrained(tmp_path)
    small, large = (CheckpointDataset.from_pretrained(tmp_path) for _ in range(2))
    assert small.rows.read(0, 4, 0, made.layout.num_params).data_ptr() == small.params_KP.data_ptr()
    monkeypatch.setattr(checkpoints, "_KEPT_BYTES", 0)
    assert not isinstance(large.rows, TensorRows)
    assert torch.equal(large.rows.read(1, 3, 2, 9), made.params_KP[1:3, 2:9])
