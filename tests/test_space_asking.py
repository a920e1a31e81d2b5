"""The parts of the tabs Ask and Fit in examples/space without the page: five networks, what they say, what is known."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drawn_digits import DRAWN

from pdiff_hub import ConditionSpec, PDiffPipeline
from pdiff_hub.collect.family import FamilyConfig, collect_family
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.tasks import load_task
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline

import answers  # isort: skip
import asking  # isort: skip
import drawing  # isort: skip
import labelling  # isort: skip
import opening  # isort: skip

PIPELINE = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"
STROKES = {
    digit: json.dumps([[(x / 100, y / 100) for x, y in stroke] for stroke in drawn]) for digit, drawn in DRAWN.items()
}


def subsets_pipeline(folder: Path) -> Path:
    """A small pipeline that can be asked for subsets of digits, with its checkpoints beside it."""
    spec = resolve_network({"name": "mlp3", "hidden": [8, 8]}, in_channels=1, image_size=8, num_classes=2)
    config = FamilyConfig(num_tasks=20, seeds_per_task=2, held_out_tasks=0, epochs=6)
    dataset = collect_family(load_task("digits"), spec, "all", config, folder / "checkpoints", seed=0)
    diffusion = DiffusionConfig(steps=40, widths=(16,), patience=None)
    train_pipeline(dataset, folder, AutoencoderConfig(num_components=16), diffusion)
    return folder


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> opening.Opened:
    return opening.open_pipeline(subsets_pipeline(tmp_path_factory.mktemp("space") / "subsets"), "subsets")


@pytest.fixture(scope="module")
def digits() -> opening.Opened:
    return opening.open_pipeline(PIPELINE, "digits-mlp3")


def requested(opened: opening.Opened, value: Any) -> asking.Request:
    return asking.make_request(opened, value, 1.5, 3)


def words(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", html)).replace("\u00a0", " ")


def test_five_networks_are_those_of_the_pipeline(asked: opening.Opened) -> None:
    assert asked.own_tasks and asked.answers == ("no", "yes")
    five = asking.ask(asked, requested(asked, ["1", "4"]))
    pipe = PDiffPipeline.from_pretrained(asked.folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    same = pipe(5, generator=generator, condition={"classes": [1, 4]}, guidance_scale=1.5)
    assert torch.equal(five.params_NP, same.params)
    assert asking.ask(asked, requested(asked, ["1", "4"])) is five  # kept
    # What each of them answers to the test pictures, one network after another.
    task, looked = asked.judge.task, five.looked
    truth = torch.isin(task.test.labels_N, torch.tensor([1, 4]))
    shares = []
    for state in same.state_dicts:
        network = build_network(dict(pipe.autoencoder.config.network))
        network.load_state_dict(state)
        with torch.no_grad():
            shares.append(network(task.inputs(task.test)).softmax(dim=1)[:, 1])
    right = torch.stack([((share > 0.5) == truth).double().mean() for share in shares])
    together = torch.stack(shares).mean(dim=0) > 0.5
    assert looked.right_N is not None and torch.allclose(looked.right_N, right, atol=0.003)
    assert looked.together == pytest.approx(float((together == truth).double().mean()), abs=0.003)
    assert looked.usual == pytest.approx(float((~truth).double().mean()))
    of_four = together[task.test.labels_N == 4].double().mean()
    assert float(looked.said_kc[4, 1]) == pytest.approx(float(of_four), abs=0.02)


@pytest.mark.parametrize(
    ("value", "message"),
    [([], "tick at least one"), (list("0123456789"), "leave at least one out"), (["tree"], "nknown classes: 'tree'")],
)
def test_what_is_no_task_is_said(asked: opening.Opened, value: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        requested(asked, value)
    wanted, summary, _ = answers.get_five((str(asked.folder), "subsets"), {"bits": value}, 1, 0, "", None)
    assert wanted is None and message in words(summary)
    for seed in (None, -1, 0.5):
        with pytest.raises(ValueError, match="the seed is"):
            asking.make_request(asked, ["1"], 1, seed)


def test_what_was_trained_on_is_told_as_far_as_it_is_known(asked: opening.Opened, digits: opening.Opened) -> None:
    assert asked.originals is not None and asked.originals.conditions_KD is not None
    known = {tuple(each) for each in asked.originals.conditions_KD.int().tolist()}
    opposites = {tuple(1 - bit for bit in each) for each in known}
    for each in (next(iter(known)), next(iter(opposites - known)), (1, 1, 1, 0, 0, 0, 0, 0, 0, 0)):
        found = asking.what_is_known(asked, requested(asked, [str(digit) for digit in range(10) if each[digit]]))
        if each in known:
            assert found == "It was trained on networks for just this."
        elif each in opposites:
            assert "the opposite of this" in found and "not on this itself" in found
        else:
            apart = min(sum(a != b for a, b in zip(each, other, strict=True)) for other in known)
            assert f"trained on {len(known)} sets" in found and f"differs in {apart} class" in found
    alone = replace(asked, originals=None)
    assert "cannot be told" in asking.what_is_known(alone, requested(asked, ["1"]))
    # A column of the checkpoints, which the set on disk does not name as its condition.
    column = ConditionSpec("validation_accuracy", "scalar", 1, low=(0.9,), high=(1.0,))
    by_column = replace(digits, pipe=SimpleNamespace(conditions=column))
    assert digits.originals is not None
    best = max(row["validation_accuracy"] for row in digits.originals.metadata)
    assert f"it was trained on is {best:.4g}." in asking.what_is_known(by_column, requested(by_column, 1.0))
    unknown = replace(digits, pipe=SimpleNamespace(conditions=replace(column, name="angle")))
    assert "do not say what each" in asking.what_is_known(unknown, requested(unknown, 1.0))
    with pytest.raises(ValueError, match="takes no condition"):
        requested(digits, ["1"])


def test_outside_of_what_was_seen_is_a_guess(digits: opening.Opened) -> None:
    angle = ConditionSpec("angle", "scalar", 2, low=(-60.0,), high=(60.0,), period=360.0)
    known = SimpleNamespace(conditions_KD=torch.stack([angle.encode(each) for each in (-60, 12.5, 60)]))
    turned = replace(digits, pipe=SimpleNamespace(conditions=angle), originals=known)
    inside, outside = (asking.what_is_known(turned, requested(turned, angle)) for angle in (20, 75))
    assert inside == "The nearest angle that it was trained on is 12.5."
    assert "75, outside what the generator has seen (-60 to 60)" in outside and "is a guess. The nearest" in outside


def test_what_the_five_answer_in_words(asked: opening.Opened) -> None:
    five = asking.ask(asked, requested(asked, ["1", "4"]))
    one, four = ([0.0, 3.0], [0.5, 0.0])
    said = answers.drawn_view(drawing.vote(torch.tensor([one] * 4 + [four])), five, torch.zeros(1, 8, 8).byte(), 4)
    shown = words(said)
    assert "4 of 5 say yes." in shown and "mean probability of yes is 84 %" in shown
    assert "they differ widely, from 38 % to 95 %" in shown and "It is of class 4, so yes is right" in shown
    assert shown.count("network ") == 5 and "no  62 %" in shown
    agreed = words(answers.drawn_view(drawing.vote(torch.tensor([one] * 5)), five, torch.zeros(1, 8, 8).byte()))
    assert "All 5 say yes." in agreed and "they agree closely." in agreed
    summary = answers.asked_view(five, replace(requested(asked, ["1", "4"]), wording="<b>1</b>"))
    assert (
        "<b>1</b>" not in summary
        and "as far" not in summary
        and "test pictures each network is right" in words(summary)
    )


def test_a_picture_is_read_or_a_sentence_says_why_not(asked: opening.Opened) -> None:
    wanted = (str(asked.folder), "subsets", requested(asked, ["1", "4"]))
    assert answers.read(None, STROKES[4], None, "First ask.") == answers.read(None, "", 3, "First ask.")
    assert "of 5 say" in words(answers.read(wanted, STROKES[4], None, "")).replace("All 5", "5 of 5")
    assert "It is of class" in words(answers.read(wanted, "", 3, ""))
    for strokes, message in (("[]", "Nothing is drawn yet; draw a digit"), ("{", "The drawing is damaged")):
        assert message in words(answers.read(wanted, strokes, None, ""))


def labelled(opened: opening.Opened, rule: Any, number: int) -> str:
    """The page's value with `number` pictures labelled by a rule on their class."""
    state = json.loads(labelling.first_tiles(opened))
    for tile in state["tiles"][:number]:
        tile["label"] = rule(int(opened.judge.task.validation.labels_N[tile["of"]]))
    return json.dumps(state)


