"""Reproduction: the recipes of each part, shared work, orderings and the report. Short runs replace real training."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from browser import Browser
from rich.console import Console
from short_reproduction import shorten, tiny

from pdiff_hub.checkpoints.rows import evenly_spaced
from pdiff_hub.evaluation.report import Table
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.reproduce import published, settings
from pdiff_hub.reproduce.reproduce import PARTS, reproduce
from pdiff_hub.reproduce.settings import Settings
from pdiff_hub.reproduce.tables import checkpoint_runs
from pdiff_hub.reproduce.workbench import Workbench, noisy_copies, with_checkpoints
from pdiff_hub.travelling.param_autoencoder import ParamLayout


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes runs short and the numbers of checkpoints small. Returns the names of the runs, in order."""
    trained: list[str] = []
    shorten(monkeypatch, (1, 5, 12), began=lambda folder: trained.append(folder.name))
    return trained


def test_all_of_it_leaves_one_report_and_is_not_done_twice(
    short: list[str], tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    printed = StringIO()
    monkeypatch.setattr("pdiff_hub.reproduce.reproduce.Console", lambda: Console(file=printed, width=80))
    parts = reproduce("all", tmp_path, say=said.append)
    assert [part.name for part in parts] == list(PARTS)
    page = (tmp_path / "report.html").read_text()
    for part in parts:
        assert part.title.replace("'", "&#39;") in page
    browser.open((tmp_path / "report.html").as_uri())
    assert browser.messages() == [] and len(browser.requests()) == 1 and browser.overflow() == 0
    loaded = browser.evaluate("Array.from(document.images, each => each.complete && each.naturalWidth > 0)")
    assert len(loaded) >= 8 and all(loaded)
    written = json.loads((tmp_path / "reproduction.json").read_text())
    claims = [each for part in written["parts"].values() for each in part["orderings"]]
    assert len(claims) >= 12 and all(each["numbers"] and each["held"] in (True, False) for each in claims)
    assert all(each["held"] == (each["why_not"] == "") for each in claims)  # a sentence for each that did not hold
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    words = {*printed.getvalue().split()}
    for block in (block for part in parts for block in part.blocks if isinstance(block, Table)):
        shown = block.columns if block.short is None else []
        assert {word for text in (*shown, *(row[0] for row in block.rows)) for word in text.split()} <= words
    assert {word for each in claims for word in each["why_not"].split()} <= words
    assert all(
        (tmp_path / "figures" / f"{name}.{suffix}").exists()
        for name in ("figure3", "figure4a", "figure4b", "figure4c", "figure5a", "figure5b", "frontier")
        for suffix in ("png", "svg")
    )
    main = checkpoint_runs(Workbench(tmp_path), Settings(), (12,))[12].folder
    same = {stem: stem for stem in ("copies", "training", "frontier", "frontier-distance", "ensembles")}
    for name, stem in {"figure4a": "similarity", "figure4b": "accuracy-similarity", **same}.items():
        assert (tmp_path / "figures" / f"{name}.png").read_bytes() == main.picture(stem).read_bytes()
    assert len(short) == len(set(short)) == 6 + 3 + 3 + 4 + 2  # runs of tables 1, 2a, 2b, 2c and 3
    assert len(list((tmp_path / "checkpoints").glob("depth-*"))) == 3
    again = reproduce("table2a", tmp_path)
    assert len(short) == 18 and again[0].measured == next(part for part in parts if part.name == "table2a").measured
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        reproduce("table2a", tmp_path, seed=1)


def test_a_run_that_was_killed_at_its_end_is_tidied(
    short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Workbench(tmp_path)

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pdiff_hub.runs.judging.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint_runs(bench, Settings(), (5,))
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "report.html").is_file() and not (folder / "results.json").exists()  # so it is not finished
    checkpoint_runs(bench, Settings(), (5,))
    (folder / ".pdiff-lock").touch()  # as a kill leaves it
    (tmp_path / "trained" / ".tmpKilled").touch()
    bench = Workbench(tmp_path)
    checkpoint_runs(bench, Settings(), (5,))
    assert not (tmp_path / "trained" / ".tmpKilled").exists()
    assert (folder / "results.json").is_file() and not (folder / ".pdiff-lock").exists()
    assert short == [folder.name] * 2


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown part of the paper: 'table2'"):
        reproduce("table2", tmp_path)
    with pytest.raises(ValueError, match="nearest known one is 'small'"):
        reproduce("table2a", tmp_path, scale="smal")
    assert list(tmp_path.iterdir()) == []


def test_depths_are_equally_many_numbers_at_the_layers_of_the_paper() -> None:
    spec = resolve_network("resnet18", in_channels=1, image_size=8, num_classes=10)
    layouts = {
        name: ParamLayout.from_module(build_network(spec, pretrained=False), recipe.select)
        for name, recipe in Settings().depths().items()
    }
    assert {layout.num_params for layout in layouts.values()} == {2048}
    stages = {name: {entry.name.split("stages.")[1][0] for entry in layout.entries} for name, layout in layouts.items()}
    assert stages == {"10-14": {"2"}, "14-16": {"3"}, "16-18": {"3"}}
    assert not any(
        "shortcut" in entry.name for layout in layouts.values() for entry in layout.entries if len(layout.entries) == 4
    )


@pytest.mark.parametrize("scale", settings.SCALES)
def test_every_recipe_of_every_part_is_sound(scale: settings.Scale) -> None:
    chosen = Settings(scale)
    assert len(chosen.table1_cells()) == (6 if scale == "small" else 48)
    recipes = [chosen.norms(dataset, network) for dataset, network, _ in chosen.table1_cells()]
    recipes += [chosen.whole(dataset, network) for dataset, network, _ in chosen.table3_cells()]
    recipes += [chosen.main(), *chosen.depths().values(), *chosen.noises().values(), chosen.seeds()]
    assert all(recipe.seed == 0 for recipe in recipes)
    assert {recipe.autoencoder.form for recipe in chosen.noises().values()} == {"conv"}
    assert chosen.main().evaluate.baselines > 0 and chosen.plain(chosen.main()).evaluate.baselines == 0
    for text in (
        chosen.describe_main(),
        chosen.describe_cells(True),
        chosen.describe_cells(False),
        chosen.describe_depths(),
        chosen.describe_noises(),
        chosen.beside,
    ):
        assert text


def test_published_figures() -> None:
    row = published.logged("cifar100", "resnet18", whole=False)
    assert row is not None and row["original_mean"] == pytest.approx(76.7246, abs=1e-4)
    assert row["best"] == pytest.approx(77.55) and row["generated_generated"] > row["original_original"]
    assert published.logged("mnist", "resnet18", whole=False) is None
    assert published.logged("cifar10", "mlp3", whole=True) is not None


def test_subsets_differ_in_number_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = with_checkpoints(tiny(Settings().main()), 8)
    bench = Workbench(tmp_path)
    dataset = bench.checkpoints("main", recipe)
    assert bench.checkpoints("main", recipe) is dataset
    half = dataset.select_rows(evenly_spaced(len(dataset), 4))
    assert [row["step"] for row in half.metadata] == [row["step"] for row in dataset.metadata[1::2]]
    copies = noisy_copies(dataset, 3, seed=0)
    assert (copies.params_KP[0] == dataset.params_KP[3]).all()
    assert 0.0009 < float((copies.params_KP[1:] - dataset.params_KP[3]).std()) < 0.0011
