"""benchmarks/on_a_gpu*.py without a GPU: the parts that are asked for are run, and end in one table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import on_a_gpu
import on_a_gpu_runs
import pytest

_STAGES = {"collect": 1.0, "train_autoencoder": 2.0, "train_diffusion": 3.0, "generate": 4.0, "evaluate": 0.5}
_WRITES = (
    "import json, pathlib, sys; folder = pathlib.Path(sys.argv[sys.argv.index('--output-dir') + 1]); folder.mkdir(); "
    f"(folder / 'results.json').write_text(json.dumps({{'seconds': {_STAGES}}}))"
)


@pytest.mark.parametrize(
    ("arguments", "shown"), [(["run", "made-up"], list(_STAGES)), (["evaluate", "x"], ["evaluate"])]
)
def test_a_command_tells_its_own_stages(
    arguments: list[str], shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_a_gpu_runs, "_PDIFF", _WRITES)
    ((name, value), *_) = on_a_gpu_runs.whole_command("made-up", arguments, tmp_path / "out", "cpu")
    assert name == "made-up, from start to report"
    assert all((f"{stage.replace('_', ' ')} {_STAGES[stage]:.1f}" in value) == (stage in shown) for stage in _STAGES)


def test_how_busy_it_was_is_told_with_and_without_pictures() -> None:
    busy = [(0.5, 90), (1.5, 50), (2.5, 70), (3.5, 0)]
    assert on_a_gpu_runs.busy_shares(busy, 1.0, (4.0, 3.0)) == [40.0, 60.0]
    assert (
        on_a_gpu_runs.busy_shares(busy, 1.0, (4.0, 1.0)) is None and on_a_gpu_runs.busy_shares([], 0.0, (1.0,)) is None
    )


def test_a_command_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_a_gpu_runs, "_PDIFF", "raise SystemExit('no such recipe')")
    found = list(on_a_gpu_runs.whole_command("made-up", ["run", "x"], tmp_path / "out", "cpu"))
    assert found == [("made-up, from start to report", "failed with exit code 1")]
    assert "no such recipe" in capsys.readouterr().err


def test_some_parts_are_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    options = ["--device", "cpu", "--quick", "--parts", "sampling", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["on_a_gpu.py", *options])
    on_a_gpu.main()
    kept = json.loads(file.read_text())
    assert [name for name, _ in kept][2:] == ["sample 20 networks of 6,442 numbers, 50 steps", "all of this"]
    assert capsys.readouterr().out.endswith("".join(f"| {name} | {value} |\n" for name, value in kept))


@pytest.mark.slow
def test_all_parts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["on_a_gpu.py", "--device", "cpu", "--quick"])
    on_a_gpu.main()
    printed = capsys.readouterr().out
    assert "digits-mlp3, 6 networks and 1 a baseline, from start to report" in printed
    assert "tests collected" in printed and "failed" not in printed
