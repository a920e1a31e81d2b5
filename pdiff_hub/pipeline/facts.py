"""What is known of a pipeline without measuring: out of its configuration, and out of the files in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import base_model
from pdiff_hub.recipes import RECIPE_FILE, load_recipe
from pdiff_hub.tasks import hub_id_of
from pdiff_hub.travelling.pipeline_pdiff import PDiffPipeline

RESULTS_FILE = "results.json"


def about(
    pipe: PDiffPipeline,
    network: Mapping[str, Any] | None,
    task: Mapping[str, Any] | None,
    *,
    name: str,
    recipe: dict[str, Any] | None,
    figures: list[str],
    checkpoints: dict[str, str | None] | None,
) -> dict[str, Any]:
    """The part of `results.json` that is known without measuring.

    Args:
        network, task: complete specs; None if unknown.
        recipe: the whole recipe. figures: stems of the pictures beside it.
        checkpoints: {"repo_id", "revision"} of the data set on the Hub that the pipeline was trained on.
    """
    return {
        "name": name,
        "task": task and task["dataset"],
        "task_dataset": task and hub_id_of(task),
        "network": network and network["name"],
        "base_model": network and base_model(network),
        "select": pipe.autoencoder.layout.select,
        "num_params": pipe.autoencoder.layout.num_params,
        "num_inference_steps": pipe.config.default_num_inference_steps,
        "recipe": recipe,
        "figures": figures,
        "checkpoints": checkpoints,
    }


def recipe_of(pipeline: Path) -> dict[str, Any] | None:
    """The whole recipe of the pipeline in that folder; None if it has none."""
    if recipe := read_results(pipeline).get("recipe"):
        return dict(recipe)
    return load_recipe(pipeline).to_dict() if (pipeline / RECIPE_FILE).is_file() else None


def checkpoints_of(pipeline: Path) -> dict[str, Any] | None:
    """{"repo_id", "revision"} of the data set that the results in a pipeline's folder name, if they do."""
    found = read_results(pipeline).get("checkpoints")
    if found is None:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("repo_id"), str):
        raise PdiffError(
            f"{pipeline / RESULTS_FILE}: checkpoints is {found!r}, expected repo_id and revision; give "
            "the data set that the pipeline was trained on."
        )
    return {"repo_id": found["repo_id"], "revision": found.get("revision")}


def measured_in_training(pipeline: Path) -> dict[str, Any]:
    """What training measured; out of `results.json` for a pipeline that travels without its `training/` folder."""
    summary = pipeline / "training" / "summary.json"
    if summary.exists():
        measured: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
        return measured
    results = read_results(pipeline)
    if not results:
        return {}
    audit, seconds = results.get("audit") or {}, results.get("seconds") or {}
    return {
        "deviation_r2": audit.get("deviation_r2"),
        "seconds_autoencoder": seconds.get("train_autoencoder"),
        "seconds_diffusion": seconds.get("train_diffusion"),
    }


def read_results(pipeline: Path) -> dict[str, Any]:
    """`results.json` in a pipeline's folder, {} if there is none. ValueError if it is no JSON object."""
    file = pipeline / RESULTS_FILE
    if not file.exists():
        return {}
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PdiffError(f"{file} is not JSON ({error}); evaluate the pipeline again.") from error
    if not isinstance(results, dict):
        raise PdiffError(f"{file} holds {type(results).__name__}, expected an object; evaluate the pipeline again.")
    return results
