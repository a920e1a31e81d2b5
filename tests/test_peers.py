"""benchmarks/peers*.py: peers are found, fed, timed, judged and reported. Stand-ins take their place."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import peers
import peers_flow
import pytest
import run_all
import torch
from harness import SHIPPED, Result
from peers_job import Job, Made, Stage, run_peer, steps_within
from peers_source import PEERS, Found, Peer, find_peers
from peers_table import Quality, Side, table
from stub_peers import FLOW_STEPS, write_flow, write_pdiff
from test_benchmarks import ABOUT, cells
from torch import Tensor

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.known_rows import split_known

PDIFF, FLOW = PEERS
OPTIONS = argparse.Namespace(networks=200, peer_networks=20, whole=False)
MADE = Made([Stage("autoencoder", 500, 5, 2.0), Stage("denoiser", 1000, 10, 1.0)], 3.0, "its settings")


@pytest.fixture(scope="module")
def ours() -> peers.Ours:
    """Our generator of the shipped set, as if it had trained 20 s and sampled 1 s."""
    pipe = PDiffPipeline.from_pretrained(SHIPPED)
    known, fresh = split_known(CheckpointDataset.from_pretrained(SHIPPED / "checkpoints"), pipe.autoencoder)
    return peers.Ours(pipe, known, fresh, 20.0, 1.0, known.params_KP[:3])


def job_of(source: Path, dataset: CheckpointDataset, *, networks: int, seconds: float | None = None) -> Job:
    tensors = [(entry.name, list(entry.shape)) for entry in dataset.layout.entries]
    return Job(str(source), "main.cifar100_resnet18", tensors, networks, seconds, 1)


def test_pdiffs_process_feeds_its_script_and_gives_networks_back(tmp_path: Path, ours: peers.Ours) -> None:
    (tmp_path / "job").mkdir()
    params_KP = ours.known.params_KP
    source = write_pdiff(tmp_path / "peer")
    made, params_BP = run_peer(
        run_all.ROOT / "benchmarks" / PDIFF.script,
        job_of(source, ours.known, networks=3),
        params_KP,
        tmp_path / "job",
    )
    assert params_BP is not None and params_BP.shape == (3, params_KP.shape[1])
    # 40 batches of 50 random checkpoints have nearly their mean.
    assert float((params_BP - params_KP.mean(dim=0)).abs().max()) < 0.15 * float(params_KP.std(dim=0).max())
    assert [(stage.steps, stage.done) for stage in made.stages] == [(40, 40), (6, 6)]
    assert made.network_seconds > 0 and made.train_seconds == made.trained_seconds > 0
    assert not list(source.rglob("__pycache__"))  # nothing is written into the folder that was given


def test_a_process_that_fails_is_left_out_with_its_last_line(tmp_path: Path, ours: peers.Ours) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no such model')")
    found = Found(replace(PDIFF, script=str(tmp_path / "broken.py")), tmp_path)
    entry = peers.compared(found, ours, OPTIONS, _made(tmp_path / "job"))
    assert entry.seconds_ours is None and entry.sides == []
    assert entry.note == "Left out: its process failed: exit code 1: RuntimeError: no such model"
    assert ": Left out" not in entry.line() and "Left out" in entry.line()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_the_flow_trains_on_components_and_gives_networks_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: peers.Ours
) -> None:
    for name in ("utils", "flow_matching"):  # what it imports is gone after the test
        monkeypatch.setitem(sys.modules, name, sys.modules[__name__])
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    job = replace(job_of(write_flow(tmp_path / "peer"), ours.known, networks=4), settings="mlp_mnist")
    made, params_BP = peers_flow.work(job, ours.known.params_KP, tmp_path)
    assert params_BP is not None
    assert torch.allclose(params_BP, ours.known.params_KP.mean(dim=0).expand(4, -1), atol=0.01)
    assert [(stage.name, stage.steps, stage.done) for stage in made.stages] == [
        ("components", 1, 1),
        ("flow", FLOW_STEPS, FLOW_STEPS),
    ]
    timed, nothing = peers_flow.work(replace(job, networks=0), ours.known.params_KP, tmp_path)
    assert nothing is None and timed.stages[1].done < FLOW_STEPS


def test_stages_are_shortened_alike() -> None:
    stages = {"autoencoder": (500, 2.0), "denoiser": (1000, 1.0)}
    assert steps_within(None, stages) == {"autoencoder": 500, "denoiser": 1000}
    assert steps_within(20.0, stages) == {"autoencoder": 5, "denoiser": 10}
    assert steps_within(1e9, stages) == steps_within(None, stages)
    assert steps_within(1e-9, stages) == {"autoencoder": 1, "denoiser": 1}


def asked_of(monkeypatch: pytest.MonkeyPatch, made: Made, params_BP: Tensor | None) -> list[Job]:
    """Puts an answer in the place of a peer's process; -> the jobs that it was asked for."""
    jobs: list[Job] = []

    def run(script: Path, job: Job, params_KP: Tensor, folder: Path) -> tuple[Made, Tensor | None]:
        jobs.append(job)
        return made, params_BP

    monkeypatch.setattr(peers, "run_peer", run)
    return jobs


