"""What a run leaves on disk: only `records` knows the file names, and it reads results as written or refuses them."""

from __future__ import annotations

import ast
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from package_map import FILES, PACKAGE, room_of

from pdiff_hub.errors import PdiffError
from pdiff_hub.records import NetworksFolder, Results, RunFolder, TrainingSummary
from pdiff_hub.safe_files import write_json
from pdiff_hub.travelling.pipeline_pdiff import INDEX

SHIPPED = RunFolder(PACKAGE.parent / "pipelines" / "digits-mlp3")
CONTENT: dict[str, Any] = json.loads(SHIPPED.results.read_text(encoding="utf-8"))


def names() -> set[str]:
    """The names of the files of a run."""
    folder = RunFolder(Path("."))
    ours = [folder.card, folder.recipe, folder.results, folder.networks, folder.report, folder.generated]
    training = [folder.training.recipe, folder.training.seconds, folder.training.settings, folder.training.latents]
    training += [folder.training.autoencoder_facts, folder.training.summary, folder.training.unfinished_pipeline]
    return {file.name for file in (*ours, *training, NetworksFolder(Path(".")).origin)}


# These are other files with the same names: the card of a data set, and the settings of a journal and a reproduction.
OTHERS = {"checkpoints/hub.py": {"README.md"}, "collect/journal/journal.py": {"settings.json"}}
OTHERS |= {file: {"settings.json"} for file in ("reproduce/reproduce.py", "collect/population/collecting.py")}


@pytest.mark.parametrize("file", [file for file in FILES if room_of(file) != "records"])
def test_no_other_file_spells_the_names(file: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert (texts & names()) <= OTHERS.get(file, set())


def test_the_file_that_makes_a_pipeline_is_the_one_that_travels() -> None:
    assert RunFolder(Path()).index.name == INDEX


def test_the_shipped_results_come_back_as_they_are() -> None:
    results = SHIPPED.read_results()
    # A key that came later is null.
    assert results is not None and json.loads(json.dumps(results.to_dict())) == {"distance_frontier": None, **CONTENT}
    assert Results.from_dict(results.to_dict()) == results


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every value in nested dicts, without the recipe and the texts, since those may hold anything."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, each in value.items():
            if key not in ("recipe", "environment", "seconds", "figures", "notes"):
                found += places(each, (*path, key))
    return found


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(places(CONTENT)), st.sampled_from([[1, 2], {"a": 1}, True, "text", 2.5, None]), st.booleans())
def test_a_changed_key_is_read_as_it_is_or_named(path: tuple[str, ...], value: Any, gone: bool) -> None:
    changed = deepcopy(CONTENT)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if gone:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    refusal, results = "", None
    try:
        results = Results.from_dict(changed, "the file")
    except PdiffError as error:
        refusal = str(error)
    assert refusal == "" or (refusal.startswith("the file: ") and refusal.endswith("then evaluate the pipeline again."))
    assert results is None or Results.from_dict(results.to_dict()) == results


@pytest.mark.parametrize("content", ["{", "[]", "[" * 3000, '{"name": NaN}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_results() is None and folder.read_recipe() is None and folder.training.read_summary() is None
    folder.results.write_text(content)
    with pytest.raises(PdiffError, match=r"results\.json"):
        folder.read_results()
    folder.recipe.write_text("- 1")
    with pytest.raises(PdiffError, match=r"recipe\.yaml holds list, expected a mapping"):
        folder.read_recipe()
    folder.training.path.mkdir()
    write_json(folder.training.summary, {"loss": "low"})
    with pytest.raises(PdiffError, match=r"summary\.json: 'deviation_r2' is wrong .*; train the pipeline again"):
        folder.training.read_summary()


def test_a_training_summary_comes_back(tmp_path: Path) -> None:
    folder, summary = RunFolder(tmp_path), TrainingSummary(0.5, 16, (4, 4), 0.1, None, 2, 1)
    folder.training.path.mkdir()
    write_json(folder.training.summary, summary.__dict__)
    assert folder.training.read_summary() == summary
