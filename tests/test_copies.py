"""Copies are counted beside fresh networks: a memoriser is called a copier, and fresh networks are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.evaluation.copies import copy_distance, count_copies, nearest_two, nearness, new_ones
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.evaluation.measuring import Measure
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.pipeline import sample
from pdiff_hub.recipes import EvaluateConfig
from pdiff_hub.records import Requests, Results, RunFolder
from pdiff_hub.runs import evaluate
from pdiff_hub.runs.requests import measured_requests
from pdiff_hub.tasks import load_task
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)  # the first example warms up torch
@given(rows=st.integers(1, 9), references=st.integers(2, 9), seed=st.integers(0, 99))
def test_nearest_two_are_those_of_all_distances(rows: int, references: int, seed: int) -> None:
    query_BN, reference_KN = torch.randn(rows + references, 3, generator=seeded(seed)).split([rows, references])
    distance_BK = (query_BN[:, None].double() - reference_KN.double()).square().sum(dim=2).sqrt().sort(dim=1).values
    nearest_B, second_B = nearest_two(query_BN, reference_KN)
    assert torch.allclose(nearest_B, distance_BK[:, 0]) and torch.allclose(second_B, distance_BK[:, 1])


def test_a_copy_has_distance_zero_and_none_is_compared_with_itself() -> None:
    latent_KN = 1e3 + torch.randn(5, 64, generator=seeded())
    assert nearest_two(latent_KN[[3]], latent_KN)[0].item() == 0.0
    assert nearest_two(latent_KN, latent_KN, leave_one_out=True)[0].min() > 1.0
    assert nearness(*nearest_two(latent_KN[[3, 4]], latent_KN), None).nearest_over_second == 0.0
    twins_KN = latent_KN[[0, 0, 1]]
    assert nearness(*nearest_two(latent_KN[[0]], twins_KN), None).nearest_over_second == 1.0
    with pytest.raises(ValueError, match="at least 2 references"):
        nearest_two(latent_KN, latent_KN[:1])
    with pytest.raises(ValueError, match="the same length"):
        nearest_two(latent_KN, latent_KN[:, :3])


@pytest.mark.parametrize(("num_fresh", "expected"), [(1, 1), (8, 1), (19, 1), (20, 1), (39, 2), (200, 10)])
def test_a_twentieth_of_fresh_networks_are_called_copies(num_fresh: int, expected: int) -> None:
    fresh_H = torch.rand(num_fresh, generator=seeded()).double()
    count = count_copies(torch.rand(100, generator=seeded(1)).double(), fresh_H)
    assert count.fresh_copies == expected == int((fresh_H <= copy_distance(fresh_H)).sum())


@pytest.mark.parametrize("num_fresh", [4, 8, 20, 60])
def test_fresh_networks_are_rarely_called_a_copiers(num_fresh: int) -> None:
    """Whatever the distribution: of 1,000 sets of networks that are as new as the fresh ones, 1 % are."""
    called = sum(
        bool(count_copies(distances[:200], distances[200:]).copier)
        for distances in torch.randn(1000, 200 + num_fresh, generator=seeded()).exp().double()
    )
    assert called <= 20
    shares = [
        count_copies(distances[:200], distances[200:]).copies
        for distances in torch.rand(1000, 200 + num_fresh, generator=seeded(1)).double()
    ]
    mean = sum(share or 0 for share in shares) / 200_000
    assert mean == pytest.approx(max(1, (num_fresh + 1) // 20) / (num_fresh + 1), abs=0.02)


def test_a_copier_is_called_one() -> None:
    fresh_H = 1 + torch.rand(20, generator=seeded()).double()
    count = count_copies(torch.full((200,), 0.3).double(), fresh_H)
    assert count.copier and count.sentence.startswith("200 of 200 generated networks are copies (of 20 fresh")
    assert "It copies." in count.sentence
    new = count_copies(torch.full((200,), 3.0).double(), fresh_H)
    assert not new.copier and new.sentence.startswith("0 of 200 generated networks are copies (of 20 fresh networks: 1")
    assert "does not copy" in new.sentence


def test_some_copies_are_not_called_none() -> None:
    """Three of ten as near as the nearest of 8: more than fresh networks would have, and not enough to be sure."""
    count = count_copies(torch.tensor([0.5] * 3 + [2.0] * 7).double(), torch.arange(1, 9).double())
    assert count.copies == 3 and not count.copier and count.chance is not None
    assert count.sentence.endswith(f"as many or more with a chance of {100 * count.chance:.0f} %.")


def test_without_fresh_networks_it_is_said_what_is_lost() -> None:
    count = count_copies(torch.rand(7).double(), None)
    assert count.copies is None and count.copier is None and count.num_fresh == 0
    assert "no checkpoint was held out" in count.sentence


def test_fresh_networks_that_are_all_equal_say_little() -> None:
    assert "so they say little" in count_copies(torch.rand(7).double(), torch.ones(5).double()).sentence


SPEC = resolve_network({"name": "mlp3", "hidden": [8, 8]}, in_channels=1, image_size=8, num_classes=10)


def test_as_near_as_checkpoints_are_to_each_other_is_no_copying() -> None:
    """Held-out stretches may lie farther out than the rest of a run, whatever generates."""
    fresh_H = torch.arange(10, 18).double()
    generated_B, own_K = torch.tensor([5.0] * 12 + [20.0] * 8).double(), torch.tensor([5.0] * 15 + [20.0] * 9).double()
    count = count_copies(generated_B, fresh_H, own_K)
    assert count.copies == 12 and count.chance is not None and count.chance < 0.01 and not count.copier
    assert "24 training checkpoints lie as near to each other (15 of them): it stays among them" in count.sentence
    assert count_copies(generated_B, fresh_H, own_K[12:]).copier


def test_fresh_networks_that_equal_a_checkpoint_are_not_new() -> None:
    fresh_H, own_K = torch.tensor([0.0, 1e-7, 3.0, 4.0]).double(), torch.tensor([2.0, 3.0]).double()
    new_H = new_ones(fresh_H, own_K)
    assert new_H is not None and new_H.tolist() == [3.0, 4.0]
    assert (
        "2 held-out checkpoints equal one" in count_copies(torch.ones(9).double(), new_H, own_K, num_equal=2).sentence
    )
    assert new_ones(fresh_H[:2], own_K) is None
    assert "each checkpoint that was held out equals" in count_copies(own_K, None, own_K, num_equal=2).sentence


def test_copies_are_found_behind_an_autoencoder_that_changes_latents() -> None:
    task, network = load_task("digits"), build_network(SPEC)
    originals = runs_of_networks(12)
    torch.manual_seed(0)
    conv = ParamAutoencoder(
        originals.layout.to_dict(),
        form="conv",
        latent_length=2,
        encoder_widths=(4, 4, 4, 4),
        decoder_widths=(4, 8, 8, 4),
    ).eval()
    conv.requires_grad_(False)
    latent_KCL = conv.encode(originals.params_KP)
    assert float((conv.encode(conv.decode(latent_KCL)) - latent_KCL).abs().max()) > 0.01
    measure = Measure(Judge(network, task, originals.layout, originals.frozen), originals, list(range(12)), conv)
    copied = measure(conv.decode(latent_KCL), decoded=True).nearest_latent_B
    assert copied is not None and float(copied.max()) < 1e-4
    # The audit of requests counts in the same way.
    requests, fresh = Requests({}, {}, {}, None, 1, 12, ""), runs_of_networks(24).select_rows(range(12, 24))
    measured = measured_requests(requests, conv.decode(latent_KCL), originals, fresh, conv, None)
    assert measured.copies is not None and measured.copies.copies == 12


def runs_of_networks(num: int) -> CheckpointDataset:
    """Independent points on a low-dimensional subspace, one per run."""
    layout = ParamLayout.from_module(build_network(SPEC))
    basis = torch.randn(12, layout.num_params, generator=seeded(5))
    params_KP = 0.1 * torch.randn(num, 12, generator=seeded(6)) @ basis
    return CheckpointDataset(
        params_KP,
        layout,
        network=SPEC,
        task={"dataset": "digits"},
        metadata=[{"run": f"seed-{index}"} for index in range(num)],
    )


def judged(dataset: CheckpointDataset, generated_BP: Tensor, folder: Path, pipe: PDiffPipeline) -> Results:
    return evaluate(pipe, dataset, generated_BP, folder, config=EvaluateConfig(baselines=0))


def test_the_report_tells_a_memoriser_from_fresh_networks(tmp_path: Path) -> None:
    both = runs_of_networks(60)
    dataset, others = both.select_rows(range(40)), both.select_rows(range(40, 60))
    memorise = DiffusionConfig(steps=1000, patience=None, eval_every=500, latent_noise=0.0, widths=(64,), batch_size=32)
    summary = train_pipeline(dataset, tmp_path, AutoencoderConfig(holdout=0.5), memorise)
    assert summary.curve is not None and summary.curve.kept is None
    pipe = PDiffPipeline.from_pretrained(tmp_path)
    copier = judged(dataset, sample(pipe, 60, seed=0), tmp_path / "copier", pipe)
    assert copier.measured is not None and copier.measured.copies is not None and copier.measured.copies.copier
    assert copier.measured.methods["generated"].nearness.ratio < 0.5
    page = RunFolder(tmp_path / "copier").report.read_text()
    assert copier.measured.copies.sentence in page and "It copies." in page
    fresh = judged(dataset, others.params_KP, tmp_path / "fresh", pipe)
    assert fresh.measured is not None and fresh.measured.copies is not None and not fresh.measured.copies.copier
    assert 0.7 < fresh.measured.methods["generated"].nearness.ratio < 1.4
    told = fresh.measured.methods["generated"].told_apart
    assert told is not None and told.low <= 0.6
    assert "It copies." not in RunFolder(tmp_path / "fresh").report.read_text()
    with pytest.raises(ValueError, match="not the data set that the pipeline was trained on"):
        judged(dataset.select_rows(range(20)), others.params_KP, tmp_path / "part", pipe)