def test_a_peer_that_hands_checkpoints_back_is_judged_a_copier(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: peers.Ours
) -> None:
    jobs = asked_of(monkeypatch, MADE, ours.known.params_KP[:10])
    entry = peers.compared(Found(FLOW, tmp_path, FLOW.commit), ours, OPTIONS, tmp_path)
    assert jobs[0].seconds == ours.train_seconds and jobs[0].networks == 200
    (values,) = entry.sides
    side = Side.from_dict(values)
    assert side.quality is not None
    assert (side.quality.copies, side.quality.judged, side.quality.weight_ratio) == (10, 10, 0.0)
    assert 0.9 < side.quality.mean <= 1.0
    assert (side.train_seconds, side.sample_seconds, side.trained) == (2000.0, 600.0, "20 s")
    assert (entry.seconds_plain, entry.seconds_ours) == (2600.0, 21.0)
    assert entry.plain is not None and "500 autoencoder, 1,000 denoiser; scaled up from 5 " in entry.plain
    assert "10 networks after 20 s: test accuracy" in entry.note and FLOW.short_commit in entry.note


def test_ours_stands_beside_held_out_checkpoints_and_an_empty_network(ours: peers.Ours) -> None:
    fresh, means, own = ours.sides(200)
    assert fresh.quality is not None and means.quality is not None and own.quality is not None
    assert (fresh.quality.latent_ratio, fresh.quality.weight_ratio) == pytest.approx((1, 1))
    assert fresh.quality.judged == len(ours.fresh or ()) and fresh.quality.mean > 0.9
    assert means.quality.mean < 0.3 and means.quality.spread == 0  # it answers the same of every image
    assert (own.train_seconds, own.sample_seconds, own.quality.copies) == (20.0, 1.0, 3)


def test_a_peer_that_would_take_days_is_timed_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: peers.Ours
) -> None:
    jobs = asked_of(monkeypatch, MADE, None)
    entry = peers.compared(
        Found(PDIFF, tmp_path), ours, argparse.Namespace(**{**vars(OPTIONS), "whole": True}), tmp_path
    )
    assert (jobs[0].networks, jobs[0].settings, jobs[0].seconds) == (0, "full.cifar10_mlp", None)
    assert "No network was made (a few steps, timed (0.6 hours in all))" in entry.note
    assert "a folder of unknown version" in entry.note


def test_without_the_code_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    for found in find_peers([], fetch=False, work=tmp_path):
        assert found.folder is None
        what_to_do = f"clone {found.peer.url} and give the folder with --peer-source, or add --fetch-peers."
        assert found.why == f"its code is not here: {what_to_do}"
    options = argparse.Namespace(peer_source=[], fetch_peers=False)
    left_out = list(peers.measure(options))  # nothing of ours is trained for it
    assert [each.case for each in left_out] == [peer.name for peer in PEERS]
    page = run_all.page(left_out, [], ABOUT, minutes=1)
    assert "Failed" not in page and "Left out: its code is not here: clone https://" in page


