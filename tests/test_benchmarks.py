"""What benchmarks share: timing both ways by turns, medians and ratios, and the page. Speed itself is not tested."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import pytest
import run_all
import torch
from harness import Result

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COMPARED = Result("sampling", "200 networks", "one by one", 1234.5, 0.5, 2469.0, 2000.0, 3000.0, 3, 40.0, 0.5, "Fine.")
ALONE = Result("start-up", "import | open", None, None, 0.123, None, None, None, 3)
ABOUT: dict[str, Any] = {
    "cpu": "A CPU",
    "cores": 2,
    "threads": 2,
    "memory_gib": 23.5,
    "python": "3.11.7",
    "torch": "2.13.0",
    "diffusers": "0.42.1",
    "transformers": None,
    "date": "2026-11-25",
}


def cells(page: str, part: str) -> list[str]:
    """The cells of the table's row of that part."""
    row = next(line for line in page.splitlines() if line.startswith(f"| {part} "))
    return [cell.strip() for cell in row.replace("\\|", "/").strip("|").split("|")]


def test_both_ways_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def way(name: str) -> float:
        calls.append(name)
        return float(len(calls))  # the way returns its own seconds

    assert harness.compare(lambda: way("plain"), lambda: way("ours"), rounds=3) == ([3.0, 5.0, 7.0], [4.0, 6.0, 8.0])
    assert calls == ["plain", "ours"] * 4


def test_what_returns_no_seconds_is_timed() -> None:
    plain, ours = harness.compare(lambda: None, lambda: torch.zeros(1), rounds=2)
    assert len(plain) == len(ours) == 2
    assert all(0 <= seconds < 60 for seconds in plain + ours)


def test_a_result_holds_medians_and_the_ratio_of_each_round() -> None:
    found = harness.result("saving", "case", [1.0, 2.0, 4.0], plain="plainly", seconds_plain=[10.0, 10.0, 80.0])
    assert found == Result("saving", "case", "plainly", 10.0, 2.0, 10.0, 5.0, 20.0, 3)


def test_a_result_without_a_plain_way_has_no_ratio() -> None:
    found = harness.result("saving", "case", [3.0, 1.0, 2.0])
    assert found == Result("saving", "case", None, None, 2.0, None, None, None, 3)


def test_the_fraction_is_that_of_a_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "matmul_rate", lambda: 80.0)
    found = harness.result("training", "case", [0.5], flops=10e9)
    assert (found.gflops, found.fraction) == (20.0, 0.25)


def test_a_matrix_product_has_a_rate() -> None:
    assert harness.matmul_rate(sizes=(64, 128)) > 0


def test_the_machine_says_what_the_page_needs() -> None:
    assert harness.machine().keys() == ABOUT.keys()


def test_the_command_line_prints_a_line_a_result_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["made_up.py", "--json", str(file), "--rounds", "1"])
    harness.main("made_up", lambda options: [replace(COMPARED, rounds=options.rounds), ALONE])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "sampling: 200 networks: 0.5 s; one by one: 1,234 s; 2,469 times as fast (2,000 to 3,000); 40 "
        "GFLOP/s, 50 % of a matrix product's. Fine."
    )
    assert lines[1] == "start-up: import | open: 0.123 s"
    results = [Result(**each) for each in json.loads(file.read_text())["results"]]
    assert results == [replace(COMPARED, rounds=1), ALONE]


def test_the_page_holds_machine_table_and_notes() -> None:
    page = run_all.page([ALONE, COMPARED], [], ABOUT, minutes=12.3)
    assert "on 2026-11-25, in 12 minutes: A CPU, 2 cores, 2 threads, 23.5 GiB; python 3.11.7, torch 2.13.0, " in page
    assert "transformers" not in page and "Failed" not in page
    assert cells(page, "start-up") == ["start-up", "import / open", "", "", "0.123", "", ""]
    assert cells(page, "sampling") == [
        "sampling",
        "200 networks (note 1)",
        "one by one",
        "1,234",
        "0.5",
        "2,469 (2,000 to 3,000)",
        "50 % (40 of 80 GFLOP/s)",
    ]
    assert page.endswith("## Notes\n\n1. sampling, 200 networks: Fine.\n")


def test_the_page_names_what_failed() -> None:
    assert "training.py, saving.py" in run_all.page([ALONE], ["training", "saving"], ABOUT, minutes=1)


def test_a_failed_benchmark_is_on_the_page_and_in_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def run(script: str, options: list[str]) -> list[Result] | None:
        asked.append((script, options))
        return None if script == "saving" else [ALONE]

    monkeypatch.setattr(run_all, "run", run)
    output = tmp_path / "page.md"
    assert run_all.main(["--only", "starting", "saving", "--quick", "--output", str(output)]) == 1
    assert asked == [("starting", ["--rounds", "1"]), ("saving", ["--checkpoints", "4", "--rounds", "1"])]
    page = output.read_text(encoding="utf-8")
    assert "saving.py" in page and cells(page, "start-up")
    assert run_all.main(["--only", "starting", "--output", str(output)]) == 0
    assert asked[-1] == ("starting", [])


@pytest.mark.parametrize("option", [["--quick"], ["--only", "saving"]])
def test_a_part_never_replaces_the_page(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_all.main(option)
    assert "--output" in capsys.readouterr().err


def test_every_benchmark_that_is_run_is_there() -> None:
    assert [name for name in run_all.SCRIPTS if not (BENCHMARKS / f"{name}.py").is_file()] == []


def test_a_benchmark_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    script = tmp_path / "benchmarks" / "made_up.py"
    script.write_text(f"""import sys
sys.path.append({str(BENCHMARKS)!r})
from harness import main, result
if __name__ == "__main__":
    main("made_up", lambda options: [result("saving", "case", [float(options.rounds)])])
""")
    monkeypatch.setattr(run_all, "ROOT", tmp_path)
    assert run_all.run("made_up", ["--rounds", "5"]) == [Result("saving", "case", None, None, 5.0, None, None, None, 1)]
    script.write_text("raise SystemExit(3)")
    assert run_all.run("made_up", []) is None


@pytest.mark.slow
def test_every_benchmark_runs_at_tiny_sizes(tmp_path: Path) -> None:
    output = tmp_path / "page.md"
    assert run_all.main(["--quick", "--output", str(output)]) == 0
    page = output.read_text(encoding="utf-8")
    for part in (
        "collecting",
        "saving",
        "training",
        "sampling",
        "evaluation",
        "similarity",
        "start-up",
        "against the authors",
    ):
        assert cells(page, part)
