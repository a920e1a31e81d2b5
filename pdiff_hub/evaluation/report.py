"""One HTML page of tables and pictures in a single file, which can be mailed, printed, or opened years later.

Pictures are embedded. The page loads nothing and runs no script; its content security policy forbids both. The same
input gives the same bytes. All texts are plain text: `<` is shown as `<`, and web addresses become links.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from pdiff_hub.errors import PdiffError, printable_lines
from pdiff_hub.safe_files import replacing

# What counts as numeric: "97.64", "-1e-4", "97.64 ± 0.12", "0.98 (0.97 to 0.99)", "12.5 %", "3.1 s", "2x".
# Neighbouring parts match different characters, so a text can match in one way only, and none makes matching slow.
_NUMBER = r"\d+(e\W?\d+)?"
_NUMERIC = re.compile(rf"\W*{_NUMBER}(\W+(to\W+)?{_NUMBER})*\W*[^\W\d]{{0,3}}")
_GAP = re.compile(r"\W*|nan|n/a|undefined", re.IGNORECASE)
_TEMPLATE = Path(__file__).with_name("report_template.html")
_CONTENTS_FROM = 4  # sections from which on there is a table of contents; fewer fit on a screen or two
_PIXELS_PER_INCH = 120  # a quarter above CSS's 96: figures are drawn for paper, with letters too small for a screen


@dataclass(frozen=True)
class Short:
    """What a terminal of 80 columns shows instead of a table's own title, headings and note.

    headings: by column of the table, in the table's order; a column without one is left out. Empty: all, as they are.
    cells: short forms of whole cells. note: None shows the table's own.
    """

    title: str
    headings: Mapping[str, str] = field(default_factory=dict)
    cells: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class Table:
    """columns: the headings. rows: one cell per column; the first cell names the row. note: shown below the table.

    A column that holds only numbers (units, intervals and gaps such as "undefined" are allowed) is aligned right.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    short: Short | None = None


@dataclass(frozen=True)
class Figure:
    """png: an existing PNG file. alt: what the picture shows, in words, for readers who cannot see it."""

    png: Path
    title: str
    alt: str


@dataclass(frozen=True)
class Section:
    """text: plain text, shown before the blocks; empty lines separate paragraphs."""

    title: str
    text: str = ""
    blocks: Sequence[Table | Figure] = ()


def write_report(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page to `path`, whole or not at all. A missing folder is made.

    title: the title of the page. lead: the findings in a few sentences, with paragraphs as in `Section.text`; may be
    empty. A page of four or more sections gets a table of contents.
    Raises ValueError for a missing title, no section, a table without columns, a row that does not fit its columns, a
    figure without `alt` and a file that is not a PNG; FileNotFoundError for a picture that does not exist.
    """
    from jinja2 import Environment, StrictUndefined

    _check(title, sections)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    environment.filters.update(paragraphs=_paragraphs, numeric_columns=numeric_columns, picture=_picture)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        lead=lead,
        sections=sections,
        generator=f"pdiff-hub {version('pdiff-hub')}",
        with_contents=len(sections) >= _CONTENTS_FROM,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes((page + "\n").encode())  # bytes, so that Windows does not change the line ends


def _visible(value: object) -> object:
    """What a page shows of a value out of results that somebody else may have written; markup of our own stays."""
    return printable_lines(value) if type(value) is str else value


class _Picture(NamedTuple):
    source: str
    width: int  # CSS pixels
    height: int


def _picture(png: Path) -> _Picture:
    """The picture as a data address, at the size it was drawn for (by its dpi; 96 if the file names none)."""
    from PIL import Image

    data = png.read_bytes()
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            pixels_per_inch = image.info.get("dpi", (96, 96))
            width, height = (
                round(size / per_inch * _PIXELS_PER_INCH)
                for size, per_inch in zip(image.size, pixels_per_inch, strict=True)
            )
            image.verify()
    except (OSError, SyntaxError) as error:  # Pillow: OSError for cut data or no PNG, SyntaxError for a broken PNG
        raise PdiffError(f"{png} is not a whole PNG picture ({error}); write it again with figures.") from error
    return _Picture("data:image/png;base64," + b64encode(data).decode(), width, height)


def numeric_columns(table: Table) -> list[bool]:
    """For each column, whether it holds only numbers; a column of gaps alone counts as text."""
    numeric = []
    for column in range(len(table.columns)):
        cells = [row[column] for row in table.rows if not _GAP.fullmatch(row[column])]
        numeric.append(bool(cells) and all(_NUMERIC.fullmatch(cell) for cell in cells))
    return numeric


def _paragraphs(text: str) -> list[str]:
    return [printable_lines(paragraph) for paragraph in re.split(r"\n\s*\n", text.strip()) if paragraph]


def _check(title: str, sections: Sequence[Section]) -> None:
    if not title.strip():
        raise PdiffError("the report has no title; expected a text.")
    if not sections:
        raise PdiffError(f"the report {title!r} has no sections; expected at least one.")
    for section in sections:
        if not section.title.strip():
            raise PdiffError(f"a section of the report {title!r} has no title; expected a text.")
        for block in section.blocks:
            if isinstance(block, Table):
                _check_table(block)
            elif not block.alt.strip():
                raise PdiffError(f"the figure {block.title!r} has no alt text; say in words what it shows.")
            elif not block.png.is_file():
                raise FileNotFoundError(
                    f"the figure {block.title!r} expects its picture at {block.png}, where there "
                    "is no file; draw it first."
                )


def _check_table(table: Table) -> None:
    if not table.columns:
        raise PdiffError(f"the table {table.title!r} has no columns; expected at least one.")
    for number, row in enumerate(table.rows, 1):
        if len(row) != len(table.columns):
            raise PdiffError(
                f"the table {table.title!r} has {len(table.columns)} columns, but row {number} has "
                f"{len(row)} cells: {list(row)}; give one cell a column."
            )
