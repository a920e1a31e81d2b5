"""Every command, file and piece of Python that a page, a card, a docstring or a message quotes exists, options too.

Commands are parsed by the parsers of the programs themselves, and not run.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from huggingface_hub.cli import hf

from pdiff_hub.cli.start import app
from pdiff_hub.recipes import find_recipe, load_recipe, recipe_from_dict
from pdiff_hub.reproduce.reproduce import PARTS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "pipelines/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # it tells of what was
)
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("pdiff_hub/**/*.py", "examples/**/*.py", "pdiff_hub/**/*_template.md")
    for path in ROOT.glob(pattern)
)
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
# Programs that are not ours, whose lines are short enough to be read.
OTHERS = {
    "source",
    "cd",
    "export",
    "git",
    "ruff",
    "apt-get",
    "PYTHONPATH",
    "jupyter",
    "pytest",
    "pre-commit",
    "torchrun",
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_RUN = re.compile(r"^(?:make|pdiff|hf|pip|accelerate|torchrun|python|\.venv/bin/\w+)(?: |$)")
_QUOTED = re.compile(r"(?:Run|Example|Begin with): ((?:pdiff|python|hf) [^\"\n]+)")
# typer has a click of its own, which it does not show.
_CLICK = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")
WRONG = (AssertionError, ValueError, click.ClickException, _CLICK)
_PLACES = ("pdiff_hub/", "pipelines/", "examples/", "docs/", "tests/", "benchmarks/")


def _read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    return [block for language, block in _FENCE.findall(_read(page)) if language in languages]


def spans(page: str) -> list[str]:
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", _read(page)))]


def commands(page: str) -> Iterator[str]:
    """The command lines of a page: those of its blocks, and what stands between backticks and begins like one."""
    for block in blocks(page, "console", "bash", "sh", ""):
        yield from (
            line for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")
        )
    yield from (span for span in spans(page) if _RUN.match(span))


@cache
def _pdiff() -> Any:
    return typer.main.get_command(app)


def _parse(group: Any, words: list[str]) -> dict[str, Any]:
    """The parameters that a command line gives. Callbacks would open devices and folders, so they are left out.

    group: a click group, or the one that typer has of its own.
    """
    if not words or words[0].startswith("-"):
        assert all(any(word in each.opts for each in group.params) or word == "--help" for word in words), words
        return {}
    context = group.context_class(group, info_name="")
    name, command, rest = group.resolve_command(context, words)
    if hasattr(command, "resolve_command"):
        return _parse(command, rest)
    if not rest or "--help" in rest:  # its name alone is how texts speak of it
        return {}
    for parameter in command.params:
        parameter.callback = None
    return {"command": name, **command.make_context(name, rest, parent=context).params}


def _check_pdiff(words: list[str], page: str) -> None:
    found = _parse(_pdiff(), words)
    recipe = found.get("recipe")
    if found.get("command") == "reproduce":
        assert found["what"] in {*PARTS, "all"}
    if recipe is not None and recipe.isascii() and not recipe.isupper():
        try:
            find_recipe(recipe)
        except (ValueError, OSError):
            assert f"{recipe}/recipe.yaml" in _read(page) or recipe == "recipe.yaml", f"no recipe {recipe!r}"
        else:
            load_recipe(recipe, found.get("override") or [])
    for value in found.values():
        if isinstance(value, str | Path) and str(value).startswith("pipelines/"):
            assert (ROOT / value).exists(), f"{value} is not there"


def _check_script(words: list[str]) -> None:
    if words[:1] == ["-m"]:
        assert words[1] in {"venv", "pytest", "pip"} or importlib.util.find_spec(words[1]), words[1]
        return
    if words[:1] == ["-c"]:
        compile(words[1], "-c", "exec")
        return
    file = ROOT / words[0]
    if not any(words[0].startswith(place) for place in _PLACES):
        return  # a reader's own
    assert file.is_file(), f"{words[0]} is not there"
    for option in (word.partition("=")[0] for word in words[1:] if word.startswith("--") and word != "--help"):
        assert f'"{option}"' in file.read_text(encoding="utf-8"), f"{words[0]} has no {option}"


def _check_pip(words: list[str]) -> None:
    assert words[0] in {"install", "freeze", "config"}, words
    for word in words[1:]:
        assert not re.fullmatch(r"pdiff[-_]hub(\[.*\])?", word), "no index knows pdiff-hub yet; give a folder"
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(extras[1].split(",")) <= EXTRAS, f"{word}: there are {sorted(EXTRAS)}"


def _check_accelerate(words: list[str], page: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    if words == ["launch"]:
        return
    script = next((at for at, word in enumerate(words) if word == "-m" or word.endswith(".py")), None)
    if script is None:
        launch_command_parser().parse_args([*words[1:], "script"])
        return
    given = launch_command_parser().parse_args(words[1:script] + ["-m"] * (words[script] == "-m") + ["script"])
    rest = words[script:]
    if given.module:
        assert rest[:2] == ["-m", "pdiff_hub.cli"]
        _check_pdiff(rest[2:], page)
    else:
        _check_script(rest)


def check(line: str, page: str) -> None:
    """Raises an AssertionError or a click error unless the line could be given to a shell."""
    for part in line.split(" && "):
        words = [word for word in shlex.split(part, comments=True) if word not in ("...", "sudo", "$")]
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if not words:
            continue
        program, rest = words[0].removeprefix(".venv/bin/"), words[1:]
        program = "python" if re.fullmatch(r"python3?(\.\d+)?", program) else program
        if not rest and program in {"pdiff", "hf", "make", "python", "pip", "accelerate"}:
            continue
        if program == "pdiff":
            _check_pdiff(rest, page)
        elif program == "hf":
            _parse(hf.app, rest)
        elif program == "make":
            assert {word for word in rest if "=" not in word} <= TARGETS, f"make has {sorted(TARGETS)}"
        elif program == "python":
            _check_script(rest)
        elif program == "pip":
            _check_pip(rest)
        elif program == "accelerate":
            _check_accelerate(rest, page)
        else:
            assert program in OTHERS, f"nothing here knows the program {program!r}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_their_options(page: str) -> None:
    for line in commands(page):
        try:
            check(line, page)
        except WRONG as error:
            pytest.fail(f"{page} quotes `{line}`: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("page", PAGES)
def test_files_and_links_are_there(page: str) -> None:
    here = (ROOT / page).parent
    for target in _LINK.findall(_FENCE.sub("", _read(page))):
        path = target.partition("#")[0]
        assert not path or re.match(r"[a-z]+:", path) or (here / path).exists(), f"{page} links to {target}"
    for span in spans(page):
        if re.fullmatch(r"[\w./-]+", span) and span.startswith(_PLACES):
            assert (ROOT / span).exists(), f"{page} names {span}"


@pytest.mark.parametrize("page", PAGES)
def test_python_and_recipes_are_sound(page: str) -> None:
    for block in blocks(page, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pdiff_hub"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    for block in blocks(page, "yaml"):
        recipe = yaml.safe_load(block)
        if isinstance(recipe, dict) and {"task", "network"} <= recipe.keys():
            recipe_from_dict(recipe)


def test_docstrings_and_messages_quote_commands_that_exist() -> None:
    """What follows "Example:" and "Run:", and every `pip install`, in the package and the examples."""
    quoted = 0
    for file in SOURCES:
        text = _read(file)
        for line in _QUOTED.findall(text) if file.endswith(".py") else []:
            check(re.sub(r"\[[A-Z_]+( \.\.\.)?\]|\[--.*\]", "", line.rstrip("`.")), file)
            quoted += 1
        for words in re.findall(r"pip install ([^`\"\n)]+)", text):
            try:
                sentence = re.sub(r"(?<=[\w'\]])\.$", "", words.partition(" in ")[0])  # its full stop
                _check_pip(["install", *shlex.split(sentence)])
            except AssertionError as error:
                pytest.fail(f"{file}: {error}")
            quoted += 1
    assert quoted >= 15


def test_a_command_that_is_gone_is_noticed() -> None:
    for line in (
        "hf repo create user/name",
        "pdiff generate pipelines/digits-mlp3 --no-such-option 3",
        "pdiff audit --seed 1",
        "pdiff run digits-mlp3 --override collect.no_such=1",
        "pdiff reproduce table9",
        "make no-such-target",
        "pip install pdiff-hub",
        "pip install '.[no-such-extra]'",
        "python examples/no_such.py",
        "python examples/space/app.py --no-such",
        "no-such-program",
    ):
        with pytest.raises(WRONG):
            check(line, "README.md")
