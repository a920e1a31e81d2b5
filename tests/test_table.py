"""evaluation/table.py and terminal.py: the tables in the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pdiff_hub.evaluation.report import Table
from pdiff_hub.evaluation.results_page import write_results_page
from pdiff_hub.evaluation.table import accuracy_note, print_results, result_tables
from pdiff_hub.evaluation.terminal import print_table
from pdiff_hub.pipeline import render_card
from pdiff_hub.records import AccuracySummary, Results, RunFolder

PIPELINES = Path(__file__).parents[1] / "pipelines"
SHIPPED = PIPELINES / "digits-mlp3"


def printed(table: Table) -> str:
    shown = StringIO()
    print_table(Console(file=shown, width=80), table)
    return shown.getvalue()


def words_of(table: Table) -> set[str]:
    texts = [table.title, table.note, *table.columns, *(cell for row in table.rows for cell in row)]
    return {word for text in texts for word in text.split()}


@pytest.mark.parametrize("name", ["digits-mlp3", "digits-subsets"])
def test_tables_fit_a_terminal_of_80_columns(name: str) -> None:
    results = RunFolder(PIPELINES / name).read_results()
    assert results is not None and results.measured is not None
    tables = result_tables(results.measured)
    assert len(tables) == 5
    for table in tables.values():
        text = printed(table)
        assert max(map(len, text.splitlines())) <= 80 and "…" not in text
        whole = replace(table, short=None)  # as `pdiff reproduce` may print it, and wider than 80 columns
        assert words_of(whole) <= {*printed(whole).split()} and max(map(len, printed(whole).splitlines())) <= 80
        for row in table.rows:  # the first cell names the row, numbers with their intervals stay on one line
            assert {*row[0].split()} <= {*text.split()}
    shown = StringIO()
    print_results(results, Console(file=shown, width=80))
    assert max(map(len, shown.getvalue().splitlines())) <= 80
    if name == "digits-mlp3":
        assert "0.91 (0.73-1.00)\n" in shown.getvalue() and "+0.09 (-0.20 to +0.37)  unclear\n" in shown.getvalue()


def test_a_table_that_is_too_wide_is_shown_in_parts() -> None:
    columns = ["network", *(f"published accuracy {letter}" for letter in "abcdefghij")]
    rows = [[f"row-{number}", *(f"{number}{index}.25" for index in range(10))] for number in range(3)]
    text = printed(Table("Wide", columns, rows, "a note"))
    assert text.count("Wide, continued") == 1 and text.count("row-2") == 2 and text.endswith("a note\n")
    assert [len(line) <= 80 for line in text.splitlines()] and all(cell in text for row in rows for cell in row)


def test_the_best_below_the_mean_is_explained() -> None:
    good, odd = AccuracySummary(0.9, 0.8, 0.8, 0.1), AccuracySummary(0.7, 0.8, 0.8, 0.1)
    assert "below the mean" not in accuracy_note([good, good])
    assert "below the mean, as here, the networks are so alike" in accuracy_note([good, odd])
    assert "as in 2 rows here" in accuracy_note([odd, good, odd])
    results = RunFolder(SHIPPED).read_results()
    assert results is not None and results.measured is not None
    note = result_tables(results.measured)["accuracy"].note
    assert "as in 9 rows here" in note and f"\\{note}" in render_card(results)


def test_what_other_people_wrote_is_shown_as_text(tmp_path: Path) -> None:
    text = (SHIPPED / "results.json").read_text()
    data = json.loads(text)
    odd = "[/x] [bold red]all good[/bold red] :smile: \x1b]0;owned\x07 \u202e end"
    data["frontier"]["verdict"], data["notes"], data["name"] = odd, [odd], odd
    results = Results.from_dict(data)
    shown = StringIO()
    print_results(results, Console(file=shown, width=200))
    report = write_results_page(results, RunFolder(tmp_path)).read_text()
    for page in (shown.getvalue(), report, render_card(results)):
        assert "[/x] [bold red]all good[/bold red] :smile: \\x1b]0;owned\\x07 \\u202e end" in " ".join(page.split())
        assert not {"\x1b", "\x07", "\u202e"} & {*page}
