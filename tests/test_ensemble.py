"""ensembles/: networks are chosen on validation only, answer as one, and come back from files as they were."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from loopback_hub import LoopbackHub
from torch import Tensor
from typer.testing import CliRunner

from pdiff_hub import export_network
from pdiff_hub.cli import app
from pdiff_hub.ensembles import Ensemble, describe_ensemble, is_ensemble
from pdiff_hub.ensembles.choosing import choose, temperature_of, temperature_of_groups, tempered
from pdiff_hub.ensembles.figures import Figures, Judged, Report
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub import describe, pull
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.networks.stacked import mean_log
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.tasks import load_task

SIZES = {"in_channels": 1, "image_size": 8, "num_classes": 10}
DIGITS = Path(__file__).parents[1] / "pipelines" / "digits-mlp3"


@pytest.fixture(scope="module")
def made() -> tuple[PDiffPipeline, Ensemble]:
    pipe = PDiffPipeline.from_pretrained(DIGITS)
    return pipe, pipe.ensemble(3, candidates=6, generator=torch.Generator().manual_seed(0))


def logs_of(answers: list[list[int]], sure: float = 2.0) -> Tensor:
    """Log probabilities [B,N,2] of networks that give these answers."""
    return (sure * torch.nn.functional.one_hot(torch.tensor(answers), 2).float()).log_softmax(dim=2)


def test_the_best_alone_and_those_that_add_most() -> None:
    labels_N = torch.tensor([0, 0, 0, 1, 1, 1])
    right, late, twin = [0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 0]
    log_BNc = logs_of([[1, 1, 1, 0, 0, 0], late, right, twin])
    assert choose(None, log_BNc, labels_N, 2) == [0, 1]
    assert choose("accuracy", log_BNc, labels_N, 2) == [2, 3]
    assert choose("diverse", log_BNc, labels_N, 2) == [2, 1]  # the twin of the first adds nothing


def test_a_temperature_is_used_where_images_show_that_it_helps() -> None:
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.randint(5, (2000,), generator=generator)
    logits_Nc = torch.randn(2000, 5, generator=generator) + 2 * torch.nn.functional.one_hot(labels_N, 5)
    right_Nc = (2 * logits_Nc).log_softmax(dim=1)  # what a softmax of such numbers should be
    assert temperature_of(right_Nc[None], labels_N) == pytest.approx(1, abs=0.1)
    for factor in (0.25, 4.0):
        assert temperature_of((factor * 2 * logits_Nc).log_softmax(dim=1)[None], labels_N) == pytest.approx(
            factor, rel=0.15
        )
    assert temperature_of(right_Nc[None, :60], labels_N[:60]) == 1  # the best is near 1, and 60 images show no gain
    assert torch.equal(tempered(right_Nc, 3.0).argmax(dim=1), right_Nc.argmax(dim=1))
    both = torch.stack([right_Nc, right_Nc])
    assert temperature_of_groups(both, labels_N, 2) == pytest.approx(1, abs=0.1)


def test_it_answers_with_the_mean_of_the_probabilities(made: tuple[PDiffPipeline, Ensemble]) -> None:
    pipe, ensemble = made
    task = load_task("digits")
    images = task.inputs(task.test, slice(0, 9))
    networks = [pipe.build_network(state) for state in ensemble.networks.state_dicts()]
    mean_Nc = torch.stack([network(images).softmax(dim=1) for network in networks]).mean(dim=0)
    with torch.no_grad():
        logs_Nc = ensemble(images)
    torch.testing.assert_close(logs_Nc.exp().sum(dim=1), torch.ones(9))
    torch.testing.assert_close(logs_Nc, tempered(mean_Nc.log(), ensemble.temperature))
    torch.testing.assert_close(ensemble.inputs(task.test.images_NCHW[:9]), images)
    batch = torch.export.Dim("batch")
    program = torch.export.export(ensemble, (images,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(program(images[:1]), logs_Nc[:1])


def test_what_is_reported_is_what_the_ensemble_does(made: tuple[PDiffPipeline, Ensemble]) -> None:
    _, ensemble = made
    task = load_task("digits")
    with torch.no_grad():
        logs_Nc = ensemble(task.inputs(task.test))
    assert ensemble.report is not None and ensemble.description.origin is not None
    found = ensemble.report.test
    assert found.accuracy == pytest.approx(float((logs_Nc.argmax(dim=1) == task.test.labels_N).float().mean()))
    assert found.nll == pytest.approx(float(torch.nn.functional.nll_loss(logs_Nc, task.test.labels_N)), abs=1e-5)
    assert list(ensemble.report.beside)[2] == "ensemble of 3 originals" and len(ensemble.report.beside) == 5
    assert len(set(ensemble.description.origin.chosen)) == 3 and ensemble.description.origin.seed == 0
    assert str(ensemble.report).splitlines()[0][:4] in ("This", "Its ")
    assert max(map(len, str(ensemble.report).splitlines())) <= 80


def test_the_choice_does_not_see_the_test_split() -> None:
    pipe = PDiffPipeline.from_pretrained(DIGITS)
    task = load_task("digits")
    wrong = (task.test.labels_N + 1) % 10
    object.__setattr__(task.test, "labels_N", wrong)
    ensemble = pipe.ensemble(3, candidates=6, generator=torch.Generator().manual_seed(0), task=task)
    again = pipe.ensemble(3, candidates=6, generator=torch.Generator().manual_seed(0))
    assert ensemble.report is not None and again.report is not None
    assert ensemble.report.test.accuracy < 0.2 < again.report.test.accuracy
    assert ensemble.description.origin == again.description.origin
    assert ensemble.temperature == again.temperature


def test_saved_and_opened_as_one(made: tuple[PDiffPipeline, Ensemble], tmp_path: Path) -> None:
    _, ensemble = made
    ensemble.save_pretrained(tmp_path)
    again = Ensemble.from_pretrained(tmp_path)
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(again(images), ensemble(images)) and again.description == ensemble.description
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    card = (tmp_path / "README.md").read_text()
    assert ensemble.report is not None and ensemble.report.verdict in card and "candidates=6" in card
    assert is_ensemble(tmp_path) and not is_ensemble(DIGITS)
    assert describe_ensemble(tmp_path).startswith("ensemble: 3 mlp3 networks for digits")


def test_pushed_and_opened_from_the_hub(made: tuple[PDiffPipeline, Ensemble], hub: LoopbackHub, tmp_path: Path) -> None:
    _, ensemble = made
    ensemble.push_to_hub("user/three")
    again = Ensemble.from_pretrained("user/three")
    assert again.description == ensemble.description
    assert "3 mlp3 networks" in describe_ensemble("user/three") == describe("user/three")[0]
    assert pull("user/three", tmp_path / "pulled") == "ensemble"
    assert describe(tmp_path / "pulled")[0].startswith("ensemble: 3 mlp3 networks")
    with pytest.raises(ValueError, match="owner/name"):
        ensemble.push_to_hub("three")


def test_exported_as_a_program_of_pixels(made: tuple[PDiffPipeline, Ensemble], tmp_path: Path) -> None:
    _, ensemble = made
    task = load_task("digits")
    pixels = task.test.images_NCHW[:7]
    program = torch.export.load(ensemble.export(tmp_path / "three.pt2")).module()
    torch.testing.assert_close(program(pixels), ensemble(ensemble.inputs(pixels)))
    with pytest.raises(ValueError, match="says no format"):
        ensemble.export(tmp_path / "three.pickle")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": 0.0}, "temperature 0.0, expected a finite number above 0"),
        ({"num_networks": 4}, "does not fit the network"),
        ({"num_networks": 0}, "of 0 networks"),
        ({"network": {"name": "mlp3", "hidden": [10**9, 10**9], **SIZES}}, "hidden .*does not fit the weights"),
        ({"network": {"name": "mlp3", "hidden": [64, 64], **SIZES, "image_size": 10**6}}, "image_size is 1000000"),
        ({"network": {"name": "mlp3"}}, "in_channels is None"),
        ({"network": {"name": "os:system", **SIZES}}, "not allowed"),
        ({"classes": ["a"]}, "1 class names for 10"),
        ({"mean": None}, "a std without a mean"),
        ({"std": [0.0]}, "std must be at least"),
        ({"report": 3}, "report"),
    ],
)
def test_files_of_strangers(
    made: tuple[PDiffPipeline, Ensemble], tmp_path: Path, change: dict[str, object], words: str
) -> None:
    made[1].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["ensemble"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        Ensemble.from_pretrained(tmp_path)


def test_weights_that_are_missing_or_not_finite(made: tuple[PDiffPipeline, Ensemble], tmp_path: Path) -> None:
    _, ensemble = made
    states = [{**state} for state in ensemble.networks.state_dicts()]
    states[1]["fc1.bias"] = states[1]["fc1.bias"] * math.nan
    network = build_network(ensemble.description.network)
    Ensemble(network, states, ensemble.description).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'fc1\.bias' holds NaN"):
        Ensemble.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        Ensemble.from_pretrained(tmp_path)
    shutil.copy(DIGITS / "model_index.json", tmp_path)
    with pytest.raises(ValueError, match="holds a pipeline"):
        ensemble.save_pretrained(tmp_path)


def test_saved_with_other_numbers(made: tuple[PDiffPipeline, Ensemble], tmp_path: Path) -> None:
    _, ensemble = made
    copy.deepcopy(ensemble).half().save_pretrained(tmp_path)
    images = torch.randn(4, 1, 8, 8)
    assert torch.allclose(Ensemble.from_pretrained(tmp_path)(images), ensemble(images), atol=0.02)


def test_nothing_else_is_overwritten(made: tuple[PDiffPipeline, Ensemble], tmp_path: Path) -> None:
    _, ensemble = made
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="something else than an ensemble"):
        ensemble.save_pretrained(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "dataset.json")
    with pytest.raises(ValueError, match="holds a data set of checkpoints"):
        ensemble.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"dataset.json"}
    with pytest.raises(ValueError, match="unknown format of a program: 'safetensors'"):
        ensemble.export(tmp_path / "ensemble.pt2", "safetensors")


def test_of_networks_that_one_has() -> None:
    spec = resolve_network("mlp3", in_channels=1, image_size=8, num_classes=10)
    states = [build_network(spec, seed=seed).state_dict() for seed in range(3)]
    task = load_task("digits")
    ensemble = Ensemble.from_networks(spec, states, task=task)
    assert ensemble.description.num_networks == 3 and ensemble.description.classes == [str(each) for each in range(10)]
    assert Ensemble.from_networks(spec, states).temperature == 1
    with pytest.raises(ValueError, match="normalise them yourself"):
        Ensemble.from_networks(spec, states).inputs(torch.zeros(1, 1, 8, 8))


def test_arguments_out_of_range() -> None:
    pipe = PDiffPipeline.from_pretrained(DIGITS)
    for options, words in (
        ({"num_models": 0}, "num_models"),
        ({"select": "best"}, "nearest known one"),
        ({"num_models": 5, "candidates": 4}, "at least num_models, 5"),
        ({"task": "nowhere"}, "unknown task"),
        ({"generator": [torch.Generator()]}, "generator is .*, expected one torch.Generator"),
        ({"originals": "checkpoints"}, "originals is 'checkpoints', expected a CheckpointDataset"),
    ):
        with pytest.raises(ValueError, match=words):
            pipe.ensemble(**options)  # type: ignore[arg-type]


def test_the_verdict_is_plain_when_nothing_is_gained() -> None:
    labels_N = torch.tensor([0, 1] * 200)
    good = logs_of([[0, 1] * 200])
    bad = logs_of([[0, 0] * 200])

    def verdict(this: Tensor, other: Tensor) -> str:
        judged = Judged.of(this, labels_N, 1.0)
        beside = {"one original": judged.beside(Judged.of(other, labels_N, 1.0))}
        figures: Figures = judged.figures
        return Report(2, 9, 400, figures, figures, figures, beside, []).verdict

    assert verdict(good, good) == (
        "This ensemble gains nothing that 400 test images can show: no better than one original."
    )
    assert verdict(good, bad).startswith("Its accuracy is better than that of one original. Its NLL is better")
    assert "Its accuracy is worse than that of one original" in verdict(bad, good)
    torch.testing.assert_close(mean_log(good), good[0])


def test_what_a_condition_asks_for_decides_what_is_right() -> None:
    pipe = PDiffPipeline.from_pretrained(DIGITS.parent / "digits-subsets")
    asked = {"classes": [0, 3, 7]}
    ensemble = pipe.ensemble(2, candidates=2, condition=asked, generator=torch.Generator().manual_seed(0))
    task = load_task("digits")
    with torch.no_grad():
        answers_N = ensemble(task.inputs(task.test)).argmax(dim=1)
    yes_N = torch.isin(task.test.labels_N, torch.tensor([0, 3, 7])).long()
    assert ensemble.report is not None and ensemble.description.classes == ["none of 0, 3, 7", "one of 0, 3, 7"]
    assert ensemble.report.test.accuracy == pytest.approx(float((answers_N == yes_N).float().mean()))
    assert ensemble.report.test.accuracy > 0.85
    assert "No originals are at hand" in ensemble.report.notes[0]
    with pytest.raises(ValueError, match="the condition is"):
        pipe.ensemble(2, candidates=2, condition={"class": 3})
    with pytest.raises(ValueError, match="the task digits has"):
        pipe.ensemble(2, candidates=2)


def test_the_command(tmp_path: Path) -> None:
    asked = ["ensemble", str(DIGITS), "--num-models", "2", "--candidates", "3", "--output-dir", str(tmp_path / "made")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0 and "this ensemble of 2" in done.output
    assert Ensemble.from_pretrained(tmp_path / "made").description.num_networks == 2
    refused = CliRunner().invoke(app, ["ensemble", str(DIGITS)])
    assert "give --output-dir, or --push-to-hub" in str(refused.exception)


def test_what_is_no_network_is_refused(made: tuple[PDiffPipeline, Ensemble], tmp_path: Path) -> None:
    pipe, ensemble = made
    states = ensemble.networks.state_dicts()
    spec = dict(pipe.autoencoder.config.network)
    broken = [{name: tensor * math.nan for name, tensor in state.items()} for state in states]
    with pytest.raises(PdiffError, match="is 'not finite', expected finite numbers"):
        Ensemble.from_networks(spec, broken)
    with pytest.raises(PdiffError, match="task is 'digits', expected what load_task gives"):
        Ensemble.from_networks(spec, states, task="digits")  # type: ignore[arg-type]
    with pytest.raises(PdiffError, match="network is 'mlp3', expected a spec"):
        Ensemble.from_networks("mlp3", states)  # type: ignore[arg-type]
    for options, words in (
        ({"condition": {"classes": "1"}}, "of a pipeline that can be asked"),
        ({"origin": {"a": math.nan}}, "is no JSON"),
        ({"origin": {"a": torch.zeros(1)}}, "is no JSON"),
    ):
        with pytest.raises(PdiffError, match=words):
            export_network(pipe, states, tmp_path / "x.pt2", **options)
    with pytest.raises(PdiffError, match="not finite"):
        export_network(pipe, broken[0], tmp_path / "x.pt2")
    assert not (tmp_path / "x.pt2").exists()
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(PdiffError, match="its card would be written over it"):
        ensemble.save_pretrained(tmp_path)
