"""Removes the pauses before retries, both the package's and the client's."""

from __future__ import annotations

import time
from types import SimpleNamespace

import huggingface_hub.file_download
import huggingface_hub.utils._http
import pytest

from pdiff_hub.transfer import client as transfer_client


def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(transfer_client, "BASE_DELAY", 0.0)
    monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
    monkeypatch.setattr(huggingface_hub.file_download, "time", clock)
