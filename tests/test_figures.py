"""Accuracy against similarity in evaluation/figures: files are the same each time, and methods can be told apart."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch

from pdiff_hub.evaluation.figures import METHOD_STYLE, accuracy_similarity_figure
from pdiff_hub.evaluation.points import MethodPoints


def points(count: int = 20, seed: int = 0) -> MethodPoints:
    generator = torch.Generator().manual_seed(seed)
    accuracy_B = 0.97 + torch.randint(0, 7, (count,), generator=generator) / 719
    return MethodPoints.from_similarities(accuracy_B, 0.9 + 0.1 * torch.rand(count, generator=generator))


def test_png_and_svg_are_the_same_each_time(tmp_path: Path) -> None:
    data = {"generated": points(seed=1), "original": points(), "ensemble": points(1)}
    first = accuracy_similarity_figure(data, tmp_path / "new" / "one", title="digits-mlp3")
    second = accuracy_similarity_figure(data, tmp_path / "two", title="digits-mlp3")
    assert [path.name for path in first] == ["one.png", "one.svg"]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    svg = first[1].read_text(encoding="utf-8")
    assert "<svg" in svg and "<dc:date>" not in svg
    for text in ("originals (20)", "generated (20)", "accuracy on test (%)", "digits-mlp3"):
        assert f"<!-- {text} -->" in svg  # text is drawn as paths, with a comment that holds it
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["one.png", "one.svg", "two.png", "two.svg"]


def test_points_that_coincide_and_points_without_similarity_are_stated(tmp_path: Path) -> None:
    same = MethodPoints.from_similarities(torch.full((8,), 0.98), torch.tensor([1.0] * 5 + [torch.nan] * 3))
    _, svg = accuracy_similarity_figure({"generated": same}, tmp_path / "figure")
    text = svg.read_text(encoding="utf-8")
    assert "Larger markers: several networks at one point (up to 5)" in text
    assert "<!-- generated (8), -->" in text and "<!-- 3 without errors not drawn -->" in text


def test_all_points_without_similarity(tmp_path: Path) -> None:
    clean = MethodPoints.from_similarities(torch.ones(2), torch.full((2,), torch.nan))
    assert len(accuracy_similarity_figure({"original": clean}, tmp_path / "figure")) == 2


def test_methods_differ_without_their_colours() -> None:
    for one, two in combinations(METHOD_STYLE.values(), 2):
        assert (one.marker, one.filled) != (two.marker, two.filled)
        assert one.label != two.label


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, pdiff_hub.evaluation.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1]).returncode == 0


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown method.* 'generate'; .*'generated'"):
        accuracy_similarity_figure({"generate": points()}, tmp_path / "figure")
    with pytest.raises(ValueError, match="no points"):
        accuracy_similarity_figure({}, tmp_path / "figure")
    far = MethodPoints.from_distances(torch.ones(2), torch.ones(2), 1.0)
    with pytest.raises(ValueError, match="come from distances"):
        accuracy_similarity_figure({"original": far}, tmp_path / "figure")
    assert not list(tmp_path.iterdir())
