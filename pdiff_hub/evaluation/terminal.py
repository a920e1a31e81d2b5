"""Tables in a terminal: no line is longer than it is wide, and no word is broken.

Cells of numbers stay on one line; names, texts and headings are wrapped between words. A table whose columns do not fit
side by side is shown in parts, each with the first column.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from pdiff_hub.errors import printable
from pdiff_hub.evaluation.report import Table, numeric_columns

_GAP = 2  # between columns


def print_table(console: Console, table: Table) -> None:
    """Print a table with its title and note; in the short form, if it has one."""
    shown = _shortened(table)
    numeric = numeric_columns(shown)
    longest = [max(map(len, cells)) for cells in zip(shown.columns, *shown.rows, strict=True)]
    roomy = sum(longest) + _GAP * (len(longest) - 1) <= console.width  # nothing needs to be wrapped
    for number, part in enumerate(_parts(shown, numeric, console.width)):
        console.print()
        console.print(safe(shown.title + (", continued" if number else "")), style="italic")
        console.print(_rich(shown, [not roomy and each for each in numeric], numeric, part))
    if shown.note:
        console.print(safe(shown.note), style="dim")


def safe(text: str) -> Text:
    """Text for the terminal out of results that somebody else may have written: no markup, no control characters."""
    return Text(printable(text))


def _shortened(table: Table) -> Table:
    short = table.short
    if short is None:
        return table
    headings = short.headings or {column: column for column in table.columns}
    chosen = [index for index, column in enumerate(table.columns) if column in headings]
    rows = [[short.cells.get(row[index], row[index]) for index in chosen] for row in table.rows]
    note = table.note if short.note is None else short.note
    return Table(short.title, [headings[table.columns[index]] for index in chosen], rows, note)


def _parts(table: Table, numeric: Sequence[bool], width: int) -> list[list[int]]:
    """Indices of the columns that are shown side by side. The first column is in every part."""
    least = [
        max(_least(column), *(len(row[index]) if numeric[index] else _least(row[index]) for row in table.rows))
        for index, column in enumerate(table.columns)
    ]
    parts, taken = [[0]], least[0]
    for index in range(1, len(least)):
        if taken + _GAP + least[index] > width and len(parts[-1]) > 1:
            parts.append([0])
            taken = least[0]
        parts[-1].append(index)
        taken += _GAP + least[index]
    return parts


def _rich(table: Table, narrow: Sequence[bool], numeric: Sequence[bool], part: Sequence[int]) -> RichTable:
    """narrow: which columns get the width of their cells, with the heading wrapped; texts share what is left."""
    drawn = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    for index in part:
        cells = [row[index] for row in table.rows]
        heading = table.columns[index]
        drawn.add_column(
            safe(heading),
            justify="right" if numeric[index] else "left",
            width=max(_least(heading), *map(len, cells)) if narrow[index] else None,
            min_width=max(map(_least, (heading, *cells))),
        )
    for row in table.rows:
        drawn.add_row(*(safe(row[index]) for index in part))
    return drawn


def _least(text: str) -> int:
    """The length of the longest word."""
    return max(map(len, printable(text).split()), default=1)
