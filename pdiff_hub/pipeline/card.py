"""The card of a pipeline. It is rendered from the results alone: nothing in it is typed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.table import result_tables, seconds_text, training_text, verdict
from pdiff_hub.networks.factory import functions_in
from pdiff_hub.records import Results, RunFolder
from pdiff_hub.safe_files import replacing
from pdiff_hub.transfer.cards import accuracy_result, markdown_table
from pdiff_hub.transfer.cards import render_card as fill_in
from pdiff_hub.travelling.conditioner import ConditionSpec

_TEMPLATE = Path(__file__).with_name("card_template.md")
_TAGS = ["neural-network-diffusion", "weight-generation", "pdiff-hub"]


def render_card(results: Results, *, repo_id: str | None = None) -> str:
    """The card (README.md) of a pipeline, with or without measurements.

    Args:
        repo_id: the pipeline's id on the Hub; None for a folder.
    """
    facts, measured = results.facts, results.measured
    name = repo_id.split("/")[-1] if repo_id else facts.name
    tables = {} if measured is None else result_tables(measured)
    return fill_in(
        _TEMPLATE,
        _metadata(results, name),
        name=name,
        repo_id=repo_id,
        facts=facts,
        measured=measured,
        num_params=f"{facts.num_params:,}",
        recipe=facts.recipe and yaml.safe_dump(facts.recipe, sort_keys=False).rstrip(),
        functions=" and ".join(f"`{name}`" for name in functions_in(facts.recipe or {}).values()),
        verdict=verdict(results),
        training=training_text(results),
        asked=_asked(results),
        seconds=seconds_text(results),
        notes={part: table.note for part, table in tables.items()},
        **{part: markdown_table(table.columns, table.rows) for part, table in tables.items()},
    )


def _asked(results: Results) -> str:
    """The argument that asks a conditional pipeline for something; empty for others."""
    spec = None if results.facts.conditions is None else ConditionSpec.from_dict(results.facts.conditions)
    return "" if spec is None else f"condition={spec.example()!r}, "


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
                accuracy_result(name, value, facts.task, facts.task_dataset)
                for name, value in (
                    ("accuracy of the generated network that is best on validation", generated.best),
                    ("mean accuracy of generated networks", generated.mean),
                    ("median accuracy of generated networks", generated.median),
                )
            ],
        }
    return ModelCardData(library_name="diffusers", license="apache-2.0", tags=_TAGS, **more)
