"""Population training: the result of a seed does not depend on other seeds, and a killed collection goes on."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import processes
import pytest
import torch

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.population import PopulationConfig, collect_population
from pdiff_hub.collect.population.batched_training import BatchedTrainer
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.tasks import load_task

SPECS = {
    "mlp3": {"name": "mlp3", "hidden": [8, 8]},
    "convnet3": {"name": "convnet3", "widths": [4, 4, 4]},
    "convnet3-batch-norm": {"name": "convnet3", "widths": [4, 4, 4], "norm": "batch", "downsample": "stride"},
}


def resolved(name: str) -> dict[str, object]:
    return resolve_network(SPECS[name], in_channels=1, image_size=8, num_classes=10)


@pytest.mark.parametrize("name", SPECS)
def test_a_seed_does_not_depend_on_the_networks_beside_it(name: str) -> None:
    task, spec = load_task("digits"), resolved(name)
    inputs, labels = task.inputs(task.train)[:128], task.train.labels_N[:128]

    def train(seeds: list[int]) -> dict[str, torch.Tensor]:
        trainer = BatchedTrainer(
            lambda seed: build_network(spec, seed=seed),
            seeds,
            inputs,
            labels,
            epochs=2,
            batch_size=32,
            learning_rate=1e-3,
            weight_decay=0.1,
        )
        trainer.run_epoch()
        trainer.run_epoch()
        return trainer.stacked_state()

    alone, together = train([3]), train([1, 2, 3, 4])
    for key, tensor in alone.items():
        assert torch.allclose(tensor[0].float(), together[key][2].float(), rtol=1e-3, atol=1e-4), key


def test_collects_in_the_order_of_seeds_and_aligns(tmp_path: Path) -> None:
    task, spec = load_task("digits"), resolved("mlp3")
    options = {"num_checkpoints": 7, "epochs": 2, "networks_at_once": 3}
    plain = collect_population(task, spec, "all", PopulationConfig(**options, align=False), tmp_path / "a", seed=5)
    aligned = collect_population(task, spec, "all", PopulationConfig(**options), tmp_path / "b", seed=5)
    assert [row["seed"] for row in plain.metadata] == list(range(5, 12))
    assert aligned.collect["alignment"]["distance_after"] < aligned.collect["alignment"]["distance_before"]
    images = task.inputs(task.validation)
    for index in range(7):
        first, second = build_network(spec), build_network(spec)
        first.load_state_dict(plain.state_dict(index), strict=True)
        second.load_state_dict(aligned.state_dict(index), strict=True)
        assert torch.allclose(first(images), second(images), rtol=1e-4, atol=1e-4)
        accuracy = float((first(images).argmax(1) == task.validation.labels_N).float().mean())
        assert plain.metadata[index]["validation_accuracy"] == pytest.approx(accuracy)
    again = collect_population(task, spec, "all", PopulationConfig(**options), tmp_path / "b", seed=5)
    assert torch.equal(again.params_KP, aligned.params_KP)
    (tmp_path / "b" / "seeds-0-of-1").mkdir()  # a kill during clean-up leaves such a folder
    collect_population(task, spec, "all", PopulationConfig(**options), tmp_path / "b", seed=5)
    assert not (tmp_path / "b" / "seeds-0-of-1").exists()
    # Shares of this collection go, and folders of the user's stay.
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "seeds-3-of-4")
    index = json.loads((tmp_path / "b" / "seeds-3-of-4" / "dataset.json").read_text())
    own = {**index, "collect": {**index["collect"], "settings": again.collect["settings"]}}
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "seeds-0-of-2")
    (tmp_path / "b" / "seeds-0-of-2" / "dataset.json").write_text(json.dumps(own))
    (tmp_path / "b" / "seeds-1-of-2" / "parts").mkdir(parents=True)
    begun = {"settings": again.collect["settings"], "layout": {}}
    (tmp_path / "b" / "seeds-1-of-2" / "parts" / "settings.json").write_text(json.dumps(begun))
    for name in ("seeds-1-of-9", "seeds-all-of-mine", ".removed-seeds-2-of-3"):
        (tmp_path / "b" / name).mkdir()
        (tmp_path / "b" / name / "notes.txt").write_text("mine")
    (tmp_path / "b" / "seeds-2-of-9").symlink_to(tmp_path / "b" / "seeds-0-of-2", target_is_directory=True)
    collect_population(task, spec, "all", PopulationConfig(**options), tmp_path / "b", seed=5)
    stay = {"seeds-1-of-9", "seeds-all-of-mine", "seeds-2-of-9", "seeds-3-of-4"}
    assert {each.name for each in (tmp_path / "b").glob("*seeds-*")} == stay
    assert (tmp_path / "b" / "seeds-1-of-9" / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"collect\.epochs was 2 and is 3"):
        collect_population(task, spec, "all", PopulationConfig(**{**options, "epochs": 3}), tmp_path / "b", seed=5)


def test_a_killed_collection_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pdiff_hub.tasks import load_task\n"
        "from pdiff_hub.collect.population import *; from pdiff_hub.networks import resolve_network\n"
        f"spec = resolve_network({SPECS['mlp3']!r}, in_channels=1, image_size=8, num_classes=10)\n"
        "config = PopulationConfig(num_checkpoints=9, epochs=4, networks_at_once=3)\n"
        "collect_population(load_task('digits'), spec, 'all', config, Path(sys.argv[1]), seed=0)\n"
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = processes.start(code, str(killed))
    while process.is_alive() and not list(killed.rglob("part-00001*")):
        time.sleep(0.002)
    process.kill()
    process.join()
    for folder in (killed, whole):
        processes.run(code, str(folder))
    first, second = (CheckpointDataset.from_pretrained(folder) for folder in (killed, whole))
    assert torch.equal(first.params_KP, second.params_KP) and first.metadata == second.metadata


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_checkpoints": 1}, "num_checkpoints"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PopulationConfig(**options)


def test_a_part_of_a_network_from_scratch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="select: all"):
        collect_population(
            load_task("digits"), resolved("mlp3"), "head", PopulationConfig(num_checkpoints=2), tmp_path, seed=0
        )
