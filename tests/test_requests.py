"""The audit of requests: what simple ways make, that nothing leaks into them, and a whole run of a family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html import unescape
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_hub import LoopbackHub
from torch import Tensor
from typer.testing import CliRunner

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.index import HELD_OUT
from pdiff_hub.checkpoints.rows import as_rows
from pdiff_hub.cli import app
from pdiff_hub.collect.family import build_family
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.ensembles import Ensembles
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.evaluation.request_names import FIT_NAMES, SIMPLE_WAYS, STARTS, UNSEEN_NAMES
from pdiff_hub.hub import push_pipeline_folder
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.pipeline.card import render_card
from pdiff_hub.prediction import predictions
from pdiff_hub.recipes import EvaluateConfig, recipe_from_dict
from pdiff_hub.records import Results, RunFolder
from pdiff_hub.runs import evaluate, run
from pdiff_hub.runs.requests import by_condition, by_examples, slope
from pdiff_hub.runs.requests.by_condition import SeenTasks
from pdiff_hub.runs.requests.judging import _ensembles
from pdiff_hub.runs.requests.room import room
from pdiff_hub.runs.requests.task_networks import Examples, TaskNetworks
from pdiff_hub.runs.requests.verdicts import unseen_verdicts
from pdiff_hub.tasks import load_task
from pdiff_hub.travelling.conditioner import ConditionSpec
from pdiff_hub.travelling.param_autoencoder import ParamLayout

BITS = ConditionSpec("classes", "bits", 10, tuple("0123456789"))
RECIPE = {
    "task": "digits",
    "network": {"name": "mlp", "hidden": [16]},
    "collect": {"method": "family", "num_tasks": 24, "seeds_per_task": 2, "held_out_tasks": 6, "epochs": 10},
    "diffusion": {"steps": 50, "widths": [16]},
    "generate": {"num_inference_steps": 20},
    "evaluate": {"fit_tasks": 1, "num_labels": [20]},
}


@pytest.fixture(scope="module", autouse=True)
def a_short_trunk() -> Iterator[None]:
    """Each audit trains one for all seen tasks, which takes longer than the rest of these small ones."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(by_examples, "_TRUNK_STEPS", 20)
        yield


@cache
def networks() -> TaskNetworks:
    task = load_task("digits")
    spec = resolve_network({"name": "mlp", "hidden": [8]}, in_channels=1, image_size=8, num_classes=2)
    network = build_network(spec).eval().requires_grad_(False)
    return TaskNetworks(network, ParamLayout.from_module(network), {}, task, build_family("class-subsets", {}, task))


def random_networks(number: int, seed: int = 0) -> Tensor:
    layout = networks().layout
    return 0.3 * torch.randn(number, layout.num_params, generator=torch.Generator().manual_seed(seed))


