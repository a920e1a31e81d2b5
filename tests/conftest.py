"""Settings that every test runs under; made here, before anything imports torch or a Hugging Face library."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browser import Browser

# Read by torch when it is imported, here and in subprocesses. Two torch processes that each take every core slow each
# other tenfold, so a test run takes two threads unless it is told otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MKL_NUM_THREADS", "2")

# A test reaches no server but its own loopback one, and neither reads nor fills the user's caches or tokens.
_HF_HOME = tempfile.mkdtemp(prefix="pdiff-hub-tests-")
os.environ.pop("HF_TOKEN", None)
os.environ.update(
    HF_HOME=_HF_HOME,
    HF_HUB_CACHE=os.path.join(_HF_HOME, "hub"),
    HF_DATASETS_CACHE=os.path.join(_HF_HOME, "datasets"),
    HF_MODULES_CACHE=os.path.join(_HF_HOME, "modules"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_XET="1",  # the client's default transfer; it has no fallback that a loopback Hub could serve
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests that look at a page."""
    from browser import open_browser  # selenium: only for those who ask

    with open_browser() as opened:
        yield opened


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_HF_HOME, ignore_errors=True)
