"""Training ends where the held-out loss is lowest, the same whether it was stopped and resumed or not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import checkpoints
from torch import Tensor

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.records import RunFolder, TrainingSummary
from pdiff_hub.training import diffusion as diffusion_training
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.diffusion import build_scheduler
from pdiff_hub.training.nearness import nearness_of_draws
from pdiff_hub.training.pipeline import train_pipeline

CONFIG = DiffusionConfig(steps=40, widths=(16,), batch_size=8, eval_every=5, patience=2, save_every=7)


def unet_weights(folder: Path) -> Tensor:
    pipe = PDiffPipeline.from_pretrained(folder)
    return torch.cat([parameter.detach().flatten() for parameter in pipe.unet.parameters()])


def with_losses(
    monkeypatch: pytest.MonkeyPatch, losses: list[float], copies_from: int = 99, far_until: int = 0
) -> list[Tensor]:
    """Makes the held-out loss run through `losses`; -> the weights at each measurement.

    copies_from: the measurement from which on the weights are said to draw copies. far_until: that up to which they are
    said to draw too far away.
    """
    seen: list[Tensor] = []
    real = diffusion_training.Stopping

    def stopping(measure: object, every: int, patience: int | None, nearness: object) -> object:
        numbers = itertools.count()

        def scripted(model: torch.nn.Module) -> dict[str, float]:
            seen.append(torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()]))
            return {"held_out": losses[next(numbers)], "train": 1.0}

        def scripted_nearness(model: torch.nn.Module) -> float:
            weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
            (number,) = [n for n, each in enumerate(seen) if torch.equal(each, weights)]
            return 0.7 if number >= copies_from else 1.3 if number < far_until else 1.0

        return real(scripted, every, patience, scripted_nearness)

    monkeypatch.setattr(diffusion_training, "Stopping", stopping)
    return seen


def test_the_weights_of_the_lowest_loss_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = with_losses(monkeypatch, [0.9, 0.5, 0.3, 0.4, 0.5, 0.1])
    summary = train_pipeline(checkpoints(), tmp_path, diffusion=CONFIG)
    assert summary.curve is not None
    assert summary.curve.steps == (0, 5, 10, 15, 20) and summary.curve.kept == 10
    assert summary.curve.held_out == (0.9, 0.5, 0.3, 0.4, 0.5)
    assert torch.equal(unet_weights(tmp_path), seen[2])
    assert RunFolder(tmp_path).training.read_summary() == summary


@pytest.mark.parametrize(
    ("copies_from", "kept"),
    [(99, 4), (5, 4), (4, 3), (3, 1), (2, 1), (1, 4)],
    ids=["none", "later ones", "the chosen one", "two more", "all but the first", "all that are low enough"],
)
def test_weights_that_draw_copies_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies_from: int, kept: int
) -> None:
    losses = [0.9, 0.310, 0.311, 0.3085, 0.3, 0.309, 0.31]
    seen = with_losses(monkeypatch, losses, copies_from)
    summary = train_pipeline(checkpoints(), tmp_path, diffusion=CONFIG)
    assert summary.curve is not None and summary.curve.kept == 5 * kept
    assert torch.equal(unet_weights(tmp_path), seen[kept])


@pytest.mark.parametrize(
    ("far_until", "copies_from", "kept"),
    [(4, 99, 4), (5, 99, 6), (6, 99, 6), (7, 99, 4), (5, 6, 5), (5, 5, 4), (2, 4, 3), (3, 3, 1)],
    ids=[
        "earlier ones",
        "the chosen one",
        "one more",
        "all that are low enough",
        "those after the next copy",
        "all later ones copy",
        "the chosen one copies, and the first are far",
        "all earlier ones are far, which are no copies",
    ],
)
def test_weights_that_draw_too_far_away_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far_until: int, copies_from: int, kept: int
) -> None:
    losses = [0.9, 0.310, 0.311, 0.3085, 0.3, 0.311, 0.31]
    seen = with_losses(monkeypatch, losses, copies_from, far_until)
    summary = train_pipeline(checkpoints(), tmp_path, diffusion=CONFIG)
    assert summary.curve is not None and summary.curve.kept == 5 * kept
    assert torch.equal(unet_weights(tmp_path), seen[kept])


def test_a_denoiser_that_memorised_draws_copies_and_a_gaussian_does_not() -> None:
    latent_KCL, held_out_HCL = torch.randn(2, 20, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = build_scheduler("epsilon")

    class Denoiser(torch.nn.Module):
        """The exact denoiser of N(0, I), or of the training latents."""

        def __init__(self, memorised: bool) -> None:
            super().__init__()
            self.memorised = memorised

        def forward(self, noisy_BCL: Tensor, time_B: Tensor, return_dict: bool) -> tuple[Tensor]:
            kept = scheduler.alphas_cumprod[time_B[0]]
            clean_BCL = kept.sqrt() * noisy_BCL
            if self.memorised:
                away_BK = torch.cdist(noisy_BCL.flatten(1), kept.sqrt() * latent_KCL.flatten(1)).square()
                weight_BK = (-away_BK / (2 * (1 - kept))).softmax(dim=1)
                clean_BCL = torch.einsum("bk,kcl->bcl", weight_BK, latent_KCL)
            return ((noisy_BCL - kept.sqrt() * clean_BCL) / (1 - kept).sqrt(),)

    memorised, gaussian = (
        nearness_of_draws(Denoiser(memorised), latent_KCL, held_out_HCL, scheduler, seed=0)
        for memorised in (True, False)
    )
    assert memorised < 0.3 and 0.8 < gaussian < 1.25


def test_of_losses_that_cannot_be_told_apart_the_middle_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = with_losses(monkeypatch, [0.9, 0.302, 0.303, 0.301, 0.3, 0.31, 0.302, 0.2])
    summary = train_pipeline(checkpoints(), tmp_path, diffusion=CONFIG)
    assert summary.curve is not None and summary.curve.steps[-1] == 30 and summary.curve.kept == 15
    assert torch.equal(unet_weights(tmp_path), seen[3])


@pytest.mark.parametrize("losses", [[0.2, 0.5, 0.6], [0.2, 0.199, 0.3, 0.4]], ids=["never falls", "falls by 0.5 %"])
def test_a_loss_that_training_does_not_lower_keeps_the_gaussian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float]
) -> None:
    with_losses(monkeypatch, losses)
    summary = train_pipeline(checkpoints(), tmp_path, diffusion=CONFIG)
    assert summary.curve is not None and summary.curve.kept == 0 and summary.curve.held_out == tuple(losses)
    pipe = PDiffPipeline.from_pretrained(tmp_path)
    assert not pipe.unet(torch.randn(3, *summary.latent_shape), torch.tensor([3, 500, 999])).sample.any()
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(500, generator=torch.Generator().manual_seed(0), output_type="latent").latents
    assert latents.std() == pytest.approx(1.0, abs=0.1) and latents.mean().abs() < 0.1


def test_without_patience_the_last_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = with_losses(monkeypatch, [0.1 * index for index in range(9)])
    endless = DiffusionConfig(steps=40, widths=(16,), batch_size=8, eval_every=5, patience=None)
    summary = train_pipeline(checkpoints(), tmp_path, diffusion=endless)
    assert summary.curve is not None and summary.curve.kept is None and summary.curve.steps[-1] == 40
    assert torch.equal(unet_weights(tmp_path), seen[-1])


def test_the_last_step_is_measured_too(tmp_path: Path) -> None:
    short = DiffusionConfig(steps=12, widths=(16,), batch_size=8, eval_every=500)
    summary = train_pipeline(checkpoints(), tmp_path, diffusion=short)
    assert summary.curve is not None and summary.curve.steps == (0, 12)


@pytest.mark.parametrize(
    ("dataset", "holdout"), [(checkpoints(24), 0.0), (checkpoints(2), 0.1)], ids=["holdout=0", "two checkpoints"]
)
def test_nothing_held_out_takes_all_steps(tmp_path: Path, dataset: CheckpointDataset, holdout: float) -> None:
    summary = train_pipeline(dataset, tmp_path, AutoencoderConfig(holdout=holdout), CONFIG)
    assert summary.curve is None and summary.deviation_r2 is None
    assert list(PDiffPipeline.from_pretrained(tmp_path).autoencoder.config.held_out) == []


@pytest.mark.parametrize("stop_at", [3, 8, 12])
def test_stopped_and_resumed_measures_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    whole = train_pipeline(checkpoints(), tmp_path / "whole", diffusion=CONFIG)
    real, calls = diffusion_training.share, itertools.count()

    def stopped(batch: Tensor, accelerator: object) -> Tensor:
        if next(calls) == 4 * stop_at:
            raise KeyboardInterrupt
        return real(batch, accelerator)

    with monkeypatch.context() as patch:
        patch.setattr(diffusion_training, "share", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_pipeline(checkpoints(), tmp_path / "resumed", diffusion=CONFIG)
    resumed = train_pipeline(checkpoints(), tmp_path / "resumed", diffusion=CONFIG)
    assert facts(resumed) == facts(whole)
    assert torch.equal(unet_weights(tmp_path / "resumed"), unet_weights(tmp_path / "whole"))


def facts(summary: TrainingSummary) -> tuple[object, ...]:
    return summary.loss, summary.curve, summary.deviation_r2


def test_both_predictions_measure_the_error_of_the_noise(tmp_path: Path) -> None:
    """At step 0, v = 0 is the denoiser of N(0, I): its error is known in closed form."""
    config = DiffusionConfig(steps=5, widths=(16,), batch_size=8, eval_every=5, patience=None)
    summary = train_pipeline(checkpoints(60), tmp_path, diffusion=config)
    alphas = diffusion_training.build_scheduler().alphas_cumprod
    # Latents have unit variance on the 5 components of rank 5, and are zero in the padding of 3.
    share = 5 / 8
    expected = float((share * alphas + (1 - share) * alphas * (1 - alphas)).mean())
    assert summary.curve is not None and summary.curve.train[0] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, r"diffusion\.patience is 0"),
        ({"eval_every": 0}, r"diffusion\.eval_every is 0"),
        ({"latent_noise": -0.1}, r"diffusion\.latent_noise is -0\.1"),
        ({"prediction": "sample"}, r"diffusion\.prediction is 'sample'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**options)
