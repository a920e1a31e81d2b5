"""`PDiffTrainer`: a run from Python with what is in memory; it goes on, refuses something else, and calls callbacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from typer.testing import CliRunner

from pdiff_hub import CheckpointDataset, PDiffArguments, PDiffCallback, PDiffPipeline, PDiffTrainer, load_task
from pdiff_hub.cli import app
from pdiff_hub.collect.population import PopulationConfig
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import memory
from pdiff_hub.recipes import load_recipe, recipe_from_dict
from pdiff_hub.runs.callbacks import PDiffControl, PDiffState, PDiffStopped
from pdiff_hub.safe_files import read_json
from pdiff_hub.tasks import memory as tasks_memory

DIGITS, LABELS = map(torch.tensor, load_digits(return_X_y=True))
IMAGES = (DIGITS.reshape(-1, 8, 8).float() / 16)[:400]
TASK = (IMAGES, LABELS[:400])
SMALL: dict[str, Any] = {
    "collect": {"num_checkpoints": 12, "epochs": 2, "save_every": 2},
    "diffusion": {"steps": 30, "widths": [16], "batch_size": 16, "log_every": 5},
    "generate": {"num_models": 4, "num_inference_steps": 5},
    "evaluate": {"baselines": 0},
}


class Own(nn.Module):
    """A network of a user's own, which is in no module that another process can import by its name in a notebook."""

    def __init__(self, num_classes: int = 10, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def module(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Own()


class Watching(PDiffCallback):
    def __init__(self, stop_at: int | None = None):
        self.seen: list[str] = []
        self.losses: list[float] = []
        self.stop_at = stop_at

    def on_stage_begin(self, args: PDiffArguments, state: PDiffState, control: PDiffControl) -> None:
        self.seen.append(f"begin {state.stage}")

    def on_stage_end(self, args: PDiffArguments, state: PDiffState, control: PDiffControl) -> None:
        self.seen.append(f"end {state.stage}")

    def on_step_end(self, args: PDiffArguments, state: PDiffState, control: PDiffControl) -> None:
        assert 0 < state.step <= state.num_steps
        if state.work == "train diffusion":
            self.losses += [] if state.loss is None else [state.loss]
            control.should_stop = state.step == self.stop_at

    def on_evaluate(self, args: PDiffArguments, state: PDiffState, control: PDiffControl, results: Any) -> None:
        self.seen.append(f"{results.facts.network} in {args.output_dir}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[PDiffTrainer, Watching]:
    """A run of a module and tensors that was stopped while it trained, and went on."""
    folder = tmp_path_factory.mktemp("trainer") / "own"
    stopping = Watching(stop_at=20)
    with pytest.raises(PDiffStopped, match="at step 20 of 'train diffusion'; call it again to go on"):
        PDiffTrainer(module(), TASK, PDiffArguments(folder, **SMALL), callbacks=[stopping], say=None).run()
    assert stopping.seen == ["begin collect", "end collect", "begin train"]
    watching = Watching()
    trainer = PDiffTrainer(module(), TASK, PDiffArguments(folder, **SMALL), callbacks=[watching], say=None)
    trainer.run()
    return trainer, watching


def test_a_run_of_what_is_in_memory(trained: tuple[PDiffTrainer, Watching]) -> None:
    trainer, watching = trained
    stages = [f"{when} {stage}" for stage in ("train", "generate", "evaluate") for when in ("begin", "end")]
    name = network_of(trainer)
    assert watching.seen == [*stages, f"{name} in {trainer.args.output_dir}"] and watching.losses
    assert name.startswith("memory:Own-") and trainer.results is not None
    assert trainer.results.facts.network == name and str(trainer.results.facts.task).startswith("memory:images-")
    assert len(trainer.collect()) == 12 and trainer.train().loss > 0
    out = trainer.generate()
    assert out.params is not None and out.state_dicts is not None
    judged = torch.stack([_flat(state) for state in out.state_dicts])
    assert torch.equal(load_file(trainer.folder.generated)["params"], judged)  # the networks that were judged
    network = trainer.build_network(out.state_dicts[0])
    assert isinstance(network, Own) and network(IMAGES[:3, None]).shape == (3, 10)
    assert trainer.report.is_file() and trainer.folder.card.is_file()
    shown = trainer._repr_markdown_()
    assert trainer.verdict in shown and "| originals |" in shown and repr(trainer) in shown


def network_of(trainer: PDiffTrainer) -> str:
    network = trainer.recipe.network
    assert isinstance(network, dict)
    return str(network["name"])


def _flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in state.values()])


def test_a_fine_tune_starts_from_the_weights_of_a_module(tmp_path: Path) -> None:
    still = {"collect": {"num_checkpoints": 2, "epochs": 0, "save_every": 1, "finetune_learning_rate": 1e-9}}
    own, other = (
        PDiffTrainer(module(seed), TASK, PDiffArguments(tmp_path / str(seed), **still), say=None).collect()
        for seed in (0, 1)
    )
    assert torch.allclose(own.params_KP[0], _flat(module(0).state_dict()), atol=1e-6)
    assert torch.allclose(other.params_KP[0], _flat(module(1).state_dict()), atol=1e-6)


def test_each_seed_has_weights_of_its_own(tmp_path: Path) -> None:
    config = PopulationConfig(num_checkpoints=3, epochs=1, align=False)
    args = PDiffArguments(tmp_path / "run", collect=config)
    dataset = PDiffTrainer(module(), TASK, args, say=None).collect()
    assert not torch.allclose(dataset.params_KP[0], dataset.params_KP[1], atol=1e-2)

    class Token(Own):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(10))

    with pytest.raises(PdiffError, match=r"module 'Token' of Token has no reset_parameters\(\).*give the class or a"):
        PDiffTrainer(Token(), TASK, args)
    first = PDiffTrainer(Token, TASK, PDiffArguments(tmp_path / "class", collect=config), say=None).collect()
    assert len(first) == 3


