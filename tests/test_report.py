"""evaluation/report.py: what the page says, that it runs no script and fetches nothing, and how Chromium shows it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pdiff_hub import __version__
from pdiff_hub.evaluation.report import Figure, Section, Table, write_report

PICTURE = Path(__file__).parents[1] / "docs" / "digits-mlp3.png"  # 300 dpi
VOID = {"meta", "link", "img"}

ACCURACY = Table(
    "Accuracy on test [%]",
    ("networks", "best", "mean", "median", "against p-diff (95 % interval)", "verdict"),
    (
        ("originals", "97.91", "97.69", "97.77", "", ""),
        ("generated", "98.05", "97.64", "97.64", "-0.05 (-0.11 to 0.01)", "within the interval"),
        ("Gaussian per coordinate", "97.64", "9.10", "undefined", "0.31 (0.20 to 0.42)", "yes"),
    ),
    note="Best is chosen on the validation split. See https://arxiv.org/abs/2402.13144.",
)
WIDE = Table(
    "Every setting",
    ["setting", *(f"after {n:,} steps" for n in range(1000, 13_000, 1000))],
    [[f"noise_standardised_{sigma}", *[f"{98 - sigma:.2f}"] * 12] for sigma in (0.001, 0.05, 0.15)],
)
ACCURACY_FIGURE = Figure(PICTURE, "Accuracy against similarity", "Generated networks are as accurate as originals.")
SECTIONS = [
    Section("Accuracy", "Two hundred of each.\n\nAll on the test split.", [ACCURACY, ACCURACY_FIGURE]),
    Section("Every setting", blocks=[WIDE]),
    Section("Method", "See https://example.org/" + "long" * 40),
    Section("Limits", "One task."),
]


class Page(HTMLParser):
    """The tags and texts of a page. It fails if tags do not close in order or if an attribute is given twice."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.unclosed: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.unclosed == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.unclosed[-1], data.strip()))

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(path: Path, sections: list[Section], title: str = "digits-mlp3", lead: str = "It works.") -> Page:
    write_report(path, title, lead, sections)
    return Page(path)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    write_report(tmp_path / "report.html", "digits-mlp3", "As accurate.\n\nNot copies.", SECTIONS)
    return tmp_path / "report.html"


def test_the_same_bytes_each_time_and_nothing_beside(report: Path) -> None:
    again = report.parent / "new" / "again.html"
    write_report(again, "digits-mlp3", "As accurate.\n\nNot copies.", SECTIONS)
    assert again.read_bytes() == report.read_bytes()
    assert sorted(path.name for path in report.parent.rglob("*.*")) == ["again.html", "report.html"]


