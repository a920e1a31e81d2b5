"""Two processes in one folder: the second stops with a sentence. What killed ones left is removed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_sets import contents, dataset
from typer.testing import CliRunner

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints.rows import Rows, ShardRows, write_shard
from pdiff_hub.cli import app
from pdiff_hub.errors import PdiffError
from pdiff_hub.runs import generated_rows, generating
from pdiff_hub.safe_files.lock import alone_in

SHIPPED = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"
SMALL = ("--override", "network.hidden=[4, 4]", "--override", "collect.num_checkpoints=3")


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A folder that somebody else writes into: here, another thread."""
    folder, taken, ended = tmp_path / "held", threading.Event(), threading.Event()

    def hold() -> None:
        with alone_in(folder):
            taken.set()
            ended.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(10)
    yield folder
    ended.set()
    thread.join()


@pytest.mark.parametrize(
    "words",
    [
        ("run", "digits-mlp3", *SMALL),
        ("collect", "digits-mlp3", *SMALL),
        ("collect", "digits-mlp3", "--override", "collect={method: population}"),
        ("collect", "digits-subsets"),
        ("train", "digits-mlp3", "--dataset", str(SHIPPED / "checkpoints")),
        ("generate", str(SHIPPED), "--num-models", "2"),
        ("evaluate", str(SHIPPED), "--dataset", str(SHIPPED / "checkpoints"), "--num-models", "2"),
        ("audit", str(SHIPPED), "--num-models", "2"),
        ("reproduce", "table2a"),
    ],
    ids=lambda words: "-".join(words[:2]).replace("/", "."),
)
def test_the_second_is_told(held: Path, words: tuple[str, ...]) -> None:
    before = contents(held)
    done = CliRunner().invoke(app, [*words, "--output-dir", str(held)])
    assert isinstance(done.exception, PdiffError)
    assert str(done.exception).startswith(f"{held} is in use: process {os.getpid()} on ")
    assert contents(held) == before


def test_a_set_is_not_saved_into_a_folder_in_use(held: Path) -> None:
    with pytest.raises(PdiffError, match="is in use"):
        dataset().save_pretrained(held)


def test_networks_of_a_killed_judgement_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "unfinished-generated-abcd_123"
    left.mkdir()
    (left / "params.safetensors").write_bytes(b"gigabytes")
    (tmp_path / ".unfinished-results.json-0123abcd").write_text("half")
    (tmp_path / "unfinished-generated-by-me").mkdir()  # not ours

    def write(pipe: Any, num_models: int, file: Path, **_: Any) -> Rows:
        write_shard(file, num_models, 3, [(0, 0, torch.ones(num_models, 3))])
        return ShardRows([(file, num_models)], 3)

    monkeypatch.setattr(generating, "write_params", write)
    pipe: Any = None
    with generated_rows(pipe, 2, tmp_path, seed=0) as rows:
        assert torch.equal(rows.read(0, 2, 0, 3), torch.ones(2, 3))
    assert [each.name for each in tmp_path.iterdir()] == ["unfinished-generated-by-me"]


def test_a_pipeline_is_not_saved_where_somebody_writes(held: Path) -> None:
    before = contents(held)
    with pytest.raises(PdiffError, match="is in use"):
        PDiffPipeline.from_pretrained(SHIPPED).save_pretrained(held)
    assert contents(held) == before


def test_an_unknown_condition_is_named_before_collecting(tmp_path: Path) -> None:
    words = ["collect", "digits-mlp3", "--output-dir", str(tmp_path / "set"), "--override", "condition=accuracy"]
    done = CliRunner().invoke(app, words)
    assert "unknown column of the metadata" in str(done.exception) and not (tmp_path / "set").exists()