def test_a_stopped_run_is_not_mixed_with_another(trained: tuple[PDiffTrainer, Watching]) -> None:
    folder = Path(trained[0].args.output_dir)
    args = PDiffArguments(folder, **SMALL)
    other = module(seed=1)
    with pytest.raises(PdiffError, match=r"begun with another network .* go on with those that are kept") as refused:
        PDiffTrainer(other, TASK, args, say=None).run()
    kept = folder / "training" / "network.safetensors"
    assert f"load_file({str(kept)!r})" in str(refused.value)
    other.load_state_dict(load_file(kept))
    assert PDiffTrainer(other, TASK, args, say=None).recipe == trained[0].recipe
    brighter = (IMAGES * 2, LABELS[:400])
    with pytest.raises(PdiffError, match=r"task was 'memory:images-.*' and is 'memory:images-.*Use these settings"):
        PDiffTrainer(module(), brighter, args, say=None).run()
    with pytest.raises(PdiffError, match="select was 'all' and is 'head'"):
        PDiffTrainer(module(), TASK, PDiffArguments(folder, **SMALL, select="head"), say=None).run()


def test_another_process_says_what_it_needs(
    trained: tuple[PDiffTrainer, Watching], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(trained[0].args.output_dir)
    monkeypatch.setattr(memory, "_given", {})
    pipe = PDiffPipeline.from_pretrained(folder)
    state = pipe(generator=torch.Generator().manual_seed(0)).state_dicts[0]
    with pytest.raises(PdiffError, match=r"'memory:Own-.*' was given in Python.*build_network\(state_dict, network="):
        pipe.build_network(state)
    assert pipe.build_network(state, network=module(1))(IMAGES[:2, None]).shape == (2, 10)
    assert isinstance(pipe.build_network(state, network=Own), Own)
    with pytest.raises(PdiffError, match="the network that was given does not fit the weights beside it: tensor"):
        pipe.build_network(state, network=lambda: Own(width=9))
    with monkeypatch.context() as gone:
        gone.setattr(tasks_memory, "_given", {})
        failed = CliRunner().invoke(app, ["audit", folder, "--output-dir", str(tmp_path / "audit")])
    assert isinstance(failed.exception, PdiffError) and "--images FOLDER" in str(failed.exception)
    assert "were given in Python and are not on the disk" in str(failed.exception)
    failed = CliRunner().invoke(app, ["run", folder, "--output-dir", folder])
    assert isinstance(failed.exception, PdiffError) and "put it into a module and name it" in str(failed.exception)
    dataset = CheckpointDataset.from_pretrained(Path(folder) / "checkpoints")
    again = PDiffTrainer(module(), TASK, tmp_path / "again", checkpoints=dataset, say=None)
    assert again.recipe.method == "import" and dataset.network["name"] in memory._given


def test_checkpoints_that_are_there_already(tmp_path: Path) -> None:
    states = [module(seed).state_dict() for seed in range(8)]
    args = PDiffArguments(tmp_path / "run", **{**SMALL, "collect": {}})
    trainer = PDiffTrainer(Own(), TASK, args, checkpoints=states, say=None)
    assert torch.equal(trainer.collect().params_KP, torch.stack([_flat(state) for state in states]))
    trainer.run()
    there = CheckpointDataset.from_pretrained(tmp_path / "run" / "checkpoints")
    assert len(there) == 8
    recorded = read_json(tmp_path / "run" / "results.json")["recipe"]["collect"]
    assert recorded["method"] == "import" and recorded["source"].startswith("memory:checkpoints-")
    # Weights that will be replaced do not matter: it is the same run.
    assert PDiffTrainer(Own(), TASK, args, checkpoints=states, say=None).run() is not None
    with pytest.raises(PdiffError, match=r"collect\.source was 'memory:checkpoints-"):
        PDiffTrainer(Own(), TASK, args, checkpoints=states[1:], say=None).run()
    whole = PDiffTrainer(None, TASK, tmp_path / "whole", checkpoints=tmp_path / "run" / "checkpoints", say=None)
    assert network_of(whole) == network_of(trainer)
    wrongs: list[tuple[Any, str]] = [
        ([], "expected a CheckpointDataset"),
        (states[0], "expected a CheckpointDataset"),
        ([states[0], {"layers.1.weight": torch.zeros(8, 64)}], "missing"),
        ([states[0], 3], "checkpoint 1 is int, expected a state dict or a module"),
    ]
    for wrong, message in wrongs:
        with pytest.raises(ValueError, match=message):
            PDiffTrainer(Own(), TASK, tmp_path / "wrong", checkpoints=wrong)


def test_a_trainer_writes_what_the_command_writes(tmp_path: Path) -> None:
    options = ["task=digits", "network=mlp", "evaluate.baselines=0", "collect.num_checkpoints=4", "collect.epochs=1"]
    options += ["diffusion.steps=10", "diffusion.widths=[16]", "generate.num_models=2"]
    recipe = load_recipe("digits-mlp3", options)
    done = CliRunner().invoke(
        app, ["run", "digits-mlp3", "--output-dir", str(tmp_path / "command"), *_overrides(options)]
    )
    assert done.exit_code == 0, done.output
    args = PDiffArguments.of(recipe, tmp_path / "python", device="cpu", log_with=None)
    PDiffTrainer("mlp", "digits", args, name="digits-mlp3", say=None).run()
    files = [file.relative_to(tmp_path / "command") for file in (tmp_path / "command").rglob("*") if file.is_file()]
    timed = {"results.json", "report.html", "README.md", "seconds.json", "summary.json", "autoencoder.json"}
    timed.add("finished.json")  # the command's own
    for file in files:
        if file.name in timed or file.suffix in (".pt", ".pkl", ".bin"):
            continue
        assert (tmp_path / "python" / file).read_bytes() == (tmp_path / "command" / file).read_bytes(), file
    results = [json.loads((tmp_path / each / "results.json").read_text()) for each in ("command", "python")]
    for each in results:
        del each["seconds"]
    assert results[0] == results[1]


def _overrides(options: list[str]) -> list[str]:
    return [part for option in options for part in ("--override", option)]


def test_arguments_are_those_of_a_recipe() -> None:
    args = PDiffArguments("runs/own", num_checkpoints=20, num_models=5, autoencoder={"preset": "paper"})
    made = recipe_from_dict(
        {
            "task": "digits",
            "network": "mlp3",
            "collect": {"num_checkpoints": 20},
            "generate": {"num_models": 5},
            "autoencoder": {"preset": "paper"},
        }
    )
    assert args.recipe("digits", "mlp3") == made
    assert PDiffArguments("x").recipe("digits", "mlp") == recipe_from_dict({"task": "digits", "network": "mlp"})
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"collect": {"num_checkpoint": 3}}, "unknown recipe key in collect: 'num_checkpoint'"),
        ({"collect": {"num_checkpoints": "x"}}, "collect.num_checkpoints is 'x', expected a whole number"),
        ({"num_checkpoints": 1}, "num_checkpoints must be an integer from 2"),
        ({"num_checkpoints": 20, "collect": {"num_checkpoints": 30}}, "num_checkpoints is 20, and collect has 30"),
        ({"num_checkpoints": 20, "collect": {"method": "family", "family": "rotation"}}, "is for fine-tunes and"),
        ({"diffusion": 3}, "diffusion is 3, expected an object with its options, or a mapping"),
        ({"seed": -1}, "seed is -1"),
        ({"select": 5}, "select is 5"),
        ({"device": "meta"}, "device meta cannot be used here"),
        ({"device": "nothing"}, "device nothing cannot be used here"),
    ]
    for options, message in wrongs:
        with pytest.raises(ValueError, match=message):
            PDiffArguments("x", **options)
    number: Any = 3
    with pytest.raises(PdiffError, match="output_dir is 3"):
        PDiffArguments(number)