def test_nothing_is_fetched_or_run(report: Path) -> None:
    page = Page(report)
    assert report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>\n")
    assert not {"script", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("srcset", "style", "background")
            if name == "src" or (name == "href" and tag != "a"):
                assert str(value).startswith("data:")
    assert "url(" not in report.read_text(encoding="utf-8") and "@import" not in report.read_text(encoding="utf-8")
    assert {"name": "generator", "content": f"pdiff-hub {__version__}"} in page.attributes("meta")


def test_structure(report: Path) -> None:
    page = Page(report)
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert set(ids.values()) == {1}
    for _, attributes in page.tags:
        assert attributes.get("aria-labelledby") in {None, *ids}
    assert [text for tag, text in page.texts if tag == "h1"] == ["digits-mlp3"]
    assert [text for tag, text in page.texts if tag == "h2"] == ["Contents", *(each.title for each in SECTIONS)]
    assert [text for tag, text in page.texts if tag == "p"][:4] == [
        "As accurate.",
        "Not copies.",
        "Two hundred of each.",
        "All on the test split.",
    ]
    (image,) = page.attributes("img")
    with Image.open(PICTURE) as picture:  # 300 dots per inch on paper, 120 CSS pixels per inch on the screen
        assert (image["width"], image["height"]) == tuple(str(round(size / 2.5)) for size in picture.size)
    assert image["alt"] == ACCURACY_FIGURE.alt
    links = [attributes["href"] for attributes in page.attributes("a")]
    assert links[:4] == [f"#section-{n}" for n in (1, 2, 3, 4)] and set(ids) >= {f"section-{n}" for n in (1, 2, 3, 4)}
    assert links[4] == "https://arxiv.org/abs/2402.13144"


def test_contents_only_of_more_than_three_sections(tmp_path: Path) -> None:
    assert "nav" not in dict(written(tmp_path / "report.html", SECTIONS[:3]).tags)
    assert "nav" in dict(written(tmp_path / "report.html", SECTIONS).tags)


def test_columns_of_numbers_are_right_aligned(tmp_path: Path) -> None:
    cells = [
        "97.64",
        "-1e-4",
        "\N{MINUS SIGN}0.12",
        "9.1 \N{PLUS-MINUS SIGN} 0.2",
        "0.9 (0.8 to 1.0)",
        "[0.1, 0.2]",
        "12.5 %",
        "3.1 s",
        "2x",
        "1,234.5",
        "+0.3 pp",
        ".5",
        "-",
        "\N{EN DASH}",
        "NaN",
        "undefined",
        "",
    ]
    words = ["mlp3", "16 components", "4 x 16", "IoU 0.3", "yes", "1 of many", "1," * 5000 + "words"]
    rows = [["row", cell, ""] for cell in cells]
    page = written(tmp_path / "report.html", [Section("s", blocks=[Table("t", ["a", "b", "c"], rows)])])
    assert [each.get("class") for each in page.attributes("th")[:3]] == [None, "number", None]
    assert {each.get("class") for each in page.attributes("td")[::2]} == {"number"}
    for word in words:
        table = Table("t", ["a", "b"], [["row", "1.0"], ["row", word]])
        page = written(tmp_path / "report.html", [Section("s", blocks=[table])])
        assert [each.get("class") for each in page.attributes("td")] == [None, None]


def test_a_table_without_rows(tmp_path: Path) -> None:
    page = written(tmp_path / "report.html", [Section("s", blocks=[Table("t", ["a", "b"], [])])])
    assert [text for tag, text in page.texts if tag == "th"] == ["a", "b"]


@settings(deadline=None)
@given(text=st.text(st.sampled_from("<>&\"'{}%#/ ax=\n;-!\N{SNOWMAN}"), min_size=1).filter(str.strip))
def test_every_text_is_shown_as_it_is(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "escaped.html"
    Image.new("L", (1, 1)).save(dot := path.with_name("dot.png"))
    words = " ".join(text.split())
    section = Section(text, words, [Table(text, [text], [[text]], words), Figure(dot, text, text)])
    page = written(path, [section], text, words)
    expected = Counter({"title": 1, "h1": 1, "h2": 1, "p": 3, "figcaption": 2, "th": 2})
    assert Counter(tag for tag, shown in page.texts if shown.split() == text.split()) == expected
    assert page.attributes("img")[0]["alt"] == text
    assert Counter(tag for tag, _ in page.tags)["p"] == 3


def test_bad_input(tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, *blocks: Table | Figure, title: str = "report") -> None:
        with pytest.raises(error, match=match):
            write_report(tmp_path / "report.html", title, "", [Section("s", blocks=blocks)])

    refused(ValueError, r"'t' has 2 columns, but row 2 has 1 cells: \['3'\]", Table("t", ["a", "b"], ["12", "3"]))
    refused(ValueError, "'t' has no columns", Table("t", [], []))
    refused(ValueError, "'f' has no alt text", Figure(PICTURE, "f", " "))
    refused(ValueError, "the report has no title", title="")
    refused(FileNotFoundError, r"'f' expects .*none\.png", Figure(tmp_path / "none.png", "f", "nothing"))
    with pytest.raises(ValueError, match="no sections"):
        write_report(tmp_path / "report.html", "report", "", [])
    with pytest.raises(ValueError, match="a section of the report 'report' has no title"):
        write_report(tmp_path / "report.html", "report", "", [Section("")])
    assert not list(tmp_path.iterdir())
    bad = tmp_path / "bad.png"
    for content in (b"text", b"", PICTURE.read_bytes()[:1000], PICTURE.read_bytes()[:-100]):
        bad.write_bytes(content)
        refused(ValueError, r"bad\.png is not a whole PNG", Figure(bad, "f", "broken"))
    Image.new("L", (2, 2)).save(bad, format="JPEG")
    refused(ValueError, r"bad\.png is not a whole PNG", Figure(bad, "f", "another format"))
    assert list(tmp_path.iterdir()) == [bad]


def test_jinja2_is_imported_only_to_write() -> None:
    code = "import sys, pdiff_hub.evaluation.report; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1]).returncode == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser(browser: Browser, report: Path, width: int, dark: bool) -> None:
    browser.open(report.as_uri(), width=width, dark=dark)
    assert browser.requests() == [report.as_uri()] and browser.messages() == []
    assert browser.evaluate("document.title") == "digits-mlp3"
    assert browser.evaluate("document.compatMode") == "CSS1Compat"
    assert browser.evaluate("Array.from(document.images, each => each.complete && each.naturalWidth > 0)") == [True]
    assert browser.overflow() == 0
    # Wide tables scroll inside their own box, and the picture fits the window.
    hidden = browser.evaluate("Array.from(document.querySelectorAll('.scroll'), b => b.scrollWidth - b.clientWidth)")
    assert hidden[1] > 0 and (width == 400 or hidden[0] == 0)
    assert browser.evaluate("document.images[0].getBoundingClientRect().right") <= width
    assert browser.evaluate("getComputedStyle(document.querySelector('td')).textAlign") == "right"
    background, ink = ("rgb(22, 24, 28)", "rgb(228, 230, 234)") if dark else ("rgb(255, 255, 255)", "rgb(27, 29, 33)")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == background
    assert browser.evaluate("getComputedStyle(document.body).color") == ink


def test_on_paper(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri(), dark=True, media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert browser.pdf().startswith(b"%PDF")


def test_the_browser_tells_of_what_a_page_should_not_do(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!DOCTYPE html><title>bad</title><link rel='icon' href='data:,'><p style='width: 900px'>wide</p>"
        "<img src='http://pdiff.invalid/picture.png'><script>missing()</script>",
        encoding="utf-8",
    )
    browser.open(page.as_uri(), width=400)
    assert browser.requests() == [page.as_uri(), "http://pdiff.invalid/picture.png"]
    assert any("missing is not defined" in each for each in browser.messages())
    assert browser.overflow() >= 500


def test_the_page_itself_forbids_requests_and_scripts(browser: Browser, report: Path) -> None:
    smuggled = "<img src='http://pdiff.invalid/picture.png'><script>document.title = 'ran'</script></body>"
    text = report.read_text(encoding="utf-8")
    report.write_text(text.replace("</body>", smuggled), encoding="utf-8")
    browser.open(report.as_uri())
    assert browser.evaluate("document.title") == "digits-mlp3"
    assert len([each for each in browser.messages() if "Content Security Policy" in each]) == 2
