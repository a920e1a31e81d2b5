"""`app.py --pipeline`: folders, names and Hub ids open as they are given; what is none is one sentence."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from drawn_digits import SPACE
from test_trust import MODULE, SMALL
from typer.testing import CliRunner

from pdiff_hub.cli import app as command
from pdiff_hub.networks import factory

import app  # isort: skip
import opening  # isort: skip

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "pipelines" / "digits-mlp3"


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
    app.main()


@pytest.mark.slow  # test_space.py serves a folder too, where there is a browser
def test_a_folder_is_served(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "mine", ignore=shutil.ignore_patterns("checkpoints", "*.png"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = ["--pipeline", "mine", "digits-mlp3", "--host", "127.0.0.1", "--port", port]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "no_proxy": "127.0.0.1"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(SPACE / "app.py"), *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until, page = time.monotonic() + 120, b""
        while not page:
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            try:
                with opener.open(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                    page = answer.read()
            except OSError:
                time.sleep(0.2)
        assert b"Networks out of noise" in page
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_what_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("digits-mlp3", "pipelines/digits-mlp3", str(SHIPPED)):
        assert opening.find_pipeline(text) == (str(SHIPPED), "digits-mlp3")
    (tmp_path / "digits-mlp3").symlink_to(ROOT / "pipelines" / "digits-subsets")  # what lies here comes first
    assert opening.find_pipeline("digits-mlp3") == (str(ROOT / "pipelines" / "digits-subsets"), "digits-subsets")


def test_what_is_no_pipeline_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, "build", lambda *_: pytest.fail("served"))
    (tmp_path / "empty").mkdir()
    damaged = shutil.copytree(SHIPPED, tmp_path / "damaged", ignore=shutil.ignore_patterns("checkpoints", "*.png"))
    (damaged / "unet" / "config.json").write_text("{")
    for text, message in (
        ("empty", r"^app\.py: empty is no pipeline: it has no model_index\.json; give a folder that .*\.$"),
        (str(SHIPPED / "checkpoints"), r"is no pipeline: it is a data set of checkpoints; give the folder of .*\.$"),
        ("fashion-mnist-vit-tiny", r"is no pipeline: it has a recipe and no weights; `pdiff run .*` makes .*\.$"),
        ("none/of/these", r"^app\.py: no pipeline folder 'none/of/these'; expected a folder .* or a Hub id"),
        (str(damaged / "README.md"), r"README\.md is no pipeline: it has no model_index\.json"),
        ("damaged", r"config\.json is not JSON"),
    ):
        with pytest.raises(SystemExit, match=message):
            start(monkeypatch, "--pipeline", text)


def test_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(factory, "_searched", [])
    (tmp_path / "space_networks.py").write_text(MODULE.format(mark=str(tmp_path / "imported")))
    recipe = {"task": "digits", "network": {"name": "space_networks:make"}, **SMALL}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = CliRunner().invoke(command, ["run", ".", "--output-dir", "run", "--trust-remote-code"])
    assert done.exit_code == 0, done.exception
    folder, name = opening.find_pipeline("run")
    opened = opening.open_pipeline(Path(folder), name)
    assert opened.trusted and opened.judge.network is not None
    shutil.copytree("run", "theirs")  # the same from elsewhere
    with pytest.raises(SystemExit, match=r"^app\.py: the network 'space_networks:make' .* give --trust-remote-code"):
        start(monkeypatch, "--pipeline", "theirs")
    monkeypatch.setattr(app, "build", lambda *_: SimpleNamespace(launch=lambda **_: None))
    start(monkeypatch, "--pipeline", "theirs", "--trust-remote-code")
    assert opening.open_pipeline(tmp_path / "theirs", "theirs").trusted


def test_the_commands_of_the_page_are_there() -> None:
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    lines = [
        line.partition("  #")[0]
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    commands = [shlex.split(line) for line in lines if line]
    assert {words[0] for words in commands} == {"pip", "python", "hf"}
    helps: dict[tuple[str, ...], str] = {}
    for words in commands:
        if words[0] == "python":
            assert (ROOT / words[1]).is_file() and {each for each in words if each.startswith("--")} <= {
                "--pipeline",
                "--port",
            }
        if words[0] != "hf":
            continue
        subcommand = tuple(words[1:3]) if words[1] == "repos" else (words[1],)
        if subcommand not in helps:
            hf = Path(sys.executable).with_name("hf")
            done = subprocess.run([hf, *subcommand, "--help"], capture_output=True, text=True, check=True)
            helps[subcommand] = done.stdout
        assert all(each in helps[subcommand] for each in words if each.startswith("--"))
        for path in (words[3],) if words[1] == "upload" else ():
            assert (ROOT / path).is_dir()
