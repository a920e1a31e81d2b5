"""The documentation: its pages link to what is there, here and in the site; the built site needs no other server."""

from __future__ import annotations

import os
import re
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import REQUIRED, Browser

import pdiff_hub

ROOT = Path(__file__).parents[1]
DOCS, SITE = ROOT / "docs", ROOT / "site"
HOOKS: dict[str, Any] = runpy.run_path(str(DOCS / "site_hooks.py"))
site_path: Callable[[str], str | None] = HOOKS["site_path"]
with_site_links: Callable[[str, str], str] = HOOKS["with_site_links"]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
SHOWN = ("index", "options", "gallery", "commands", "asking", "reference/pipelines", "notebooks/ask_and_fit")


def navigation() -> list[str]:
    """The pages that mkdocs.yml names."""

    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in pages(each)]

    return pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])


def test_every_page_and_notebook_is_in_the_navigation() -> None:
    notebooks = [str(site_path(file.relative_to(ROOT).as_posix())) for file in ROOT.glob(HOOKS["NOTEBOOKS"])]
    assert {*(str(site_path(page)) for page in PAGES), *notebooks} <= {*navigation()}
    elsewhere = {file.relative_to(ROOT).as_posix() for pattern in HOOKS["ELSEWHERE"] for file in ROOT.glob(pattern)}
    assert {*navigation()} - {site_path(page) for page in PAGES} - {*notebooks, "commands.md"} <= elsewhere


@pytest.mark.parametrize("page", [*PAGES, "SECURITY.md", "MODEL_CARD.md", "CONTRIBUTING.md", "pipelines/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    """On GitHub, where each file has its place; and in the site, which `with_site_links` changes them for."""
    text = (ROOT / page).read_text(encoding="utf-8")
    changed = with_site_links(text, page)  # ValueError for one that leads nowhere
    for target in re.findall(r"\]\(([^)\s]+)\)", changed):
        assert re.match(r"(https?:|#)", target) or "../../" not in target, (page, target)


def test_links_between_folders_of_the_site() -> None:
    def link(text: str, page: str) -> str:
        return with_site_links(text, page)

    assert link("[a](../SECURITY.md#code)", "docs/hub.md") == "[a](SECURITY.md#code)"
    assert link("![a](../pipelines/digits-mlp3/copies.png)", "docs/hub.md") == "![a](pipelines/digits-mlp3/copies.png)"
    assert link("[a](docs/asking.md)", "MODEL_CARD.md") == "[a](asking.md)"
    assert link("[a](../docs/asking.md)", "pipelines/README.md") == "[a](../asking.md)"
    assert link("[a](../../docs/hub.md)", "examples/notebooks/share.ipynb") == "[a](../hub.md)"
    assert link("[the tests](../tests)", "docs/hub.md") == "the tests"
    for kept in ("`[a](nowhere.md)`", "[a](https://example.org)", "[a](#here)", "```\n[a](nowhere.md)\n```"):
        assert link(kept, "docs/hub.md") == kept
    with pytest.raises(ValueError, match=r"docs/hub.md links to nowhere.md, and docs/nowhere.md is not there"):
        link("[a](nowhere.md)", "docs/hub.md")


def test_every_public_name_has_its_place_in_the_reference() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("reference/*.md"))
    shown = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert {f"pdiff_hub.{name}" for name in pdiff_hub.__all__} - {*shown} == {"pdiff_hub.__version__"}
    hub = __import__("pdiff_hub.hub", fromlist=["__all__"])
    assert {f"pdiff_hub.hub.{name}" for name in hub.__all__} - {*shown} == {"pdiff_hub.hub.kind_of"}


def test_the_gallery_shows_every_picture() -> None:
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    pictures = [*DOCS.glob("*.png"), *ROOT.glob("pipelines/*/*.png")]
    same = {"digits-subsets/requests.png"}  # as docs/digits-subsets.png
    missing = [each for each in pictures if each.name not in text and f"{each.parent.name}/{each.name}" not in same]
    assert len(pictures) > 10 and missing == []


def test_how_to_cite() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() and cited["cff-version"] == "1.2.0"
    assert str(cited["version"]) == pdiff_hub.__version__ and cited["license"] == "Apache-2.0"
    (paper,) = cited["references"]
    assert paper["doi"].endswith("2402.13144") and paper["authors"][0]["family-names"] == "Wang"


@pytest.fixture(scope="module")
def built(browser: Browser) -> Path:
    if not (SITE / "index.html").is_file():
        reason = "site/ is not there: run make docs first"
        if os.environ.get(REQUIRED):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return SITE


@pytest.mark.parametrize("page", SHOWN)
def test_pages_fit_and_ask_no_other_server(built: Path, browser: Browser, page: str) -> None:
    for width in (1280, 390):
        browser.open((built / f"{page}.html").as_uri(), width=width)
        assert browser.overflow() == 0 and browser.messages() == []
        assert [address for address in browser.requests() if not address.startswith("file:")] == []
        assert browser.evaluate("[...document.images].filter(each => each.complete && !each.naturalWidth).length") == 0


def test_search_works_in_pages_opened_as_files(built: Path, browser: Browser) -> None:
    browser.open((built / "index.html").as_uri(), width=1280)
    browser.driver.execute_script(
        "document.querySelector('#__search').click();"
        "const field = document.querySelector('.md-search__input'); field.focus(); field.value = 'label_smoothing';"
        "field.dispatchEvent(new Event('keyup')); field.dispatchEvent(new Event('input'));"
    )
    links = "[...document.querySelectorAll('.md-search-result__link')].map(each => each.href).join()"
    deadline = time.monotonic() + 20
    while "options.html" not in browser.evaluate(links) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "options.html" in browser.evaluate(links)
