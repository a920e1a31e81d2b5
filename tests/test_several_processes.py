"""Two processes collect, generate and judge what one does; a failure of one ends all, and other numbers go on."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.cli import app
from pdiff_hub.processes import Processes

PDIFF = "from pdiff_hub.cli import main; main()"
SMALL = [
    "network.hidden=[8, 8]",
    "collect.num_checkpoints=12",
    "collect.epochs=2",
    "diffusion.steps=30",
    "diffusion.widths=[16]",
    "diffusion.batch_size=16",
    "generate.num_models=5",
    "generate.num_inference_steps=5",
    "evaluate.baselines=3",
    "evaluate.fine_tune_steps=2",
]
OVERRIDES = [argument for override in SMALL for argument in ("--override", override)]


def alone(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def together(*arguments: str, count: int = 2) -> str:
    """What the main process says; the others say nothing."""
    (code, said), *others = processes.together(PDIFF, *arguments, count=count)
    assert code == 0, said
    assert others == [(0, "")] * (count - 1)
    assert f"{count} processes share the work" in said
    return said


def content(file: Path) -> dict[str, Any]:
    """What a JSON file says of networks."""
    return {key: value for key, value in json.loads(file.read_text()).items() if key not in ("seconds", "environment")}


def assert_close(one: Any, other: Any, name: str = "") -> None:
    """That two contents of JSON files are the same, but for rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key, value in one.items():
            assert_close(value, other[key], f"{name}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), name
        for number, value in enumerate(one):
            assert_close(value, other[number], f"{name}[{number}]")
    elif isinstance(one, float):
        equal = math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6) or (math.isnan(one) and math.isnan(other))
        assert equal, (name, one, other)
    else:
        assert one == other, name


RUN = ["run", "digits-mlp3-seeds", *OVERRIDES, "--output-dir"]


@pytest.fixture(scope="module")
def said_and_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a whole run in two processes said, and its folder."""
    folder = tmp_path_factory.mktemp("run") / "pipeline"
    return together(*RUN, str(folder)), folder


@pytest.fixture(scope="module")
def run_dir(said_and_run: tuple[str, Path]) -> Path:
    return said_and_run[1]


@pytest.mark.slow
def test_a_whole_run(said_and_run: tuple[str, Path], tmp_path: Path) -> None:
    said, folder = said_and_run
    assert said.count("1/4 collect checkpoints") == 1 and "report.html" in said
    names = {file.name for file in folder.iterdir()}
    assert {"README.md", "report.html", "results.json", "recipe.yaml", "model_index.json", "checkpoints"} <= names
    assert not [file for file in folder.rglob("*") if file.name.startswith((".pdiff-lock", ".unfinished"))]
    assert "was finished before" in alone(*RUN, str(folder))
    alone("collect", "digits-mlp3-seeds", "--output-dir", str(tmp_path), *OVERRIDES)
    one, two = (CheckpointDataset.from_pretrained(place) for place in (tmp_path, folder / "checkpoints"))
    assert [row["seed"] for row in one.metadata] == [row["seed"] for row in two.metadata]
    assert torch.allclose(one.params_KP, two.params_KP, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(run_dir, folder)
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "generated")
    assert "Going on" in alone(*RUN, str(folder))
    one, two = (load_file(each / "generated" / "params.safetensors")["params"] for each in (folder, run_dir))
    assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)
    for name in ("results.json", "networks.json"):
        assert_close(*(content(each / name) for each in (folder, run_dir)))


@pytest.mark.parametrize("count", [2, 3])
def test_they_generate_the_same_networks(tmp_path: Path, count: int) -> None:
    options = ["--num-models", str(2 * count - 3), "--seed", "3"]  # with 2, one has nothing to do
    alone("generate", "digits-mlp3", *options, "--output-dir", str(tmp_path / "one"))
    together("generate", "digits-mlp3", *options, "--output-dir", str(tmp_path / "all"), count=count)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert sorted(file.name for file in (tmp_path / "all").iterdir()) == files
    first, second = ((tmp_path / each / "generated.json").read_text() for each in ("one", "all"))
    assert first == second
    for name in (name for name in files if name.endswith(".safetensors")):
        one, other = (load_file(tmp_path / each / name) for each in ("one", "all"))
        assert all(torch.allclose(tensor, other[key], rtol=1e-4, atol=1e-6) for key, tensor in one.items())


JUDGING = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.evaluation.baselines import baseline_variants
from pdiff_hub.evaluation.evaluate import evaluate_networks
from pdiff_hub.networks import build_network
from pdiff_hub.processes import this_run
from pdiff_hub.tasks import load_recorded_task

pipe = PDiffPipeline.from_pretrained(sys.argv[1])
every = CheckpointDataset.from_pretrained(pipe.folder / "checkpoints")
dataset = every.select_rows(range(9))
task, network = load_recorded_task(dataset.task), build_network(dataset.network)
variants = baseline_variants(network, task, pipe.autoencoder, fine_tune_steps=1)
found = evaluate_networks(
    network, task, dataset, dataset.params_KP[:5] + 0.01, deviation_r2=None, fresh=every.select_rows(range(90, 93)),
    autoencoder=pipe.autoencoder, num_originals=7, variants=variants, num_models=2,
)
file = Path(sys.argv[2]) / f"{this_run().count}-{this_run().index}.json"
file.write_text(json.dumps(asdict(found)))
"""