def bits(number: int, seed: int = 0) -> Tensor:
    return (torch.rand(number, 10, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def seen(number: int = 8) -> SeenTasks:
    condition_TD = torch.unique(bits(3 * number), dim=0)[:number]
    return SeenTasks(BITS, condition_TD, random_networks(number), as_rows(random_networks(number, 1)))


def test_accuracy_and_answers_are_those_of_each_network_on_its_own_task() -> None:
    params_NP, condition_ND, every = random_networks(3), bits(3), networks()
    wanted = []
    for params_P, condition_D in zip(params_NP, condition_ND, strict=True):
        network = build_network(
            resolve_network({"name": "mlp", "hidden": [8]}, in_channels=1, image_size=8, num_classes=2)
        )
        network.load_state_dict(every.layout.unflatten(params_P))
        with torch.no_grad():
            answers = network(every.task.inputs(every.task.test)).argmax(dim=1)
        wanted.append(float((answers == condition_D[every.task.test.labels_N]).float().mean()))
    assert torch.allclose(every.accuracy(params_NP, condition_ND), torch.tensor(wanted, dtype=torch.float64))


def test_training_further_helps_each_on_its_own_task_and_ignores_company() -> None:
    params_NP, condition_ND = random_networks(3), bits(3)
    trained = networks().trained(params_NP, condition_ND, 60, learning_rate=1e-2, seed=0)
    assert bool((networks().accuracy(trained, condition_ND) > networks().accuracy(params_NP, condition_ND) + 0.1).all())
    alone = networks().trained(params_NP[:1], condition_ND[:1], 60, learning_rate=1e-2, seed=0)
    assert torch.allclose(alone, trained[:1], atol=1e-3)


def test_a_probe_trains_the_last_layer_only() -> None:
    every, last_P = networks(), by_examples.numbers_of_last_layer(networks())
    assert int(last_P.sum()) == 2 * 8 + 2
    start_NP = random_networks(1).expand(4, -1)
    examples = by_examples.draw_examples(every, bits(4), 12, seed=0)
    probed = every.fitted(start_NP, examples, 10, learning_rate=1e-2, trained_P=last_P)
    assert torch.equal(probed[:, ~last_P], start_NP[:, ~last_P]) and not torch.equal(probed, start_NP)


def test_simple_ways_do_what_they_say() -> None:
    known = seen()
    assert torch.equal(by_condition.nearest(known, known.condition_TD), random_networks(8, 1))
    assert torch.allclose(by_condition.average_of_nearest(known, known.condition_TD, 1), known.mean_TP)
    everyone = by_condition.average_of_nearest(known, bits(2), 100)
    assert torch.allclose(everyone, known.mean_TP.mean(dim=0).expand(2, -1), atol=1e-6)
    # Weights that are linear in the bits are found again, and with pairs those that are bilinear.
    condition_TD, slope_DP = bits(60), torch.randn(10, 5, generator=torch.Generator().manual_seed(2))
    linear = SeenTasks(BITS, condition_TD, condition_TD @ slope_DP, as_rows(condition_TD @ slope_DP))
    asked_UD = bits(7, 5)
    assert torch.allclose(by_condition.ridge(linear, asked_UD, 1e-4), asked_UD @ slope_DP, atol=1e-2)
    product_T1, product_U1 = ((each[:, :1] * each[:, 1:2]) for each in (condition_TD, asked_UD))
    bilinear = SeenTasks(BITS, condition_TD, product_T1, as_rows(product_T1))
    assert torch.allclose(by_condition.ridge(bilinear, asked_UD, 1e-4, pairs=True), product_U1, atol=1e-2)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-59, 59), min_size=1, max_size=4))
def test_interpolation_is_linear_between_the_two_beside_it(angles: list[float]) -> None:
    spec = ConditionSpec("angle", "scalar", 2, (), (-60.0,), (60.0,), 360.0)
    known_T = torch.linspace(-60, 60, 9)
    condition_TD = torch.stack([spec.encode(float(each)) for each in known_T.flip(0)])
    weights_TP = known_T.flip(0)[:, None].expand(-1, 3)
    made = by_condition.interpolation(
        SeenTasks(spec, condition_TD, weights_TP, as_rows(weights_TP)),
        torch.stack([spec.encode(each) for each in angles]),
    )
    assert torch.allclose(made, torch.tensor(angles)[:, None].expand(-1, 3), atol=1e-2)


def test_choices_are_made_without_the_task_that_is_asked_for() -> None:
    known = seen()
    others = known.without(3)
    assert len(others.condition_TD) == 7 and not bool((others.condition_TD == known.condition_TD[3]).all(dim=1).any())


def test_examples_are_of_two_classes_at_least_and_differ_by_task() -> None:
    condition_UD = torch.zeros(3, 10)
    condition_UD[:, 0] = 1.0  # one of ten digits: five labels of one class are common
    examples = by_examples.draw_examples(networks(), condition_UD, 5, seed=0)
    assert bool(((examples.labels_Nn.sum(dim=1) > 0) & (examples.labels_Nn.sum(dim=1) < 5)).all())
    assert not torch.equal(examples.inputs_NnX[0], examples.inputs_NnX[1])