def test_labels_choose_networks(asked: opening.Opened, digits: opening.Opened) -> None:
    tiles = labelled(asked, lambda digit: digit % 2, 20)
    examples = asking.read_examples(asked, tiles)
    wanted, summary, shown = answers.fit_five((str(asked.folder), "subsets"), tiles, STROKES[3], None)
    assert wanted is not None and len(examples) == 20 and "network 4" in shown
    five, task = asking.five_of(wanted), asked.judge.task
    rows = torch.tensor([int(of) for of, _ in examples])
    inputs, labels = task.inputs(task.validation, rows), task.validation.labels_N[rows] % 2
    same = asked.pipe.fit(inputs, labels, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(five.params_NP, same.params, atol=1e-4)
    given = asking.given_labels(five, examples)
    assert given >= 17 and f"Together they give {given} of 20 labels" in summary
    assert five.looked.right_N is None and "all that the networks know of your task" in summary
    of_one_task = replace(five, opened=digits, looked=replace(five.looked, said_kc=torch.eye(10)))
    assert "networks of one task only" in answers.fitted_view(of_one_task, [3, 7, 7], 3)
    assert "1 3, 2 7" in answers.fitted_view(of_one_task, [3, 7, 7], 3)


def test_a_drawing_becomes_a_labelled_picture(asked: opening.Opened) -> None:
    first = labelling.first_tiles(asked)
    added = labelling.with_drawing(asked, first, STROKES[7])
    tiles = json.loads(added)["tiles"]
    assert len(tiles) == labelling.SHOWN + 1 and (tiles[0]["of"], tiles[0]["label"]) == (STROKES[7], 1)
    other = json.loads(labelling.other_tiles(asked, added))["tiles"]
    assert other[0] == tiles[0] and len(other) == labelling.SHOWN
    assert not {tile["of"] for tile in other[1:]} & {tile["of"] for tile in tiles}
    image_CHW = asking.example_image(asked, STROKES[7])
    assert torch.equal(image_CHW[0], drawing.digit_image(drawing.read_strokes(STROKES[7])))
    with pytest.raises(ValueError, match="nothing is drawn yet"):
        labelling.with_drawing(asked, first, "")


def changed(opened: opening.Opened, **tile: Any) -> str:
    state = json.loads(labelled(opened, lambda digit: digit % 2, 9))
    state["tiles"][0].update(tile)
    return json.dumps(state)


def test_bad_labels_are_sentences(asked: opening.Opened) -> None:
    for text, message in (
        ("", "nothing is labelled yet"),
        (labelling.first_tiles(asked), "nothing is labelled yet"),
        (labelled(asked, lambda _: 1, 5), "every label is 'yes'"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"tiles": [{}]}', "damaged"),
        (changed(asked, of=9999), "of another pipeline"),
        (changed(asked, of=-1), "of another pipeline"),
        (changed(asked, label=2), "of another pipeline"),
        (changed(asked, of="[]", label=1), "nothing is drawn yet"),
    ):
        wanted, summary, _ = answers.fit_five((str(asked.folder), "subsets"), text, "", None)
        assert wanted is None and message.lower() in words(summary).lower(), text


def test_a_pipeline_without_its_checkpoints_can_be_asked(asked: opening.Opened, tmp_path: Path) -> None:
    shutil.copytree(asked.folder, tmp_path / "alone", ignore=shutil.ignore_patterns("checkpoints", "training"))
    where = (str(tmp_path / "alone"), "alone")
    wanted, summary, shown = answers.get_five(where, {"bits": ["1", "4"]}, 1.5, 3, STROKES[1], None)
    assert wanted is not None and "cannot be told" in summary and "network 4" in shown