def test_what_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    seven = (IMAGES[LABELS[:400] < 7], LABELS[:400][LABELS[:400] < 7])
    wrong: list[tuple[Any, Any, str]] = [
        (Own(), seven, "it has 10 logits, and the task has 7 classes; give its last layer 7 outputs"),
        (3, TASK, "network is int, expected a module"),
        (None, TASK, "nothing says which network"),
        (Own(), None, "nothing says which images"),
        (Own(), (IMAGES, LABELS), "400 images and 1797 labels"),
        (Own(), IMAGES, "a task in memory is Tensor; expected"),
        (Own().to("meta"), TASK, "on the meta device"),
    ]
    for network, task, message in wrong:
        with pytest.raises(PdiffError, match=message):
            PDiffTrainer(network, task, tmp_path / "wrong")
    with pytest.raises(PdiffError, match="nothing says where"):
        PDiffTrainer(Own(), TASK)
    classes: Any = [Watching]
    with pytest.raises(PdiffError, match="expected objects of subclasses of PDiffCallback"):
        PDiffTrainer(Own(), TASK, tmp_path / "wrong", callbacks=classes)
    one: Any = Watching()
    with pytest.raises(PdiffError, match="expected a list of them"):
        PDiffTrainer(Own(), TASK, tmp_path / "wrong", callbacks=one)
    assert not (tmp_path / "wrong").exists()
    (tmp_path / "file").touch()
    with pytest.raises(PdiffError, match="file is a file, expected a folder"):
        PDiffTrainer(Own(), TASK, tmp_path / "file", say=None).collect()


def test_names_and_tasks_of_load_task_work_too(tmp_path: Path) -> None:
    trainer = PDiffTrainer({"name": Own, "width": 5}, load_task("digits"), tmp_path)
    assert trainer.recipe.network == {"name": f"{__name__}:Own", "width": 5}
    assert PDiffTrainer("mlp3", tmp_path, tmp_path).recipe.task == str(tmp_path)
    assert PDiffTrainer(lambda num_classes: Own(num_classes), "digits", tmp_path).recipe.task == "digits"
