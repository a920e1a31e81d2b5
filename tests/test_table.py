"""evaluation/table.py: the tables in the terminal."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from pdiff_hub.evaluation.table import print_results, result_tables
from pdiff_hub.records import RunFolder

SHIPPED = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"


def test_no_name_is_cut_in_a_narrow_terminal() -> None:
    results = RunFolder(SHIPPED).read_results()
    assert results is not None and results.measured is not None
    shown = StringIO()
    print_results(results, Console(file=shown, width=80))
    lines = shown.getvalue().splitlines()
    assert "…" not in shown.getvalue() and max(map(len, lines)) <= 80
    for name, *_ in result_tables(results.measured)["methods"].rows:
        assert all(any(word in line for line in lines) for word in name.split())
