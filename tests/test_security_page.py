"""Each promise of SECURITY.md names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")


def test_the_tests_that_the_page_names_are_there() -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in TESTS.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(named) > 30 and not [name for name in named if f"def {name}(" not in source]
    files = re.findall(r"`tests/(\w+\.py)`", PAGE)
    assert files and not [file for file in files if not (TESTS / file).is_file()]
