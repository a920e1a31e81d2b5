"""The command shows errors meant for users in one line, and all other errors with their trace, since they are bugs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdiff_hub.cli import start
from pdiff_hub.errors import MissingPackageError, PdiffError, require, require_known
from pdiff_hub.safe_files import keep_settings
from pdiff_hub.travelling.conditioner import ConditionError
from pdiff_hub.travelling.param_autoencoder import ParamError
from pdiff_hub.travelling.pipeline_pdiff import SamplingError


@pytest.mark.parametrize(
    "error", [PdiffError, MissingPackageError, ParamError, SamplingError, ConditionError, FileNotFoundError, OSError]
)
def test_sentences_for_people_are_one_line(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        raise error("the sentence")

    monkeypatch.setattr(start, "app", app)
    with pytest.raises(SystemExit) as stopped:
        start.main()
    assert stopped.value.code == 1 and capsys.readouterr().err == "pdiff: the sentence\n"


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError, RuntimeError, ImportError])
def test_what_a_library_raises_shows_its_trace(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        raise error("an accident")

    monkeypatch.setattr(start, "app", app)
    with pytest.raises(error, match="an accident"):
        start.main()


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_damaged_settings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text, encoding="latin-1")
    with pytest.raises(PdiffError, match=r"settings\.json (is not JSON|holds list)"):
        keep_settings(tmp_path / "settings.json", {})


def test_a_name_and_an_option_are_named() -> None:
    with pytest.raises(PdiffError, match=r"unknown network: 'mpl3'; the nearest known one is 'mlp3' \(known: mlp3"):
        require_known("network", ["mpl3"], ["mlp3", "convnet3"])
    with pytest.raises(PdiffError, match=r"^seed is -1, expected 0 or more\.$"):
        require(False, "seed", -1, "0 or more")
    with pytest.raises(ImportError):
        raise MissingPackageError("pip install")
