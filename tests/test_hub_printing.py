"""Names from elsewhere are shown with escapes: a terminal neither obeys them nor stops at them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from checkpoint_sets import dataset
from rich.console import Console

from pdiff_hub import cli
from pdiff_hub.errors import printable, printable_lines
from pdiff_hub.evaluation.table import print_results
from pdiff_hub.records import Results

ODD = "a\x1b[2J\ud800\x9b\u202e\r"
SHOWN = "a\\x1b[2J\\ud800\\x9b\\u202e\\r"
SHIPPED = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pdiff", *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_escapes() -> None:
    assert printable(ODD) == SHOWN and printable_lines("é 漢字 😀 [x]\n") == "é 漢字 😀 [x]\n"


def test_info_and_errors_show_odd_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(2).save_pretrained(tmp_path / "set")
    index = json.loads((tmp_path / "set" / "dataset.json").read_text())
    for changed, status in (
        ({"network": {"name": ODD.replace("\ud800", "")}}, 0),
        ({"format": ODD, "format_version": ODD}, 1),
    ):
        (tmp_path / "set" / "dataset.json").write_text(json.dumps({**index, **changed}))
        assert command(monkeypatch, "info", str(tmp_path / "set")) == status
        said = capsys.readouterr()
        shown = SHOWN.replace("\\ud800", "") in said.out
        assert shown if status == 0 else said.err.startswith("pdiff: ")
        assert "\x1b[2J" not in said.out + said.err and "\ud800" not in said.out + said.err
    assert command(monkeypatch, "push", f"{tmp_path}/\x1b[2J\udcff", "user/x") == 1
    said = capsys.readouterr()
    assert "\\x1b[2J\\udcff" in said.err and len(said.err.strip().splitlines()) == 1


def test_results_are_text_and_no_markup() -> None:
    results = json.loads((SHIPPED / "results.json").read_text())
    results["notes"] = ["[red]\x1b[2J[/red] [/] \\"]
    out = io.StringIO()
    print_results(Results.from_dict(results), Console(file=out, width=200))
    assert "Note: [red]\\x1b[2J[/red] [/] \\" in out.getvalue()