def test_ensembles_are_those_of_the_evaluation() -> None:
    every, made_UMP = networks(), random_networks(5)[None]
    condition = bits(1)
    curve = _ensembles(every, made_UMP, condition)
    labels = condition[0][every.task.test.labels_N].long()
    heard, inputs_NCHW = Ensembles(range(5), sizes=(1, 5)), every.task.inputs(every.task.test)
    predictions.evaluate(every.network, every.layout, {}, made_UMP[0], inputs_NCHW, labels, listener=heard)
    wanted = heard.curve()
    assert curve.sizes == (1, 5)
    for name in ("accuracy", "nll", "calibration_error"):
        assert getattr(curve, name) == pytest.approx(getattr(wanted, name), abs=1e-6)


def test_the_likeliest_network_is_found() -> None:
    known, every = seen(), networks()
    examples = by_examples.draw_examples(every, known.condition_TD[:1], 30, seed=0)
    trained = every.fitted(known.mean_TP[:1], examples, 200, learning_rate=1e-2)
    better = replace(known, mean_TP=torch.cat([known.mean_TP[1:], trained]))
    ways = by_examples.other_ways(every, better, known.mean_TP[0], examples, 2, seed=0)
    assert torch.equal(ways.single["likeliest"], trained)
    assert ways.ensembles["mean_tuned"].shape == (1, 2, every.layout.num_params)


@pytest.fixture(scope="module")
def family_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("family") / "run"
    return folder, run(recipe_from_dict(RECIPE), folder, name="subsets")


def test_a_run_of_a_family_says_what_requests_give(family_run: tuple[Path, Results]) -> None:
    folder, results = family_run
    requests = json.loads((folder / "results.json").read_text())["requests"]
    starts = {f"{start}_{steps}" for start in STARTS for steps in (25, 100, 400)}
    assert requests["unseen"].keys() == (UNSEEN_NAMES.keys() - {"interpolation"}) | starts
    assert requests["fit"]["labels"]["20"].keys() == FIT_NAMES.keys()
    for accuracies in (requests["unseen"], requests["fit"]["labels"]["20"]):
        assert all(0 <= value <= 1 for value in accuracies.values())
    unseen = requests["unseen"]
    assert unseen["trained"] > unseen["generated"] > unseen["shuffled"] + 0.1
    assert unseen["warm_start"] == unseen["generated_25"] > unseen["generated"]
    low, high = requests["intervals"]["generated"]
    assert low <= unseen["generated"] <= high
    assert results.measured is not None and results.measured.copies is not None
    # What was written is read again, and stands in card, report and terminal.
    again = RunFolder(folder).read_results()
    assert again is not None and again.to_dict() == results.to_dict()
    card = render_card(again)
    assert results.measured.requests is not None
    verdict = results.measured.requests.verdicts[0]
    report = (folder / "report.html").read_text()
    assert "When training was ended" in report and "denoising loss on held-out checkpoints was lowest" in report
    for text in (card, report):
        assert verdict in " ".join(unescape(text).split()) and "ridge regression" in text
    assert "condition={'classes': ['0', '1']}" in card and "three code files" in card
    shown = CliRunner().invoke(app, ["info", str(folder)])
    assert shown.exit_code == 0 and "Asked for by description" in shown.output
    assert "--condition classes=0,1" in shown.output


@pytest.mark.slow  # the same as from the Hub, below, but for where the data set is found
def test_a_finished_family_run_is_audited_the_same(family_run: tuple[Path, Results], tmp_path: Path) -> None:
    folder, results = family_run
    done = CliRunner().invoke(app, ["audit", str(folder), "--output-dir", str(tmp_path / "audit")])
    assert done.exit_code == 0, done.output
    audited = RunFolder(tmp_path / "audit").read_results()
    assert audited is not None and audited.measured is not None and results.measured is not None
    assert audited.measured.requests == results.measured.requests