def test_they_judge_the_same(tmp_path: Path) -> None:
    pipeline = str(Path(__file__).parents[1] / "pipelines" / "digits-mlp3")
    for count in (1, 2):
        assert processes.together(JUDGING, pipeline, str(tmp_path), count=count) == [(0, "")] * count
    one, *two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    for each in two:  # all know all
        assert_close(one, each)


@pytest.mark.slow
def test_a_pipeline_is_judged_as_in_its_run(run_dir: Path, tmp_path: Path) -> None:
    together("evaluate", str(run_dir), "--output-dir", str(tmp_path))
    assert_close(content(tmp_path / "networks.json"), content(run_dir / "networks.json"))
    assert (tmp_path / "report.html").exists() and not list(tmp_path.glob("unfinished*"))


def test_a_fine_tune_is_collected_by_one(tmp_path: Path) -> None:
    together("collect", "digits-mlp3", "--output-dir", str(tmp_path / "two"), *OVERRIDES)
    alone("collect", "digits-mlp3", "--output-dir", str(tmp_path / "one"), *OVERRIDES)
    first, second = (CheckpointDataset.from_pretrained(tmp_path / each) for each in ("one", "two"))
    assert torch.equal(first.params_KP, second.params_KP)


def test_an_error_of_all_is_said_once_and_one_of_one_ends_all(tmp_path: Path) -> None:
    ended = processes.together(PDIFF, "generate", str(tmp_path / "none"), "--output-dir", str(tmp_path / "out"))
    assert ended[0][0] == 1 and ended[0][1].count("\n") == 2 and "pdiff: " in ended[0][1]
    assert ended[1][1] == "" and ended[1][0] != 0
    failing = (
        "import os; from pdiff_hub.runs import generating; from pdiff_hub.errors import PdiffError\n"
        "def fail(*_, **__): raise PdiffError('the disk is full.')\n"
        "if os.environ['RANK'] == '1': generating.write_safetensors = fail\n"
    )
    arguments = ["generate", "digits-mlp3", "--num-models", "4", "--output-dir", str(tmp_path / "out")]
    (first, said), (second, other) = processes.together(failing + PDIFF, *arguments)
    assert second == 1 and "pdiff: process 1: the disk is full." in other and other.count("\n") == 1
    assert first != 0 and "Traceback" not in said
    assert not (tmp_path / "out" / "generated.json").exists()
    together(*arguments)  # goes on where that has stopped
    assert (tmp_path / "out" / "generated.json").exists()


def test_a_killed_one_ends_all(tmp_path: Path) -> None:
    killed = (
        "import os, signal; from pdiff_hub.runs import generating\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ['RANK'] == '1': generating.write_safetensors = die\n"
    )
    arguments = ["generate", "digits-mlp3", "--num-models", "4", "--output-dir", str(tmp_path / "out")]
    (first, said), (second, _) = processes.together(killed + PDIFF, *arguments)
    assert second == -9 and first != 0 and "Traceback" not in said


def test_commands_of_one_process_say_so(tmp_path: Path) -> None:
    (code, said), _ = processes.together(PDIFF, "push", str(tmp_path), "somebody/something")
    assert code == 1 and "pdiff push works in one process, and a launcher started 2" in said


def test_shares() -> None:
    alone = Processes()
    assert alone.share(5) == range(5) and alone.gathered("x") == ["x"] and alone.told(1) == 1
    costs = [1.0, 1.0, 5.0, 1.0, 1.0, 1.0]
    parts = [Processes(index, 2).share_by_cost(costs) for index in range(2)]
    assert parts == [[2], [0, 1, 3, 4, 5]]
    assert Processes(3, 4).share_by_cost([1.0, 2.0]) == []


def test_a_population_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    collecting = (
        "import sys, os; from pdiff_hub.collect.journal import CheckpointJournal\n"
        "append = CheckpointJournal.append\n"
        "def dying(self, *given):\n"
        "    append(self, *given)\n"
        "    if self.num_checkpoints >= 4 and os.environ['RANK'] == '1': os._exit(3)\n"
        "CheckpointJournal.append = dying\n"
    )
    options = [*OVERRIDES, "--override", "collect.networks_at_once=2"]
    arguments = ["collect", "digits-mlp3-seeds", *options, "--output-dir"]
    ended = processes.together(collecting + PDIFF, *arguments, str(tmp_path / "killed"))
    assert ended[1][0] == 3
    assert sorted(each.name for each in (tmp_path / "killed").glob("seeds-*")) == ["seeds-0-of-2", "seeds-1-of-2"]
    kept = (tmp_path / "killed" / "seeds-1-of-2" / "parts" / "part-00001.safetensors").stat().st_mtime_ns
    assert kept
    alone(*arguments, str(tmp_path / "killed"))
    alone(*arguments, str(tmp_path / "whole"))
    first, second = (CheckpointDataset.from_pretrained(tmp_path / each) for each in ("killed", "whole"))
    assert torch.allclose(first.params_KP, second.params_KP, rtol=1e-2, atol=1e-3)
    assert not list((tmp_path / "killed").glob("seeds-*"))
