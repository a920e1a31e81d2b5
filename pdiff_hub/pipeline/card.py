"""The card of a pipeline, rendered from its results alone: nothing in it is typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.table import (
    ACCURACY_COLUMNS,
    ACCURACY_NOTE,
    AUDIT_COLUMNS,
    ENSEMBLE_COLUMNS,
    METHOD_COLUMNS,
    METHOD_NOTE,
    accuracy_rows,
    audit_rows,
    ensemble_rows,
    method_rows,
    seconds_text,
    verdict,
)
from pdiff_hub.records import Results, RunFolder
from pdiff_hub.safe_files import replacing
from pdiff_hub.transfer.cards import markdown_table
from pdiff_hub.transfer.cards import render_card as fill_in

_TEMPLATE = Path(__file__).with_name("card_template.md")
_TAGS = ["neural-network-diffusion", "weight-generation", "pdiff-hub"]


def render_card(results: Results, *, repo_id: str | None = None) -> str:
    """The card (README.md) of a pipeline; one without measurements has a card too.

    Args:
        repo_id: where on the Hub the pipeline is; None for a folder.
    """
    facts, measured = results.facts, results.measured
    name = repo_id.split("/")[-1] if repo_id else facts.name
    tables: dict[str, str] = {}
    if measured is not None:
        tables["accuracy"] = markdown_table(ACCURACY_COLUMNS, accuracy_rows(measured))
        if measured.audit is not None:
            tables["audit"] = markdown_table(AUDIT_COLUMNS, audit_rows(measured))
        if measured.frontier is not None:
            tables["methods"] = markdown_table(METHOD_COLUMNS, method_rows(measured))
        if measured.ensembles is not None:
            tables["ensembles"] = markdown_table(ENSEMBLE_COLUMNS, ensemble_rows(measured.ensembles))
    return fill_in(
        _TEMPLATE,
        _metadata(results, name),
        name=name,
        repo_id=repo_id,
        facts=facts,
        measured=measured,
        num_params=f"{facts.num_params:,}",
        recipe=facts.recipe and yaml.safe_dump(facts.recipe, sort_keys=False).rstrip(),
        verdict=verdict(results),
        seconds=seconds_text(results),
        accuracy_note=ACCURACY_NOTE,
        method_note=METHOD_NOTE,
        **tables,
    )


def write_card(folder: Path) -> None:
    """Render the card of the pipeline in `folder` from its `results.json`."""
    place = RunFolder(folder)
    results = place.read_results()
    if results is None:
        raise PdiffError(f"{folder} has no {place.results.name}; evaluate the pipeline first.")
    with replacing(place.card) as temporary:
        temporary.write_text(render_card(results), encoding="utf-8")


def _metadata(results: Results, name: str) -> ModelCardData:
    facts, more = results.facts, dict[str, Any]()
    checkpoints = facts.checkpoints and facts.checkpoints.repo_id
    if datasets := [each for each in (facts.task_dataset, checkpoints) if each]:
        more["datasets"] = datasets
    if facts.base_model:
        more["base_model"] = facts.base_model
    generated = None if results.measured is None else results.measured.accuracy.get("generated")
    if generated is not None and facts.task is not None:
        more |= {
            "model_name": name,
            "eval_results": [
                EvalResult(
                    task_type="image-classification",
                    dataset_type=facts.task_dataset or facts.task,
                    dataset_name=facts.task,
                    dataset_split="test",
                    metric_type="accuracy",
                    metric_name=f"{key} accuracy of generated networks",
                    metric_value=round(getattr(generated, key), 4),
                )
                for key in ("best", "mean", "median")
            ],
        }
    return ModelCardData(library_name="diffusers", license="apache-2.0", tags=_TAGS, **more)
