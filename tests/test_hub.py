"""Cards come from `results.json` and the recipe alone, and are valid metadata."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import ModelCard

from pdiff_hub.evaluation.evaluate import FIGURES
from pdiff_hub.hub import render_card
from pdiff_hub.pipeline_pdiff import PDiffPipeline
from pdiff_hub.recipes import load_recipe
from pdiff_hub.tasks import load_task

SHIPPED = Path(__file__).parent.parent / "pipelines" / "digits-mlp3"

ROW = {"best": 0.97, "mean": 0.96, "median": 0.961, "std": 0.002}
RESULTS = {
    "task": "digits", "network": "mlp3", "select": "all", "num_params": 8970, "num_checkpoints": 200,
    "num_generated": 200, "num_inference_steps": 50,
    "accuracy": {"original": ROW, "generated": ROW, "ensemble": ROW},
    "similarity": {"original_original": 0.9, "generated_generated": 0.91, "original_generated": 0.92,
                   "original_generated_max": None},
    "audit": {"nearest_l2_generated": 0.1, "nearest_l2_original": 0.1, "deviation_r2": 0.99, "spread_ratio": 0.9,
              "max_iou_ensemble": 0.99, "max_iou_original": 0.98},
    "methods": {name: {"method": name, "count": 3, "max_iou": 0.9, "nearest_l2": None}
                for name in ("original", "generated", "ensemble")},
    "frontier": {"area": {}, "versus": {
        "original": {"difference": 0.001, "low": -0.01, "high": 0.02, "shared_novelty": 0.1,
                     "verdict": "within the interval"},
        "ensemble": {"difference": None, "low": None, "high": None, "shared_novelty": None, "verdict": "undefined"}},
        "verdict": "At the same novelty, p-diff is within the interval of original."},
    "ensembles": {name: {"sizes": [1, 2], "accuracy": [0.96, 0.97], "nll": [0.2, 0.1], "calibration_error": [0.0, 0.01]}
                  for name in ("original", "generated")},
    "notes": [],
    "seconds": {"collect": 1.0, "train_autoencoder": 0.1, "train_diffusion": 60.0, "generate": None, "evaluate": 1.0},
}


def test_card_states_what_was_measured() -> None:
    text = render_card(RESULTS, load_recipe("digits-mlp3").to_dict(), "digits-mlp3", figures=["frontier"])
    card = ModelCard(text)
    assert card.data.library_name == "diffusers" and card.data.license == "apache-2.0"
    assert {result.metric_value for result in card.data.eval_results} == {0.97, 0.96, 0.961}
    assert "| generated | 97.00 | 96.00 | 96.10 | 0.20 |" in text
    assert "| max IoU of a generated one to any original | undefined |" in text
    assert "**At the same novelty, p-diff is within the interval of original.**" in text
    assert "| originals | 3 | 96.00 | 0.900 | undefined | +0.10 (-1.00 to +2.00) | within the interval |" in text
    assert "| 2 | 97.00 | 97.00 | 0.1000 | 0.1000 | 1.00 | 1.00 |" in text
    assert "frontier.png" in text and "pdiff run digits-mlp3" in text
    assert ".png" not in render_card(RESULTS, {}, "x", figures=[])
    assert "As ensembles" not in render_card({**RESULTS, "frontier": None}, {}, "x", figures=[])


def test_the_shipped_card_is_rendered_from_its_results() -> None:
    results = json.loads((SHIPPED / "results.json").read_text())
    card = render_card(results, load_recipe(SHIPPED).to_dict(), SHIPPED.name,
                       figures=[stem for stem in FIGURES if (SHIPPED / f"{stem}.png").exists()])
    assert card == (SHIPPED / "README.md").read_text()


def test_the_shipped_pipeline_makes_networks_as_good_as_its_results_say() -> None:
    results = json.loads((SHIPPED / "results.json").read_text())
    pipe = PDiffPipeline.from_pretrained(SHIPPED)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(num_models=8, num_inference_steps=20, generator=torch.Generator().manual_seed(0))
    task = load_task("digits")
    images = task.inputs(task.test)
    accuracies = [(pipe.build_network(state)(images).argmax(1) == task.test.labels_N).float().mean()
                  for state in out.state_dicts]
    assert abs(float(torch.stack(accuracies).mean()) - results["accuracy"]["generated"]["mean"]) < 0.005
