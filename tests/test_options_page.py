"""Every option of a recipe is said with its default, its range and its meaning, and the ranges are those that hold."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pdiff_hub.cli import app
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import NETWORK_NAMES, resolve_network
from pdiff_hub.networks.options import SMALL, PatchOptions, ResnetOptions, defaults
from pdiff_hub.recipes import Recipe, recipe_from_dict
from pdiff_hub.recipes.options import Option, find_groups, option_groups
from pdiff_hub.recipes.recipe import METHODS, SECTIONS
from pdiff_hub.records.yaml_files import parse_yaml
from pdiff_hub.tasks import TaskOptions

DOCS = Path(__file__).parents[1] / "docs"
GROUPS = {group.key: {each.name: each for each in group.options} for group in option_groups()}
DATACLASSES: dict[str, type[Any]] = {
    "task": TaskOptions,
    **SECTIONS,
    **{f"collect.{method}": kind for method, kind in METHODS.items()},
    **{f"network.{name}": kind for name, kind in SMALL.items()},
    "network.resnet": ResnetOptions,
    "network.vit": PatchOptions,
}
NUMBERS = [
    (key, option)
    for key, group in GROUPS.items()
    if key in SECTIONS or key.startswith("collect.")
    for option in group.values()
    if option.range.startswith(("whole number", "number", "list of whole numbers")) and key != "collect.rotation"
]


def test_every_field_of_every_dataclass_is_there_with_all_that_people_ask() -> None:
    for key, kind in DATACLASSES.items():
        names = {each.name for each in fields(kind)}
        assert names <= GROUPS[key].keys() and GROUPS[key].keys() - names <= {"preset"}, key
    keys = {each.name for each in fields(Recipe)} - {*SECTIONS, "collect", "file", "method"}
    assert GROUPS["recipe"].keys() == {*keys, "collect.method"}
    for group in option_groups():
        assert group.about and group.options
        for each in group.options:
            assert each.default and each.range and len(each.meaning) > 3, (group.key, each)


def test_the_page_is_what_the_code_says() -> None:
    page = runpy.run_path(str(DOCS / "options_page.py"))["page"]()
    assert (DOCS / "options.md").read_text(encoding="utf-8") == page, "run python docs/options_page.py"
    assert all(f"`{option.name}`" in page for group in GROUPS.values() for option in group.values())


def made(key: str, option: str, value: object) -> Recipe:
    section, _, method = key.partition(".")
    options = {option: value} | ({"method": method} if method else {}) | ({"source": "x"} if method == "import" else {})
    if (key, option) == ("autoencoder", "steps"):  # 0 steps are for the closed form only
        options["form"] = "linear"
    return recipe_from_dict({"task": "digits", "network": "mlp3", section: options})


@pytest.mark.parametrize(("key", "option"), NUMBERS, ids=lambda each: each if isinstance(each, str) else each.name)
def test_the_ranges_of_numbers_hold(key: str, option: Option) -> None:
    """What each range says is the last good value is taken, and what lies beyond is refused."""
    whole, several = "whole" in option.range, option.range.startswith("list")
    bounds = re.findall(r"(at least|above|at most|below) ([\d.]+)", option.range)
    assert bounds or "multiple of 8" in option.range, option
    step = 1 if whole else 1e-6

    def value(number: float) -> Any:
        exact = int(number) if whole else number
        return [exact] * (4 if "widths" in option.name else 1) if several else exact

    for word, text in bounds:
        number, up = float(text), word in ("at least", "above")
        inside, outside = (number + step, number - step) if up else (number - step, number + step)
        if word in ("at least", "at most"):
            inside = number
        else:
            outside = number
        made(key, option.name, value(inside))
        with pytest.raises(PdiffError, match=option.name):
            made(key, option.name, value(outside))
    if "multiple of 8" in option.range:
        made(key, option.name, [8, 16])
        for wrong in ([0], [12], [-8]):
            with pytest.raises(PdiffError, match=option.name):
                made(key, option.name, wrong)


@pytest.mark.parametrize("key", [*SECTIONS, *(f"collect.{method}" for method in METHODS)])
def test_the_choices_of_texts_hold(key: str) -> None:
    for option in GROUPS[key].values():
        choices = re.findall(r'"([^" ]+)"', option.range)
        for choice in choices:
            extra = {"steps": 1} if choice == "conv" else {}
            section, _, method = key.partition(".")
            given = {option.name: choice, **extra, **({"method": method} if method else {})}
            recipe_from_dict({"task": "digits", "network": "mlp3", section: given})
        if choices and "function" not in option.range:
            with pytest.raises(PdiffError, match=option.name):
                made(key, option.name, "no-such-choice")


def test_defaults_are_those_of_the_code() -> None:
    recipe = recipe_from_dict({"task": "digits", "network": "mlp3"})
    assert GROUPS["diffusion"]["steps"].default == str(recipe.diffusion.steps)
    assert GROUPS["collect.finetune"]["learning_rate"].default == "0.003"
    assert GROUPS["autoencoder"]["num_components"].default == "null" and GROUPS["task"]["dataset"].default == "required"
    for name, kind in SMALL.items():
        spec = resolve_network(name, in_channels=1, image_size=8, num_classes=10)
        assert {option: spec[option] for option in defaults(kind)} == defaults(kind)
    named = " ".join(group.place for group in option_groups())
    assert [name for name in NETWORK_NAMES if name not in named] == []


def test_a_default_of_the_page_can_be_written_into_a_recipe() -> None:
    # YAML takes a plain `no` for false, which is no text.
    assert GROUPS["collect.finetune"]["mixed_precision"].default == '"no"'
    for key, kind in DATACLASSES.items():
        for each in fields(kind):
            if each.name in GROUPS.get(key, {}) and isinstance(each.default, str):
                assert parse_yaml(GROUPS[key][each.name].default, each.name) == each.default


def test_the_command_says_the_same() -> None:
    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["options", *arguments])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    assert "collect.import: source, buffers" in said()
    steps = said("diffusion.steps")
    assert "steps = 1500 whole number, at least 1 an upper bound" in steps and "warmup" not in steps
    assert "num_checkpoints = 200" in said("collect") and "held_out_tasks = 100" in said("collect")
    assert "seed = 0" in said("seed") and "seed = null" in said("task.seed")


@pytest.mark.parametrize(("name", "nearest"), [("difusion", "diffusion"), ("diffusion.step", "diffusion.steps")])
def test_an_unknown_name_gets_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(PdiffError, match=f"nearest known one is '{re.escape(nearest)}'"):
        find_groups(name)
