"""What the user's own run made needs no second word of trust, and nothing from elsewhere can claim to be such."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import LoopbackHub
from test_trust import MODULE, SMALL
from typer.testing import CliRunner

from pdiff_hub import CheckpointDataset, PDiffPipeline
from pdiff_hub.cli import app
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub import pull, write_card
from pdiff_hub.networks import factory
from pdiff_hub.networks.sources import source_of
from pdiff_hub.pipeline.card import code_text
from pdiff_hub.recipes import is_trusted_to_judge, recipe_from_dict
from pdiff_hub.records import RunFolder
from pdiff_hub.records import made_here as notes
from pdiff_hub.runs.own_code import keep_sources

REFUSED = "which is not allowed here because the spec came from"
MODULES = ("own_modules", "own_package")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module, a recipe that names its function, and what `pdiff run` has made of it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_modules.py").write_text(MODULE.format(mark=str(folder / "imported")))
    recipe = {"task": "digits", "network": {"name": "own_modules:make", "width": 5}, **SMALL}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(factory, "_searched", [])
        done = CliRunner().invoke(app, ["run", ".", "--output-dir", "run", "--trust-remote-code"])
        assert done.exit_code == 0, done.exception
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run's folder, in a process that has imported nothing yet and stands somewhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(factory, "_searched", [])
    kept = tmp_path / "kept"
    shutil.copytree(made, kept)
    for name in MODULES:
        sys.modules.pop(name, None)
    yield made / "run"
    for name in MODULES:
        sys.modules.pop(name, None)
    for file in kept.rglob("*"):  # tests change files, and the folders must stay the same ones
        if file.is_file():
            target = made / file.relative_to(kept)
            if not target.is_file() or target.read_bytes() != file.read_bytes():
                target.unlink(missing_ok=True)
                shutil.copyfile(file, target)


def build(folder: Path) -> torch.nn.Module:
    return PDiffPipeline.from_pretrained(folder).build_network()


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    content["network"].update(changes)
    file.write_text(json.dumps(content))


def test_the_user_needs_no_flag_again(run: Path) -> None:
    path = [*sys.path]
    assert isinstance(build(run), torch.nn.Sequential)
    pipe = PDiffPipeline.from_pretrained(run)
    out = pipe(num_models=1, generator=torch.Generator().manual_seed(0))
    assert pipe.build_network(out.state_dicts[0])(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert isinstance(build(Path(os.path.relpath(run))), torch.nn.Sequential)
    commands = (
        ["audit", str(run), "--num-models", "2", "--metric", "accuracy"],
        ["evaluate", str(run), "--dataset", str(run / "checkpoints"), "--num-models", "2", "--baselines", "0"],
        ["ensemble", str(run), "--num-models", "2", "--candidates", "3"],
        ["fit", str(run), "--task", "{dataset: digits}", "--num-labels", "20", "--num-models", "1"],
    )
    for arguments in commands:
        done = CliRunner().invoke(app, [*arguments, "--output-dir", arguments[0]])
        assert done.exit_code == 0, (arguments, done.exception)
    assert sys.path == path


def test_what_is_made_of_it_needs_none_either(run: Path, made: Path, tmp_path: Path) -> None:
    arguments = ["train", str(made), "--dataset", str(run / "checkpoints"), "--output-dir", "trained"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    assert isinstance(build(tmp_path / "trained"), torch.nn.Sequential)


def test_a_copy_a_renamed_folder_and_one_that_is_moved_into_place_are_not_trusted(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")  # with the note
    assert RunFolder(tmp_path / "copy").made_here.is_file()
    with pytest.raises(PdiffError, match=REFUSED):
        build(tmp_path / "copy")
    aside = run.with_name("aside")
    run.rename(aside)
    try:
        with pytest.raises(PdiffError, match=REFUSED):
            build(aside)
        (tmp_path / "copy").rename(run)  # the same place, the same note, the same function, another folder
        with pytest.raises(PdiffError, match=REFUSED):
            build(run)
    finally:
        shutil.rmtree(run, ignore_errors=True)
        aside.rename(run)
    assert isinstance(build(run), torch.nn.Sequential)  # it is itself again


def test_links(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)  # another name of the own folder
    assert isinstance(build(tmp_path / "link"), torch.nn.Sequential)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    RunFolder(other).made_here.unlink()
    RunFolder(other).made_here.symlink_to(RunFolder(run).made_here)
    with pytest.raises(PdiffError, match=REFUSED):
        build(other)
    aside = run.with_name("aside")
    run.rename(aside)
    try:
        run.symlink_to(other)  # a link in the place of the own folder
        with pytest.raises(PdiffError, match=REFUSED):
            build(run)
    finally:
        run.unlink()
        aside.rename(run)


@pytest.mark.parametrize("changes", [{"name": "os:system"}, {"name": "own_modules:other"}, {"width": 6}, {"more": 1}])
def test_another_function_or_option_is_not_trusted(run: Path, changes: dict[str, Any]) -> None:
    edit(run / "autoencoder" / "config.json", **changes)
    with pytest.raises(PdiffError, match=REFUSED):
        build(run)
    arguments = ["--num-models", "2", "--output-dir", "report"]
    for audited in (["audit", str(run)], ["evaluate", str(run), "--dataset", str(run / "checkpoints")]):
        failed = CliRunner().invoke(app, [*audited, *arguments])
        assert REFUSED in str(failed.exception)
    assert not (run.parent / "called").exists()


def test_an_edited_data_set_is_not_trusted(run: Path) -> None:
    edit(run / "checkpoints" / "dataset.json", name="os:system")
    failed = CliRunner().invoke(app, ["audit", str(run), "--num-models", "2", "--output-dir", "report"])
    assert REFUSED in str(failed.exception) and "os:system" in str(failed.exception)
    index = run / "checkpoints" / "dataset.json"
    content = json.loads(index.read_text())
    content["network"]["name"] = "own_modules:make"
    collect = {"family": "os:system", "options": {}}
    content["collect"] = {"method": "family", "settings": {"collect": collect}}
    index.write_text(json.dumps(content))
    dataset = CheckpointDataset.from_pretrained(run / "checkpoints")
    failed = CliRunner().invoke(app, ["audit", str(run), "--output-dir", "report"])
    assert dataset.folder == (run / "checkpoints").resolve() and failed.exit_code
    assert not is_trusted_to_judge(dataset, dataset.network, run, False)


def test_another_user_and_a_forged_note(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = json.loads(RunFolder(run).made_here.read_text())
    for forged in (
        {**note, "signature": "0" * 64},
        {**note, "calls": {}},
        {"calls": 1},
        [],
        {**note, "signature": "é"},
    ):
        RunFolder(run).made_here.write_text(json.dumps(forged))
        with pytest.raises(PdiffError, match=REFUSED):
            build(run)
    note["calls"]["network"]["call"]["name"] = "os:system"  # the signature is of another call
    RunFolder(run).made_here.write_text(json.dumps(note))
    edit(run / "autoencoder" / "config.json", name="os:system")
    with pytest.raises(PdiffError, match=REFUSED):
        build(run)
    note["calls"]["network"]["call"]["name"] = "own_modules:make"
    RunFolder(run).made_here.write_text(json.dumps(note))
    edit(run / "autoencoder" / "config.json", name="own_modules:make")
    build(run)
    monkeypatch.setenv(notes.STATE_VARIABLE, str(tmp_path / "another"))
    with pytest.raises(PdiffError, match=REFUSED):
        build(run)


def test_a_pull_over_it_and_a_save_over_it_end_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "theirs")
    shutil.rmtree(tmp_path / "theirs" / "training")
    monkeypatch.setattr("pdiff_hub.hub.folders.kind_of", lambda *_, **__: "pipeline")
    monkeypatch.setattr("pdiff_hub.hub.folders.download", lambda *_, **__: tmp_path / "theirs")
    with pytest.raises(FileExistsError, match="holds something else"):
        pull("user/name", run)
    aside = run.with_name("aside")
    run.rename(aside)
    try:
        run.mkdir()
        pull("user/name", run)  # as if it had served the note, too
        with pytest.raises(PdiffError, match=REFUSED):
            build(run)
    finally:
        shutil.rmtree(run)
        aside.rename(run)
    theirs = PDiffPipeline.from_pretrained(tmp_path / "theirs")
    theirs.save_pretrained(run)
    with pytest.raises(PdiffError, match=REFUSED):
        build(run)


def test_code_that_has_changed_is_not_called(run: Path, made: Path, tmp_path: Path) -> None:
    module = made / "own_modules.py"
    text = module.read_text()
    module.write_text(text + "\nopen('called', 'w').close()\n")
    with pytest.raises(PdiffError, match=r"was made here by calling .*own_modules\.py has changed since: look at it"):
        build(run)
    module.unlink()
    with pytest.raises(PdiffError, match=r"own_modules\.py is gone: look at it, then give --trust-remote-code"):
        build(run)
    module.write_text(text)
    # Another module of that name, which Python finds first.
    (tmp_path / "own_modules.py").write_text("open('called', 'w').close()\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(PdiffError, match=r"own_modules\.py is not what Python finds by this name now: look at"):
            build(run)
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "called").exists()
    assert isinstance(build(run), torch.nn.Sequential)


def test_the_source_goes_with_the_pipeline_as_a_text(
    run: Path, made: Path, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made / "own_modules.py"
    copy = run / "network_source" / "own_modules.py"
    assert copy.read_bytes() == source.read_bytes() and RunFolder(run).sources() == [copy]
    pushed = CliRunner().invoke(app, ["push", str(run), "user/own"])
    assert pushed.exit_code == 0 and f"{copy} goes with it" in pushed.output.replace("\n", "")
    files = hub.files("user/own")
    assert files["network_source/own_modules.py"] == source.read_bytes()
    assert not [path for path in files if "made-here" in path or path.startswith("training/")]
    card = " ".join(files["README.md"].decode().split())
    assert "network = pipe.build_network(out.state_dicts[0], trust_remote_code=True) ```" in card
    assert "`build_network` calls `own_modules:make`. Its source is [`network_source/own_modules.py`]" in card
    assert "`hf download user/own network_source/own_modules.py --local-dir .` fetches it" in card
    assert "PYTHONPATH=network_source" in card and "pdiff run recipe.yaml --output-dir own --trust-remote-code" in card
    # Whoever opens it gets no code, and none is run.
    theirs = PDiffPipeline.from_pretrained("user/own")
    assert theirs.folder is not None and not [*theirs.folder.rglob("*.py")]
    for folder in (theirs.folder, tmp_path / "pulled"):
        if folder != theirs.folder:
            pull("user/own", folder)
        with pytest.raises(PdiffError, match=REFUSED):
            build(folder)
    # What the card says works.
    (tmp_path / "network_source").mkdir()
    (tmp_path / "network_source" / "own_modules.py").write_bytes(files["network_source/own_modules.py"])
    monkeypatch.syspath_prepend(tmp_path / "network_source")
    assert isinstance(theirs.build_network(trust_remote_code=True), torch.nn.Sequential)
    # Without the file, the card says whom to ask.
    copy.unlink()
    write_card(run)
    assert "ask the author of this pipeline for the file of the Python module `own_modules`" in " ".join(
        RunFolder(run).card.read_text().split()
    )


def test_saved_with_its_source_and_through_no_link(run: Path, tmp_path: Path) -> None:
    pipe = PDiffPipeline.from_pretrained(run)
    pipe.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "network_source" / "own_modules.py").is_file()
    assert not RunFolder(tmp_path / "saved").made_here.exists()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "network_source").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PdiffError, match="is a link to"):
        pipe.save_pretrained(tmp_path / "linked")
    assert not [*(tmp_path / "elsewhere").iterdir()]
    source = run / "network_source" / "own_modules.py"
    source.unlink()
    (tmp_path / "secret.py").write_text("token = 1")
    source.symlink_to(tmp_path / "secret.py")
    with pytest.raises(PdiffError, match="is a link to"):
        pipe.save_pretrained(tmp_path / "again")


def test_which_sources_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()

    def kept(name: str) -> list[str]:
        keep_sources(folder.path, recipe_from_dict({"task": "digits", "network": name}))
        return [file.relative_to(folder.path).as_posix() for file in folder.sources()]

    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "networks.py").write_text("x = 1")
    assert kept("own_package.networks:make") == ["network_source/own_package/networks.py"]
    (tmp_path / "own_modules.py").write_text("#" * (1 << 20))
    assert kept("own_modules:make") == ["network_source/own_modules.py"]  # in place of the earlier one
    (tmp_path / "own_modules.py").write_text("#" * ((1 << 20) + 1))
    for name in (
        "own_modules:make",
        "torch.nn:Linear",
        "json.decoder:JSONDecoder",
        "posix:system",
        "none:make",
        "mlp3",
    ):
        assert kept(name) == []
    assert code_text("torch.nn:Linear", [], None) == (
        "It is a function of the package `torch`, which has to be installed."
    )


@pytest.mark.skipif(os.name != "posix", reason="these are permissions of POSIX")
def test_only_a_secret_that_nobody_else_can_read_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv(notes.STATE_VARIABLE, str(state))
    call = {"name": "own_modules:make", "width": 5}
    monkeypatch.syspath_prepend(run.parent)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert not notes.made_here(folder, "network", call) and not state.exists()  # only a run makes it
    notes.remember(folder, {"network": call})
    assert notes.made_here(folder, "network", call) and not notes.made_here(folder, "family", call)
    assert (state.stat().st_mode & 0o777, (state / "secret").stat().st_mode & 0o777) == (0o700, 0o600)
    assert sorted(file.name for file in state.iterdir()) == ["secret"]
    before = (state / "secret").read_bytes()
    notes.remember(folder, {"network": call})
    assert (state / "secret").read_bytes() == before and len(before) == 32
    (state / "secret").chmod(0o640)
    assert not notes.made_here(folder, "network", call)
    (state / "secret").chmod(0o600)
    (state / "secret").rename(state / "moved")
    (state / "secret").symlink_to(state / "moved")
    assert not notes.made_here(folder, "network", call)
    # Where nothing can be written, nothing is remembered, and nothing fails.
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file" / "state"), "state"):  # a relative one would be of any folder one is in
        monkeypatch.setenv(notes.STATE_VARIABLE, place)
        notes.remember(folder, {"network": call})
        assert not RunFolder(folder).made_here.exists() and not notes.made_here(folder, "network", call)


def test_where_the_secret_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notes.STATE_VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert notes._state_folder() == tmp_path / "state" / "pdiff_hub"
    monkeypatch.setenv("XDG_STATE_HOME", "state")  # the standard says that a relative one is ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    assert notes._state_folder() == tmp_path / ".local" / "state" / "pdiff_hub"
    monkeypatch.setenv("HOME", "home")
    assert notes._state_folder() is None


def test_sources_are_found_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_package"
    (package / "inner").mkdir(parents=True)
    for file in ("__init__.py", "inner/networks.py"):  # inner is a namespace package
        (package / file).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    found = source_of("own_package.inner.networks:make", str(tmp_path))
    assert found is not None and found.folder == str(tmp_path)
    assert [Path(file).relative_to(tmp_path).as_posix() for file in found.files] == [
        "own_package/__init__.py",
        "own_package/inner/networks.py",
    ]
    assert found.file == package / "inner" / "networks.py" and not (tmp_path / "ran").exists()
    assert source_of("own_package.inner.networks:make") is None
    for name in ("own_package.inner:make", "own_package.none:make", "__main__:make", "posix:system", "a b:c", "x"):
        assert source_of(name, str(tmp_path)) is None
    known = source_of("json.decoder.JSONDecoder")
    assert known is not None and known.file.name == "decoder.py"
