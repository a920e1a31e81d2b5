"""What files and the command line say is read as the option's type; whatever else stands there is one sentence."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pdiff_hub.errors import PdiffError
from pdiff_hub.recipes import load_recipe, recipe_from_dict
from pdiff_hub.recipes.recipe import METHODS, SECTIONS
from pdiff_hub.recipes.values import _EXPECTED, _is_list, _is_mapping, kinds_of
from pdiff_hub.records.yaml_files import read_yaml

BASE = "task: digits\nnetwork: mlp3\n"
IMPORT = BASE + "collect: {method: import, source: files}\n"


def recipe(folder: Path, text: str = BASE, *overrides: str) -> Any:
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder, overrides)


def test_every_declared_type_can_be_checked() -> None:
    for kind in (*SECTIONS.values(), *METHODS.values()):
        for name, declared in get_type_hints(kind).items():
            for each in kinds_of(declared):
                known = each in (*_EXPECTED, type(None)) or _is_list(each) or _is_mapping(each)
                assert known, f"{kind.__name__}.{name}"


@pytest.mark.parametrize(
    "text", ["*.pt", "[ab]*.pt", "1e-3", "1_000", "on", "a: b", "[1,2", "&x", "!!bool x", "#1", "2024-01-01"]
)
def test_a_text_is_taken_as_it_is(text: str, tmp_path: Path) -> None:
    assert recipe(tmp_path, IMPORT, f"collect.pattern={text}").collect.pattern == text
    assert recipe(tmp_path, IMPORT, f"task.dataset={text}").task == {"dataset": text}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("diffusion.learning_rate=1e-3", 1e-3),
        ("diffusion.learning_rate=1E-3", 1e-3),
        ("diffusion.learning_rate=.5e-2", 5e-3),
        ("diffusion.learning_rate=1", 1),
        ("diffusion.steps=1_000", 1000),
        ("diffusion.steps=1e3", 1000),
        ("diffusion.steps=2.0", 2),
        ("diffusion.compile=on", True),
        ("diffusion.compile=false", False),
        ("diffusion.patience=", None),
        ("diffusion.patience=null", None),
        ("diffusion.widths=[16, 3.2e1]", (16, 32)),
        ("evaluate.num_originals=none", None),
        ("autoencoder.form=conv", None),
    ],
)
def test_overrides_are_read_as_the_type_says(option: str, value: object, tmp_path: Path) -> None:
    name = option.partition("=")[0]
    section, key = name.split(".")
    if value is None and key == "form":
        with pytest.raises(PdiffError, match=r"autoencoder\.steps is 0, expected at least 1"):
            recipe(tmp_path, BASE, option)
        return
    found = getattr(getattr(recipe(tmp_path, BASE, option), section), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("diffusion.steps=2.5", "diffusion.steps is 2.5, expected a whole number"),
        ("diffusion.steps=1e-3", "diffusion.steps is 0.001, expected a whole number"),
        ("diffusion.steps=on", "diffusion.steps is True, expected a whole number"),
        ("diffusion.steps=", "diffusion.steps is '', expected a whole number"),
        ("diffusion.steps=*.pt", "diffusion.steps is '*.pt', which is no valid YAML"),
        ("diffusion.steps=[1,2", "diffusion.steps is '[1,2', which is no valid YAML"),
        ("diffusion.steps=a: b", "diffusion.steps is {'a': 'b'}, expected a whole number"),
        ("diffusion.steps=1e999", "diffusion.steps is inf, expected a whole number"),
        ("diffusion.learning_rate=x", "diffusion.learning_rate is 'x', expected a number"),
        ("diffusion.learning_rate=.nan", "diffusion.learning_rate is nan, expected a number"),
        ("diffusion.learning_rate=-1e-3", "diffusion.learning_rate is -0.001, expected a positive number"),
        ("diffusion.compile=1", "diffusion.compile is 1, expected true or false"),
        ("diffusion.widths=16", "diffusion.widths is 16, expected a list, each a whole number"),
        ("diffusion.widths=[a]", "diffusion.widths.0 is 'a', expected a whole number"),
        ("collect.weight_decay=x", "collect.weight_decay is 'x', expected a number"),
        ("collect.num_checkpoints=1", "collect.num_checkpoints must be an integer from 2, found 1"),
        ("collect.buffers=maybe", "collect.buffers is 'maybe', expected true or false"),
        ("autoencoder.normalization=no", "autoencoder.normalization is 'no', expected 'none', "),
        ("generate.num_models=2.5", "generate.num_models is 2.5, expected a whole number"),
        ("seed=x", "seed is 'x', expected a whole number"),
        ("seed=-1", "seed is -1, expected a whole number from 0"),
        ("seed=99999999999", "seed is 99999999999, expected a whole number from 0"),
        ("seed.x=1", "seed is {'x': 1}, expected a whole number"),
        ("collect=[1]", "recipe key 'collect' is [1], expected a mapping"),
        ("select=[1]", "select.0 is 1, expected a text"),
        ("network.hidden=[1,2", "network.hidden is '[1,2', which is no valid YAML"),
        ("network.hidden=[2024-01-01]", "network.hidden.0 is datetime.date(2024, 1, 1), expected a text"),
        ("network.x={1: 2}", "network.x has the key 1, expected a text"),
        ("network.x=.inf", "network.x is inf, expected a text, a finite number"),
        ("a..b=1", "override 'a..b=1' is not of the form a.b=c"),
        ("=1", "override '=1' is not of the form a.b=c"),
    ],
)
def test_other_values_are_named_with_the_option(option: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(PdiffError) as caught:
        recipe(tmp_path, BASE, option)
    assert str(caught.value).startswith(sentence)


def test_numbers_with_an_exponent_in_files(tmp_path: Path) -> None:
    text = "task: {dataset: digits, train_size: 1e3, revision: 1e5}\n"
    text += "network: {name: 'm:f', rate: 1e-3, tag: '1e-3', many: 1e3}\n"
    text += "collect: {learning_rate: 1e-3, num_checkpoints: 1e1}\ndiffusion: {steps: 1e3}\ncondition: 1e5\n"
    found = recipe(tmp_path, text)
    assert found.collect.learning_rate == 1e-3 and found.collect.num_checkpoints == 10 and found.diffusion.steps == 1000
    assert found.network == {"name": "m:f", "rate": 1e-3, "tag": "1e-3", "many": 1000}
    assert found.task == {"dataset": "digits", "train_size": 1000, "revision": "1e5"} and found.condition == "1e5"
    assert recipe_from_dict(yaml.safe_load(yaml.safe_dump(found.to_dict()))) == found
    assert yaml.safe_load(yaml.safe_dump(read_yaml(tmp_path / "recipe.yaml")))["condition"] == "1e5"


def bomb(levels: int = 9) -> str:
    inner = "&a0 [x,x,x,x,x,x,x,x,x]"
    for level in range(1, levels):
        inner = f"&a{level} [{inner}" + f",*a{level - 1}" * 8 + "]"
    return inner


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"network: mlp3\ntask: digits\ncollect: {bomb()}\n", "more than 100,000 values"),
        (f"network: mlp3\ntask: {bomb()}\n", "more than 100,000 values"),
        ("task: " + "[" * 3000 + "]" * 3000, "is no valid YAML"),
        ("task: " + "[" * 60 + "]" * 60, "more than 50 levels"),
        ("task: &a [*a]\n", r"\*a stands inside of what it names"),
        ("task: &a {<<: *a}\n", "stands inside"),
        ("seed: !!bool maybe\n", "is no valid YAML"),
        ("seed: !!int x\n", "is no valid YAML"),
        ("seed: !!timestamp x\n", "is no valid YAML"),
        ("seed: !!python/object/apply:os.system [true]\n", "is no valid YAML"),
        ("seed: " + "9" * 5000 + "\n", "is no valid YAML"),
        ("? [1]\n: 2\n", "is no valid YAML"),
        ("task: digits\n---\ntask: digits\n", "is no valid YAML"),
        ("task: \x00\n", "is no valid YAML"),
        ("x" * (2 << 20), "expected YAML of at most"),
        ("collect: {method: [1]}\n" + BASE, "unknown collect.method"),
        ("1: 2\n", "unknown recipe key"),
    ],
    ids=range(17),
)
def test_bombs_and_tags_are_one_short_sentence_at_once(text: str, sentence: str, tmp_path: Path) -> None:
    began = time.perf_counter()
    with pytest.raises(PdiffError, match=sentence) as caught:
        recipe(tmp_path, text)
    assert time.perf_counter() - began < 2 and len(str(caught.value)) < 1500


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(PdiffError, match="is no regular file"):
        read_yaml(tmp_path / "recipe.yaml")
    with pytest.raises(FileNotFoundError, match=r"holds no recipe\.yaml"):
        load_recipe(tmp_path)


@given(
    st.sampled_from(["collect", "diffusion", "seed", "select", "network", "task", "generate", "condition"]), st.text()
)
def test_no_text_of_an_override_is_anything_but_a_value_or_a_sentence(name: str, text: str) -> None:
    for option in (name, f"{name}.steps", f"{name}.name", f"{name}.num_models"):
        with suppress(PdiffError):
            recipe_from_dict(load_recipe("digits-mlp3", [f"{option}={text}"]).to_dict())
