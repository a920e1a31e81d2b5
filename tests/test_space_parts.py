"""The parts of examples/space without the page: strokes become digits, votes are counted, networks are sampled."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from drawn_digits import DRAWN, SPACE, Drawn
from hypothesis import given
from hypothesis import strategies as st
from loopback_hub import LoopbackHub

from pdiff_hub import PDiffPipeline
from pdiff_hub.runs import write_networks

import drawing  # isort: skip
import opening  # isort: skip
import sampling  # isort: skip
import views  # isort: skip

ROOT = Path(__file__).parents[1]
PIPELINE = ROOT / "pipelines" / "digits-mlp3"
POINTS = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), min_size=1, max_size=12)


def strokes_of(drawn: Drawn) -> list[np.ndarray]:
    return [np.array(stroke, dtype=np.float64) for stroke in drawn]


@given(st.lists(POINTS, min_size=1, max_size=3), st.integers(-100, 100), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_neither_place_nor_size_of_a_drawing_matters(drawn: Drawn, shift: int, scale: float) -> None:
    strokes = strokes_of(drawn)
    image_HW = drawing.digit_image(strokes)
    moved = drawing.digit_image([scale * (stroke + shift) for stroke in strokes])  # exact in binary
    assert torch.equal(image_HW, moved)
    assert image_HW.dtype == torch.uint8 and image_HW.shape == (8, 8)
    assert bool((image_HW % 15 == 0).all()) and int(image_HW.max()) <= 240 and int(image_HW.sum()) > 0


def test_a_drawing_fills_the_height_or_the_width_of_digits() -> None:
    tall = drawing.digit_image(strokes_of([[(0, 0), (0, 100)]]))
    wide = drawing.digit_image(strokes_of([[(0, 0), (100, 0)]]))
    dot = drawing.digit_image(strokes_of([[(7, 7)]]))
    assert bool(tall.any(dim=1).all()) and tall.any(dim=0).tolist() == [False] * 3 + [True] * 2 + [False] * 3
    assert wide.any(dim=0).tolist() == [True] * 8 and wide.any(dim=1).sum() == 2 and int(wide[:, 0].max()) < 120
    assert torch.equal(dot, dot.flip(0)) and torch.equal(dot, dot.T) and dot.count_nonzero() == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[[]]",
        "5",
        "{",
        '"x"',
        "[[[1, 2, 3]]]",
        '[[["a", 1]]]',
        "[[[NaN, 0]]]",
        "[" * 100_000,
        json.dumps([[[0, 0]] * 20_001]),
    ],
)
def test_what_is_no_drawing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"draw(n|ing)"):
        drawing.read_strokes(text)


@given(st.integers(1, 12), st.integers(2, 10), st.integers(0, 2**32))
def test_votes_are_counted(num_networks: int, num_classes: int, seed: int) -> None:
    logits_Nc = 5 * torch.randn(num_networks, num_classes, generator=torch.Generator().manual_seed(seed))
    answers = drawing.vote(logits_Nc)
    assert int(answers.votes_c.sum()) == num_networks and float(answers.probability_c.sum()) == pytest.approx(1)
    assert answers.votes_c.tolist() == [int((logits_Nc.argmax(dim=1) == c).sum()) for c in range(num_classes)]
    assert int(answers.votes_c[answers.winner]) == int(answers.votes_c.max())
    others = int((answers.answers_N != answers.winner).sum())
    assert answers.disagreement == pytest.approx(others / num_networks)


def test_of_equal_votes_the_higher_probability_wins_and_nan_has_none() -> None:
    answers = drawing.vote(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 9.0]]))
    assert answers.winner == 2 and answers.disagreement == 0.5
    for broken in (torch.tensor([[0.0, torch.nan]]), torch.zeros(0, 3), torch.zeros(3)):
        with pytest.raises(ValueError, match="finite"):
            drawing.vote(broken)


@pytest.fixture(scope="module")
def ten() -> sampling.Sample:
    return sampling.sample(opening.open_pipeline(PIPELINE, "digits-mlp3"), 10, 3, 5)


def test_generated_networks_read_drawn_digits(ten: sampling.Sample) -> None:
    read = {
        digit: drawing.vote(sampling.logits_of(ten, drawing.digit_image(strokes_of(drawn)), 10)).winner
        for digit, drawn in DRAWN.items()
    }
    assert sum(read[digit] == digit for digit in DRAWN) >= 9, read


def test_networks_are_those_of_pdiff_generate(ten: sampling.Sample, tmp_path: Path) -> None:
    files = write_networks(PDiffPipeline.from_pretrained(PIPELINE), 10, tmp_path, seed=3, num_inference_steps=5)
    for index in (0, 9):
        assert sampling.write_network(ten, index, tmp_path).read_bytes() == files[index].read_bytes()
    with pytest.raises(ValueError, match="no network 10"):
        sampling.write_network(ten, 10, tmp_path)
    assert ten.similarity_N is not None
    # There are 719 test images and 200 originals, so a row of the table can be checked by hand.
    row = sampling.table_rows(ten)[0]
    assert float(row[1]) == pytest.approx(100 * (1 - int(row[2]) / 719), abs=0.005)
    assert float(row[3]) == pytest.approx(float(ten.similarity_N[0]), abs=0.0005)
    steps, accuracy_sM = sampling.accuracy_by_step(ten)
    assert steps[0] == 0 and steps[-1] == 5 and torch.equal(accuracy_sM[-1], ten.judged.test.accuracy_B[:8])


def test_too_large_samples_are_refused(ten: sampling.Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_MOST_NUMBERS", 50_000)
    with pytest.raises(ValueError, match="ask for 5 or fewer"):
        sampling.sample(ten.opened, 49, 0, 10)


def test_a_sample_that_takes_long_is_ended(ten: sampling.Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_MOST_SECONDS", -1.0)
    with pytest.raises(ValueError, match="3 networks in 4 steps take longer than"):
        sampling.sample(ten.opened, 3, 1, 4)


def test_a_pipeline_without_its_checkpoints_says_what_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "<b>alone</b>"
    shutil.copytree(PIPELINE, folder, ignore=shutil.ignore_patterns("checkpoints", "*.png"))
    (folder / "results.json").write_text('{"frontier": {"verdict": "<script>"}}', encoding="utf-8")
    opened = opening.open_pipeline(folder, folder.name)
    drawn = sampling.sample(opened, 2, 0, 2)
    assert "checkpoints/ in the pipeline's folder), so nothing is compared" in opened.gone
    assert drawn.similarity_N is None and sampling.method_points(drawn) == {}
    assert [row[3:] for row in sampling.table_rows(drawn)] == [("unknown", "unknown")] * 2
    shown = views.pipeline_view(opened) + views.summary_view(drawn) + views.networks_view(drawn)
    shown += views.sample_verdict_view(drawn, "") + views.results_view(opened)
    assert "damaged" in shown and "<script" not in shown and "<b>alone" not in shown


def test_a_pipeline_from_the_hub_brings_no_code(hub: LoopbackHub) -> None:
    files = {
        path.relative_to(PIPELINE).as_posix(): path.read_bytes()
        for path in PIPELINE.rglob("*")
        if path.is_file() and path.suffix in (".json", ".safetensors")
    }
    code = dict.fromkeys(("pipeline_pdiff.py", "autoencoder/param_autoencoder.py"), b"raise SystemExit")
    hub.add("someone/digits", {**files, **code})
    folder = opening.pull_pipeline(" someone/digits ")
    assert [path.name for path in folder.rglob("*.py")] == []
    opened = opening.open_pipeline(folder, "someone/digits")
    assert len(sampling.sample(opened, 2, 0, 2)) == 2
    # Only a pipeline's own files are downloaded.
    assert "in the pipeline's folder), so nothing is compared" in opened.gone
    assert not (folder / "checkpoints").exists()
    hub.add("someone/else", {"README.md": b"nothing"})
    with pytest.raises(ValueError, match=r"model_index\.json"):
        opening.pull_pipeline("someone/else")


def of_the_hub(hub: LoopbackHub, repo_id: str, **changes: Any) -> str:
    """The shipped pipeline on the Hub, with other fields in the autoencoder's config.json."""
    files = {name: (PIPELINE / name).read_bytes() for name in ("model_index.json", "scheduler/scheduler_config.json")}
    for part in ("unet", "autoencoder"):
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            files[f"{part}/{name}"] = (PIPELINE / part / name).read_bytes()
    config = {**json.loads(files["autoencoder/config.json"]), **changes}
    hub.add(repo_id, {**files, "autoencoder/config.json": json.dumps(config).encode()})
    return repo_id


