"""A pipeline knows its data set again: it names the rows that it was not trained on by their number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.evaluation.known_rows import split_known
from pdiff_hub.networks import build_network
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout

SPEC = {"name": "mlp3", "hidden": [4, 4], "in_channels": 1, "num_classes": 3, "image_size": 2}


def checkpoints(seed: int = 0, num: int = 200) -> CheckpointDataset:
    layout = ParamLayout.from_module(build_network(SPEC))
    generator = torch.Generator().manual_seed(seed)
    return CheckpointDataset(torch.randn(num, layout.num_params, generator=generator), layout, network=SPEC)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> ParamAutoencoder:
    folder = tmp_path_factory.mktemp("pipeline")
    train_pipeline(checkpoints(), folder, diffusion=DiffusionConfig(steps=1, widths=(16,), batch_size=8))
    return PDiffPipeline.from_pretrained(folder).autoencoder


def test_its_own_set_is_known(autoencoder: ParamAutoencoder) -> None:
    originals, fresh = split_known(checkpoints(), autoencoder)
    assert fresh is not None and (len(originals), len(fresh)) == (180, 20)
    assert torch.equal(fresh.params_KP, checkpoints().params_KP[autoencoder.config.held_out])


def test_rows_that_were_appended_since_are_new(autoencoder: ParamAutoencoder) -> None:
    grown = CheckpointDataset(
        torch.cat([checkpoints().params_KP, checkpoints(seed=1).params_KP]), checkpoints().layout, network=SPEC
    )
    originals, fresh = split_known(grown, autoencoder)
    assert fresh is not None and (len(originals), len(fresh)) == (180, 220)
    assert torch.equal(fresh.params_KP[20:], checkpoints(seed=1).params_KP)


@pytest.mark.parametrize(
    "other",
    [
        lambda: checkpoints(seed=1),
        lambda: checkpoints().select_rows(torch.randperm(200).tolist()),
        lambda: checkpoints().select_rows([10, *range(1, 10), 0, *range(11, 200)]),
        lambda: checkpoints().select_rows(range(1, 200)),
        lambda: checkpoints().select_rows(range(100)),
    ],
    ids=["another seed", "another order", "two rows exchanged", "a row less", "half of it"],
)
def test_another_set_is_refused(autoencoder: ParamAutoencoder, other: Callable[[], CheckpointDataset]) -> None:
    with pytest.raises(ValueError, match=r"not the data set that the pipeline was trained on \(200 checkpoints"):
        split_known(other(), autoencoder)


def test_it_is_known_with_nothing_held_out_too(tmp_path: Path) -> None:
    config = DiffusionConfig(steps=1, widths=(16,), batch_size=8)
    train_pipeline(checkpoints(num=20), tmp_path, AutoencoderConfig(holdout=0.0), config)
    known = PDiffPipeline.from_pretrained(tmp_path).autoencoder
    originals, fresh = split_known(checkpoints(num=20), known)
    assert len(originals) == 20 and fresh is None
    with pytest.raises(ValueError, match="not the data set"):
        split_known(checkpoints(seed=1, num=20), known)


def test_pipelines_of_before_take_every_set(autoencoder: ParamAutoencoder) -> None:
    known = ParamAutoencoder.from_config({**autoencoder.config, "num_checkpoints": None, "held_out": []})
    originals, fresh = split_known(checkpoints(seed=1), known)
    assert len(originals) == 200 and fresh is None
