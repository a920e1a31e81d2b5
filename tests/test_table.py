"""evaluation/table.py: the tables in the terminal."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from pdiff_hub.evaluation.results_page import write_results_page
from pdiff_hub.evaluation.table import print_results, result_tables
from pdiff_hub.pipeline import render_card
from pdiff_hub.records import Results, RunFolder

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
