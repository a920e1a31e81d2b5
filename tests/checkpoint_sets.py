"""A small checkpoint data set for tests, and ways to look at the files that it leaves on the disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints import files as checkpoint_files
from pdiff_hub.travelling.conditioner import ConditionSpec
from pdiff_hub.travelling.param_autoencoder import ParamLayout

FORMS = ["parquet", "shards"]
DIGITS = ConditionSpec("classes", "bits", 10, tuple(map(str, range(10))))


def network(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


def dataset(num: int = 4, *, width: int = 5, select: str = "all", seed: int = 0) -> CheckpointDataset:
    module = network(width)
    layout = ParamLayout.from_module(module, select)
    params_KP = torch.randn(num, layout.num_params, generator=torch.Generator().manual_seed(seed))
    metadata = [{"run": "a", "seed": seed, "step": k, "train_loss": 0.5 / (k + 1), "note": f"n{k}"} for k in range(num)]
    return CheckpointDataset(
        params_KP,
        layout,
        network={"name": "x", "width": width},
        task={"name": "digits"},
        frozen=layout.frozen_state(module.state_dict()),
        metadata=metadata,
        collect={"method": "test", "rate": 0.1},
    )


def conditional(num: int = 4, spec: ConditionSpec = DIGITS, seed: int = 0, **options: Any) -> CheckpointDataset:
    """The same, with conditions: zeros and ones, or `conditions_KD`."""
    plain = dataset(num, seed=seed)
    numbers = torch.rand(num, spec.size, generator=torch.Generator().manual_seed(seed)).round()
    return CheckpointDataset(
        plain.params_KP,
        plain.layout,
        network=plain.network,
        task=plain.task,
        frozen=plain.frozen,
        metadata=plain.metadata,
        collect=plain.collect,
        conditions=spec,
        conditions_KD=options.get("conditions_KD", numbers),
    )


def assert_same(left: CheckpointDataset, right: CheckpointDataset) -> None:
    assert torch.equal(left.params_KP, right.params_KP)
    assert left.layout == right.layout
    assert left.metadata == right.metadata
    assert (left.network, left.task, left.collect) == (right.network, right.task, right.collect)
    assert left.frozen.keys() == right.frozen.keys()
    for name, tensor in left.frozen.items():
        assert tensor.dtype == right.frozen[name].dtype and torch.equal(tensor, right.frozen[name])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def use_small_files(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowers the size limits, so that small sets have several files and row groups, in the form `form`."""
    monkeypatch.setattr(checkpoint_files, "_PARQUET_BYTES", 600)
    monkeypatch.setattr(checkpoint_files, "_ROW_GROUP_BYTES", 1)
    monkeypatch.setattr(checkpoint_files, "_SHARD_BYTES", 600)
    if form == "shards":
        monkeypatch.setattr(checkpoint_files, "MAX_PARQUET_PARAMS", 1)


def seal(folder: Path) -> None:
    """Names the files of a set by their content again and writes a dataset.json that fits: as an attacker would."""
    index = json.loads((folder / "dataset.json").read_text())
    for entry in [*index["data"], *index["shards"], *([index["frozen"]] if index["frozen"] else [])]:
        file = folder / entry["path"]
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        renamed = file.with_name(f"{file.stem[:-8]}{digest[:8]}{file.suffix}")
        file.rename(renamed)
        entry |= {
            "path": renamed.relative_to(folder).as_posix(),
            "bytes": renamed.stat().st_size,
            "sha256": digest,
        }
    (folder / "dataset.json").write_text(json.dumps(index))