def test_an_audit_of_a_family_measures_all_or_says_that_it_cannot(
    family_run: tuple[Path, Results], tmp_path: Path
) -> None:
    folder, _ = family_run
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("checkpoints"))
    for place, metrics in ((folder, ["accuracy"]), (folder, ["frontier"]), (alone, ["accuracy"]), (alone, [])):
        options = [each for metric in metrics for each in ("--metric", metric)]
        failed = CliRunner().invoke(app, ["audit", str(place), *options, "--output-dir", str(tmp_path / "none")])
        assert isinstance(failed.exception, ValueError) and not (tmp_path / "none").exists()
        assert str(failed.exception) == (
            f"each network of {place} has a task of its own, so an audit asks for networks of held-out tasks and "
            "measures all that comes of it: give no metric, and the folder of its run, which holds checkpoints/, or "
            "its data set (--dataset)."
        )


def test_a_family_without_its_held_out_networks_is_refused(family_run: tuple[Path, Results], tmp_path: Path) -> None:
    folder, _ = family_run
    shutil.copytree(folder / "checkpoints", tmp_path / "seen", ignore=shutil.ignore_patterns(HELD_OUT))
    pipe, dataset = PDiffPipeline.from_pretrained(folder), CheckpointDataset.from_pretrained(tmp_path / "seen")
    with pytest.raises(ValueError, match="there are no networks of held-out tasks"):
        evaluate(pipe, dataset, None, tmp_path / "report")


def test_a_family_on_the_hub_is_judged_as_at_home(
    family_run: tuple[Path, Results], hub: LoopbackHub, tmp_path: Path
) -> None:
    folder, results = family_run
    push_pipeline_folder(folder, "user/subsets", checkpoints_id="user/subsets-networks")
    done = CliRunner().invoke(app, ["audit", "user/subsets", "--output-dir", str(tmp_path / "audit")])
    assert done.exit_code == 0, done.output
    audited = RunFolder(tmp_path / "audit").read_results()
    assert audited is not None and audited.measured is not None and results.measured is not None
    assert audited.measured.requests == results.measured.requests


def test_more_labels_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluate.num_labels is \[1\], expected"):
        recipe_from_dict({**RECIPE, "evaluate": {"num_labels": [1]}})


def test_likelihoods_are_sums_of_log_probabilities() -> None:
    every, params_NP = networks(), random_networks(2)
    examples = by_examples.draw_examples(every, bits(2), 6, seed=1)
    log_Nnc = every.log_probabilities(params_NP, examples.inputs_NnX)
    wanted = [
        sum(float(log_nc[row, label]) for row, label in enumerate(labels_n))
        for log_nc, labels_n in zip(log_Nnc, examples.labels_Nn.tolist(), strict=True)
    ]
    assert every.log_likelihood(params_NP, Examples(*vars(examples).values())).tolist() == pytest.approx(
        wanted, abs=1e-4
    )


def test_a_scalar_condition_that_can_be_measured_gets_a_slope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_from_dict(
        {
            "task": "digits",
            "network": {"name": "mlp", "hidden": [8]},
            "condition": "validation_accuracy",
            "collect": {"num_checkpoints": 20, "epochs": 2, "save_every": 1},
            "diffusion": {"steps": 20, "widths": [16]},
            "generate": {"num_models": 4, "num_inference_steps": 5},
            "evaluate": {"baselines": 0},
        }
    )
    results = run(recipe, tmp_path / "run", name="slope")
    assert results.measured is not None and (requests := results.measured.requests) is not None
    assert requests.slope is not None and not requests.unseen and len(requests.verdicts) == 1
    assert results.measured.accuracy and requests.verdicts[0] in " ".join(render_card(results).split())
    # Large networks are made some at a time; that changes nothing.
    pipe = PDiffPipeline.from_pretrained(tmp_path / "run")
    dataset, decode, sizes = (
        CheckpointDataset.from_pretrained(tmp_path / "run" / "checkpoints"),
        pipe.decode_latents,
        [],
    )
    assert dataset.task is not None
    judge = Judge(build_network(dataset.network), load_task(dataset.task), dataset.layout, dataset.frozen)

    def counted(latents_bCL: Tensor) -> Tensor:
        sizes.append(len(latents_bCL))
        return decode(latents_bCL)

    monkeypatch.setattr(pipe, "decode_latents", counted)
    for at_once, wanted in ((256, {88}), (40, {40, 8})):
        most = {"params": at_once, "latent": 256}
        monkeypatch.setattr(pipe, "default_batch_size", most.__getitem__)
        sizes.clear()
        again = slope.judge_slope(pipe, judge, guidance_scale=EvaluateConfig.guidance_scale, seed=0)
        assert again is not None and again.slope == pytest.approx(requests.slope, abs=1e-4) and set(sizes) == wanted