def test_a_folder_that_holds_no_peer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PdiffError, match=r"holds none of the peers; give a clone of https://"):
        find_peers([tmp_path], fetch=False, work=tmp_path)
    with pytest.raises(PdiffError, match="is not a folder"):
        find_peers([tmp_path / "none"], fetch=False, work=tmp_path)


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, Peer]:
    """A git repository of the stand-in, whose newest commit has other code, and the peer at the commit before."""
    folder = write_pdiff(tmp_path / "repository")

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=Nobody", "-c", "user.email=nobody@localhost"]
        said = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
        return said.stdout.strip()

    git("init", "--quiet")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    git("add", ".")
    git("commit", "--quiet", "-m", "First")
    commit = git("rev-parse", "HEAD")
    (folder / "model" / "__init__.py").write_text("raise RuntimeError('another commit')")
    git("commit", "--quiet", "-a", "-m", "Second")
    return folder, replace(PDIFF, url=folder.as_uri(), commit=commit)


@pytest.mark.parametrize("fetch", [False, True])
def test_code_from_git_is_that_of_the_commit(tmp_path: Path, repository: tuple[Path, Peer], fetch: bool) -> None:
    folder, peer = repository
    work = _made(tmp_path / "work")
    (found,) = find_peers([] if fetch else [folder], fetch=fetch, work=work, peers=[peer])
    assert found.folder is not None and found.commit == peer.commit
    assert "another commit" not in (found.folder / "model" / "__init__.py").read_text()


def test_plain_files_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = write_flow(tmp_path / "peer")
    pdiff, flow = find_peers([folder], fetch=False, work=tmp_path / "work")
    assert pdiff.folder is None and (flow.folder, flow.commit) == (folder, None)


def test_a_fetch_that_fails_says_why(tmp_path: Path) -> None:
    peer = replace(PDIFF, url=(tmp_path / "nowhere").as_uri())
    (found,) = find_peers([], fetch=True, work=tmp_path, peers=[peer])
    assert found.folder is None and found.why.startswith(f"git could not fetch {peer.url}: fatal: ")


SIDE = Side("8,970 numbers", "a peer", "20 s", 200, 2000.0, 600.0, Quality(20, 0.97, 0.98, 3, 0.5, 0.9, 1.2))


def test_the_page_has_a_table_of_peers_before_its_notes() -> None:
    entry = Result("peers", "case", None, None, 1.0, None, None, None, 1, note="Fine.", sides=[asdict(SIDE)])
    again = Result(**json.loads(json.dumps(asdict(entry))))
    page = run_all.page([again], [], ABOUT, minutes=1)
    assert page.index("## Peers") < page.index("## Notes")
    assert cells(page, "8,970 numbers") == [
        "8,970 numbers",
        "a peer",
        "20 s",
        "2,000",
        "600",
        "20",
        "97.00 %",
        "98.00 %",
        "3 of 20",
        "0.5",
        "0.9",
        "1.2",
    ]
    untrained = cells(table([replace(SIDE, quality=None)]), "8,970 numbers")
    assert untrained[5:] == ["0", "", "", "", "", "", ""]


def test_only_the_script_of_peers_is_told_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[str]] = {}

    def run(script: str, options: list[str]) -> list[Any]:
        asked[script] = options
        return []

    monkeypatch.setattr(run_all, "run", run)
    page = ["--output", str(tmp_path / "page.md")]
    assert run_all.main(["--only", "saving", "peers", "--peer-source", "one", "two", "--fetch-peers", *page]) == 0
    assert asked == {"saving": [], "peers": ["--peer-source", "one", "two", "--fetch-peers"]}
