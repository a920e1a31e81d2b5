"""Cards are rendered from `results.json` alone, and their metadata is valid for the client and the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub

from pdiff_hub import PDiffPipeline
from pdiff_hub.hub import render_card, write_card
from pdiff_hub.recipes import load_recipe
from pdiff_hub.records import Results
from pdiff_hub.tasks import load_task

PIPELINES = Path(__file__).parent.parent / "pipelines"
SHIPPED = PIPELINES / "digits-mlp3"
JUDGED = sorted(file.parent.name for file in PIPELINES.glob("*/results.json"))

ROW = {"best": 0.97, "mean": 0.96, "median": 0.961, "std": 0.002}
RESULTS: dict[str, Any] = {
    "name": "it",
    "task": "mnist",
    "task_dataset": "ylecun/mnist",
    "network": "resnet18",
    "base_model": "some/resnet",
    "select": "all",
    "recipe": {"task": "mnist", "network": "resnet18"},
    "figures": ["frontier"],
    "checkpoints": {"repo_id": "me/them", "revision": "c" * 40},
    "num_params": 8970,
    "num_checkpoints": 200,
    "num_generated": 200,
    "num_inference_steps": 50,
    "accuracy": {"original": ROW, "generated": ROW, "ensemble": ROW},
    "similarity": {
        "original_original": 0.9,
        "generated_generated": 0.91,
        "original_generated": 0.92,
        "original_generated_max": None,
    },
    "audit": {
        "nearest_l2_generated": 0.1,
        "nearest_l2_original": 0.1,
        "deviation_r2": 0.99,
        "spread_ratio": 0.9,
        "max_iou_ensemble": 0.99,
        "max_iou_original": 0.98,
    },
    "methods": {
        name: {"method": name, "count": 3, "max_iou": 0.9, "nearest_l2": None}
        for name in ("original", "generated", "ensemble")
    },
    "frontier": {
        "area": {},
        "versus": {
            "original": {
                "difference": 0.001,
                "low": -0.01,
                "high": 0.02,
                "shared_novelty": 0.1,
                "verdict": "within the interval",
            },
            "ensemble": {"difference": None, "low": None, "high": None, "shared_novelty": None, "verdict": "undefined"},
        },
        "verdict": "At the same novelty, p-diff is within the interval of original.",
    },
    "ensembles": {
        name: {"sizes": [1, 2], "accuracy": [0.96, 0.97], "nll": [0.2, 0.1], "calibration_error": [0.0, 0.01]}
        for name in ("original", "generated")
    },
    "notes": ["A note."],
    "seconds": {"collect": 1.0, "train_autoencoder": 0.1, "train_diffusion": 60.0, "generate": None, "evaluate": 1.0},
}
# What `pipeline.facts.facts_of` returns for a pipeline that was not evaluated.
UNKNOWN = {
    key: RESULTS[key]
    for key in (
        "name",
        "task",
        "task_dataset",
        "network",
        "base_model",
        "select",
        "recipe",
        "checkpoints",
        "num_params",
        "num_inference_steps",
    )
} | {"figures": []}


def rendered(results: dict[str, Any], *, repo_id: str | None = None) -> str:
    return render_card(Results.from_dict(results), repo_id=repo_id)


def test_card_states_what_was_measured(hub: LoopbackHub) -> None:
    text = rendered(RESULTS, repo_id="me/other-name")
    card = ModelCard(text)
    card.validate(repo_type="model")
    data = card.data
    assert data.library_name == "diffusers" and data.license == "apache-2.0" and data.model_name == "other-name"
    assert data.datasets == ["ylecun/mnist", "me/them"] and data.base_model == "some/resnet"
    assert "neural-network-diffusion" in data.tags
    assert {result.metric_value for result in data.eval_results} == {0.97, 0.96, 0.961}
    assert {result.dataset_type for result in data.eval_results} == {"ylecun/mnist"}
    for part in (
        "# other-name",
        "| generated | 97.00 | 96.00 | 96.10 | 0.20 |",
        "A note.",
        "| max IoU of a generated one to any original | undefined |",
        "**At the same novelty, p-diff is within the interval of original.**",
        "| originals | 3 | 96.00 | 0.900 | undefined | +0.10 (-1.00 to +2.00) | within the interval |",
        "| 2 | 97.00 | 97.00 | 0.1000 | 0.1000 | 1.00 | 1.00 |",
        "![frontier](frontier.png)",
        "pdiff run recipe.yaml",
        "train diffusion 60.0",
        f"`me/them`, revision `{'c' * 40}`",
    ):
        assert part in text, part
    snippets = [part.split("\n```")[0].splitlines() for part in text.split("```python\n")[1:]]
    assert [len(lines) for lines in snippets] == [5, 5]
    assert 'from_pretrained("me/other-name")' in snippets[0][2]
    assert 'from_pretrained("me/other-name", trust_remote_code=True)' in snippets[1][2]


def test_card_of_less(hub: LoopbackHub) -> None:
    less = {
        **RESULTS,
        "methods": {},
        "frontier": None,
        "ensembles": None,
        "figures": [],
        "recipe": None,
        "checkpoints": None,
        "task_dataset": None,
        "base_model": None,
    }
    text = rendered(less)
    ModelCard(text).validate(repo_type="model")
    assert ".png" not in text and "As ensembles" not in text and "recipe is not known" in text
    assert "datasets:" not in text and "base_model" not in text and 'from_pretrained("path/to/it")' in text
    # These are the results of an audit without checkpoints.
    alone = {**less, "accuracy": {"generated": ROW}, "audit": {}, "similarity": {}, "num_checkpoints": None}
    text = rendered(alone)
    assert "200 generated." in text and "originals" not in text.split("## Accuracy")[1].split("## How")[0]
    text = rendered(UNKNOWN, repo_id="me/it")
    ModelCard(text).validate(repo_type="model")
    assert "was not evaluated" in text and "pdiff audit me/it --dataset me/them" in text
    assert "model-index" not in text and "pdiff run recipe.yaml" in text


@pytest.mark.parametrize("name", JUDGED)
def test_the_shipped_cards_are_rendered_from_their_results(name: str, hub: LoopbackHub) -> None:
    folder = PIPELINES / name
    results = json.loads((folder / "results.json").read_text())
    text = rendered(results)
    assert text == (folder / "README.md").read_text()
    ModelCard(text).validate(repo_type="model")
    assert any(request.path == "/api/validate-yaml" for request in hub.requests)
    assert results["recipe"] == load_recipe(folder).to_dict() and results["name"] == name
    assert all((folder / f"{stem}.png").is_file() and f"({stem}.png)" in text for stem in results["figures"])


def test_other_peoples_text_stays_text(tmp_path: Path, hub: LoopbackHub) -> None:
    odd = "{{ 7 * 7 }} {name} %s \n---\ntags: [x]"
    text = rendered({**RESULTS, "name": odd, "task": odd, "network": odd, "notes": [odd]})
    card = ModelCard(text)
    card.validate(repo_type="model")
    assert card.data.model_name == odd and "49" not in text.split("## Accuracy")[0] and "x" not in card.data.tags
    for wrong in ({}, {**RESULTS, "similarity": None}, {**RESULTS, "accuracy": [1]}, {**RESULTS, "num_params": "many"}):
        with pytest.raises(ValueError, match="evaluate the pipeline again"):
            rendered(wrong)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == rendered(RESULTS)


def test_the_shipped_pipeline_makes_networks_as_good_as_its_results_say() -> None:
    results = json.loads((SHIPPED / "results.json").read_text())
    pipe = PDiffPipeline.from_pretrained(SHIPPED)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(num_models=8, num_inference_steps=20, generator=torch.Generator().manual_seed(0))
    task = load_task("digits")
    images = task.inputs(task.test)
    accuracies = [
        (pipe.build_network(state)(images).argmax(1) == task.test.labels_N).float().mean() for state in out.state_dicts
    ]
    assert abs(float(torch.stack(accuracies).mean()) - results["accuracy"]["generated"]["mean"]) < 0.005