def test_a_large_repository_is_not_downloaded(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_MOST_BYTES", 100_000)
    of_the_hub(hub, "someone/large")
    with pytest.raises(
        ValueError, match=r"'someone/large' has 6 files of a pipeline with [\d,]+ bytes, expected at most"
    ):
        opening.pull_pipeline("someone/large")
    assert not [request for request in hub.requests if "/resolve/" in request.path]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("/usr", "is no data set of the Hub"), ("../..", "is no data set of the Hub"), ("a/large", "expected at most")],
)
def test_data_of_a_visitors_pipeline(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, dataset: str, message: str
) -> None:
    hub.add("a/large", {"data.bin": bytes(5_000_000)}, repo_type="dataset")
    of_the_hub(hub, "someone/else", task={"dataset": dataset})
    monkeypatch.setattr(opening, "_MOST_BYTES", 4_000_000)
    with pytest.raises(ValueError, match=message):
        opening.pull_pipeline("someone/else")


def test_a_pipeline_that_never_opens_stops_nobody(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    of_the_hub(hub, "someone/slow")
    monkeypatch.setattr(opening, "_MOST_SECONDS", 0.5)
    with pytest.raises(ValueError, match=r"someone/slow was not (here|open) after 0\.5 seconds"):
        opening.pull_pipeline("someone/slow")


@pytest.mark.parametrize(
    "text", ["", "name", "/etc/passwd", "../pipelines", "..", "a/b/c", "./a/b", "~/x", "a/..", "https://x/y"]
)
def test_a_hub_id_never_names_a_folder_here(text: str) -> None:
    with pytest.raises(ValueError, match="expected owner/name"):
        opening.pull_pipeline(text)


def test_the_files_of_a_space_fit_the_package() -> None:
    matter = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"gradio=={matter['sdk_version']}" in pins and (SPACE / matter["app_file"]).is_file()
    assert len(matter["short_description"]) <= 60
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    listed = (SPACE / "requirements.txt").read_text().splitlines()
    assert [line for line in listed if not line.startswith("#")] == needed