def test_a_slope_is_that_of_the_line_of_least_squares() -> None:
    asked = torch.tensor([0.0, 1.0, 2.0])
    assert slope._slope(asked, 3 + 0.5 * asked) == pytest.approx(0.5)
    assert slope._slope(asked, torch.tensor([1.0, 0.0, 1.0])) == pytest.approx(0.0)
    assert slope._slope(torch.ones(3), asked) == 0.0


def test_a_family_that_cannot_be_judged_is_refused_before_it_is_collected(tmp_path: Path) -> None:
    recipe = recipe_from_dict({**RECIPE, "collect": {**RECIPE["collect"], "held_out_tasks": 0}})
    with pytest.raises(ValueError, match=r"collect.held_out_tasks is 0, expected at least 1"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="condition is 'run', and a family has conditions of its own"):
        recipe_from_dict({**RECIPE, "condition": "run"})
    with pytest.raises(ValueError, match=r"evaluate.num_labels is 20, expected a list"):
        recipe_from_dict({**RECIPE, "evaluate": {"num_labels": 20}})


def test_more_labels_than_there_are_images_are_left_out_and_large_networks_in_files_give_the_same(
    family_run: tuple[Path, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdiff_hub.runs.requests.room._MOST_BYTES", 0)
    folder, results = family_run
    pipe, dataset = PDiffPipeline.from_pretrained(folder), CheckpointDataset.from_pretrained(folder / "checkpoints")
    config = EvaluateConfig(fit_tasks=1, num_labels=(5000,))
    found = evaluate(pipe, dataset, None, tmp_path, config=config).measured
    assert found is not None and found.requests is not None
    assert found.requests.fit is None and not any("labelled" in each for each in found.requests.verdicts)
    in_memory = None if results.measured is None else results.measured.requests
    assert in_memory is not None
    assert found.requests.unseen == in_memory.unseen and found.requests.ensembles == in_memory.ensembles


def test_room_for_large_networks_is_a_file_that_nobody_need_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pdiff_hub.runs.requests.room._MOST_BYTES", 4 * 5)
    assert room(5).shape == (5,)
    made_23 = room(2, 3)
    made_23[:] = torch.arange(6.0).view(2, 3)
    assert [*tmp_path.iterdir()] == [] and torch.equal(made_23.sum(dim=1), torch.tensor([3.0, 12.0]))
    with pytest.raises(PdiffError, match=r"networks to judge take 4000000\.0 GB, which could not be laid out in "):
        room(1000, 10**12)


@pytest.mark.slow  # with the defaults of the command, which fit for many tasks
def test_a_family_is_evaluated_by_command(family_run: tuple[Path, Results], tmp_path: Path) -> None:
    folder, results = family_run
    options = ("--dataset", str(folder / "checkpoints"), "--num-models", "1", "--output-dir", str(tmp_path))
    done = CliRunner().invoke(app, ["evaluate", str(folder), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = RunFolder(tmp_path).read_results()
    assert found is not None and found.measured is not None and results.measured is not None
    assert found.measured.requests is not None and results.measured.requests is not None
    assert found.measured.requests.unseen == results.measured.requests.unseen


def test_with_one_task_nothing_is_said_of_the_requests_of_others() -> None:
    names = (*SIMPLE_WAYS, "generated", "ensemble", "trained", "shuffled", "gaussian", "warm_start")
    each_U = {name: torch.rand(2, dtype=torch.float64) for name in (*names, "scratch_25", "scratch_100", "scratch_400")}
    assert "With other tasks' descriptions" in unseen_verdicts(each_U, 9, 0)[1]
    said = unseen_verdicts({name: each[:1] for name, each in each_U.items()}, 9, 0)
    assert "other tasks" not in said[1] and said[1].startswith("The normal distribution")
