"""Settings for all tests. They are set here, before anything imports torch or a Hugging Face library."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from browser import Browser
    from loopback_hub import LoopbackHub

# torch reads these when it is imported, here and in subprocesses. Two torch processes that each use all cores slow each
# other down tenfold, so a test run uses two threads unless the environment says otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MKL_NUM_THREADS", "2")

# Tests reach no server except their own loopback Hub, and neither read nor change the user's caches and tokens.
_HF_HOME = tempfile.mkdtemp(prefix="pdiff-hub-tests-")
os.environ.pop("HF_TOKEN", None)
os.environ.update(
    HF_HOME=_HF_HOME,
    HF_HUB_CACHE=os.path.join(_HF_HOME, "hub"),
    HF_DATASETS_CACHE=os.path.join(_HF_HOME, "datasets"),
    HF_MODULES_CACHE=os.path.join(_HF_HOME, "modules"),
    PDIFF_HUB_STATE=os.path.join(_HF_HOME, "state"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_XET="1",  # Xet is the client's default transfer, and the loopback Hub cannot serve it
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)

# Half of hypothesis' own number, so that the suite stays below 6 minutes; `--hypothesis-profile default` takes all.
settings.register_profile("suite", max_examples=50)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests that look at a page."""
    from browser import open_browser  # it imports selenium, so only tests that ask for a browser load it

    with open_browser() as opened:
        yield opened


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A Hub on this machine that clients in this process use, with an empty cache and a token that may write."""
    from huggingface_hub import HfFileSystem
    from loopback_hub import LoopbackHub, point_clients

    home = tmp_path_factory.mktemp("hf-home")
    with LoopbackHub() as server:
        point_clients(server.endpoint, server.token, home, monkeypatch)
        HfFileSystem.clear_instance_cache()  # its instances were made for the server of another test
        yield server
        HfFileSystem.clear_instance_cache()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_HF_HOME, ignore_errors=True)
