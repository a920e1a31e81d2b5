"""benchmarks/growth*.py: slopes, the page and its pictures; points that are kept are not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import growth
import growth_stages
import pytest
import torch
from growth_axes import AXES, PARAMETERS
from growth_page import draw, render, summary
from growth_peer import measure_peer
from growth_points import KeptPoints, Point, line, slope
from growth_process import Cost, Seconds, run

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.travelling.param_autoencoder import ParamLayout

MACHINE = {"CPU": "made up", "torch": "2.8.0"}
TINY = ["--sizes", "1e3", "1e4", "--checkpoints", "10", "30", "--models", "1", "4"]
SECONDS: dict[Callable[..., Seconds], tuple[str, ...]] = {
    growth_stages.save_vits: ("save",),
    growth_stages.save_mlps: ("save",),
    growth_stages.sample: ("sample",),
    growth_stages.judge: ("judge",),
    growth_stages.train: ("fit autoencoder", "U-Net steps", "write pipeline"),
    growth_stages.similarity: ("similarity",),
    growth_stages.sample_models: ("sample",),
    growth_stages.write_models: ("sample and write",),
}


def made_up(exponent: float = 1.0) -> dict[str, list[Point]]:
    """Points for every axis. Their seconds grow with that exponent, and their memory grows only from 10^5 on."""
    points: dict[str, list[Point]] = {}
    for axis in AXES:
        stages = axis.stages(Path(), 1000)
        names = [name for stage in stages for name in SECONDS[stage.work]]
        points[axis.name] = [
            Point(
                x,
                x,
                dict.fromkeys(names, 0.25 * x**exponent),
                {stage.name: (400 + (x >= 10**5) * x // 1000) * 2**20 for stage in stages},
                f"2026-01-0{day}T12:00:00",
            )
            for day, x in enumerate((1000, 10_000, 100_000, 1_000_000), start=1)
        ]
    return points


def test_slope_of_a_power_law_is_exact_and_the_lower_half_does_not_count() -> None:
    xs = [10.0**e for e in range(3, 9)]
    ys = [3 * x**1.7 for x in xs]
    assert line(xs, ys) == pytest.approx((3, 1.7), rel=1e-12)
    assert slope(xs, [5e9, 1.0, 7e5, *ys[3:]]) == pytest.approx(1.7, rel=1e-12)
    assert slope([1, 10, 100], [9, 40, 40]) == pytest.approx(0, abs=1e-12)  # the middle belongs to the upper half


def test_slope_needs_two_points_above_the_least() -> None:
    assert slope([1, 10, 100], [1, 2, 3], least=2) is None
    assert slope([1, 10, 100], [1, 2, 4], least=1) == pytest.approx(0.30103, rel=1e-5)
    assert slope([5], [1]) is None


def test_page_and_pictures_from_made_up_points(tmp_path: Path) -> None:
    points = made_up()
    text = render(AXES, points, MACHINE, "../docs")
    for part in (
        "measured 2026-01-01 to 2026-01-04",
        "random perturbations of one random network",
        "they say\nnothing about quality",
        "| CPU | made up |",
        "![Time and working memory",
        "(../docs/growth-checkpoints.png)",
        "| 1,000,000 | 250,000 | 250,000 |",
        "| slope | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 |",
        "| 1,000,000 | train | 1,400 | 1,000 | 996 |",
        "| 1,000,000 | judge | 1,400 | 1,000 | 996 |",
        "| parameters (1,000 to 1,000,000) | judge, time | 250,000 s | 1.00 |",
        "| parameters (1,000 to 1,000,000) | train, memory | 1,000 MiB | 1.00 |",
    ):
        assert part in text
    for table in text.split("\n\n"):  # every row of a table has as many cells as its header
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1
    paths = draw(PARAMETERS, points["parameters"], tmp_path / "growth-parameters")
    assert [path.name for path in paths] == ["growth-parameters.png", "growth-parameters.svg"]
    svg = paths[1].read_text(encoding="utf-8")
    for drawn in ("time (seconds)", "working memory (MiB)", "parameters of the network (number)", "U-Net steps (1.00)"):
        assert f"<!-- {drawn} -->" in svg


def test_a_peer_stands_beside_ours_where_it_was_measured() -> None:
    seconds = {"components": 0.5, "flow": 170.0, "network": 0.125}
    peer = [Point(x, x, seconds, {}, "2026-01-05T12:00:00") for x in (1000, 10_000)]
    text = render(AXES, made_up(), MACHINE, "../docs", peer=peer)
    table = text[text.index("## Beside a peer") :]
    assert "would take 170 to 170 s, scaled up from 50" in table
    assert "| 10,000 | 2.5e+03 | 0.5 | 2.5e+03 | 0.125 |" in table and "| 100,000 |" not in table
    assert "## Beside a peer" not in render(AXES, made_up(), MACHINE, "../docs")


def test_a_folder_without_the_peer_is_said_before_it_is_measured(tmp_path: Path) -> None:
    assert measure_peer([], False, [1e3], tmp_path, MACHINE) == []
    with pytest.raises(PdiffError, match=r"--peer-source: .* holds none of the peers"):
        measure_peer([tmp_path], False, [1e3], tmp_path / "work", MACHINE)
    assert not [*(tmp_path / "work").iterdir()]


def test_memory_that_does_not_grow_is_said_not_fitted(tmp_path: Path) -> None:
    flat = [Point(x, x, {"save": 1.0}, {"save": 2**28 + x}, "2026-01-01T12:00:00") for x in (10, 1000)]
    assert summary([PARAMETERS], {"parameters": flat})[-1] == [
        "parameters (10 to 1,000)",
        "save, memory",
        "0 MiB",
        "no slope",
    ]
    assert "<!-- all under 4 MiB -->" in draw(PARAMETERS, flat, tmp_path / "flat")[1].read_text(encoding="utf-8")


def test_points_of_other_settings_are_not_found(tmp_path: Path) -> None:
    point = made_up()["models"][0]
    KeptPoints(tmp_path / "points.json").keep({"steps": 20}, point)
    kept = KeptPoints(tmp_path / "points.json")
    assert kept.find({"steps": 20}, point.asked) == point
    assert kept.find({"steps": 21}, point.asked) is None and kept.find({"steps": 20}, 7) is None


def test_a_stopped_run_goes_on_and_measures_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[Any, ...]] = []

    def counted(work: Callable[..., Seconds], *arguments: Any) -> Cost:
        if len(done) == stop_after:
            raise RuntimeError("train ended with exit code -9")
        done.append((work, *arguments))
        return Cost(dict.fromkeys(SECONDS[work], 1.0 + len(done)), 2.0, 2**28)

    monkeypatch.setattr(growth, "run", counted)
    drawn: set[Path] = set()
    monkeypatch.setattr(growth, "draw", lambda axis, points, stem: drawn.add(stem))
    monkeypatch.setattr(growth, "machine", lambda: {**MACHINE, "date": f"day {len(done)}"})
    command = [*TINY, "--work-dir", str(tmp_path / "work"), "--output-dir", str(tmp_path / "out")]
    stop_after = 5  # it stops in the second network
    with pytest.raises(SystemExit, match=r"exit code -9\. Finished points are kept in .*work; the same command"):
        growth.main(command)
    assert not (tmp_path / "out").exists()
    done.clear()
    stop_after = -1
    growth.main(command)
    assert len(done) == 4 + 6 + 4  # all stages of the second network are done again
    page = (tmp_path / "out" / "benchmarks" / "GROWTH.md").read_text(encoding="utf-8")
    done.clear()
    growth.main(command)
    assert done == [] and (tmp_path / "out" / "benchmarks" / "GROWTH.md").read_text(encoding="utf-8") == page
    assert drawn == {tmp_path / "out" / "docs" / f"growth-{axis.name}" for axis in AXES}
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["points.json"]
    growth.main([*command, "--models", "1", "4", "9"])
    assert [work for work, *_ in done] == [growth_stages.sample_models, growth_stages.write_models]
    printed = capsys.readouterr()
    assert "models (1 to 9)" in printed.out and "GROWTH.md" in printed.err


def test_sizes_that_cannot_be_measured_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--sizes", "10"], ["--models", "1.5"], ["--checkpoints", "2"]):
        with pytest.raises(SystemExit):
            growth.main(wrong)
    assert "number of models: expected whole numbers of at least 1, found [1.5]" in capsys.readouterr().err


def test_networks_have_the_sizes_that_the_page_tells() -> None:
    for size in (1e3, 3e3, 5e3, 1e5, 1e6, 1e8):
        assert growth_stages.vit_params(size) == pytest.approx(size, rel=0.25)
    tiny = build_network(resolve_network(growth_stages.TINY_MLP, in_channels=1, image_size=8, num_classes=10))
    assert ParamLayout.from_module(tiny).num_params == 1066
    assert "1,066 parameters" in AXES[1].what
    assert json.loads((growth_stages.PIPELINE / "results.json").read_text())["num_params"] == 8970
    assert "8,970 parameters" in AXES[2].what


def test_perturbations_are_the_same_in_any_rectangle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth_stages, "_BLOCK", 16)
    rows = growth_stages.Perturbations(5, 40)
    whole_KP = rows.read(0, 5, 0, 40)
    assert whole_KP.isfinite().all() and torch.linalg.matrix_rank(whole_KP - whole_KP[0]) == 4
    for start, stop in ((0, 16), (3, 35), (32, 40), (17, 18)):
        torch.testing.assert_close(rows.read(1, 4, start, stop), whole_KP[1:4, start:stop])


def test_a_process_of_its_own_gives_seconds_and_only_its_own_memory() -> None:
    cost = run(dict, {"nothing": 0.5})
    assert cost.seconds == {"nothing": 0.5} and cost.total >= 0
    assert 2**22 < cost.peak < 2**27  # this process holds more, because it has imported torch


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="int ended with exit code 1: ValueError: invalid literal"):
        run(int, "as wanted")
