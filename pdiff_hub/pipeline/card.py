"""The card of a pipeline. It is rendered from the results alone: nothing in it is typed by hand."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.table import result_tables, seconds_text, training_text, verdict
from pdiff_hub.networks.factory import functions_in, is_dotted, module_of
from pdiff_hub.records import Results, RunFolder
from pdiff_hub.safe_files import replacing
from pdiff_hub.transfer.cards import accuracy_result, markdown_table
from pdiff_hub.transfer.cards import render_card as fill_in
from pdiff_hub.travelling.conditioner import ConditionSpec

_TEMPLATE = Path(__file__).with_name("card_template.md")
_TAGS = ["neural-network-diffusion", "weight-generation", "pdiff-hub"]


def render_card(results: Results, *, repo_id: str | None = None, files: Collection[str] = ()) -> str:
    """The card (README.md) of a pipeline, with or without measurements.

    Args:
        repo_id: the pipeline's id on the Hub; None for a folder.
        files: that lie beside the card, by their paths there; sources of functions are named if they are among them.
    """
    facts, measured = results.facts, results.measured
    name = repo_id.split("/")[-1] if repo_id else facts.name
    tables = {} if measured is None else result_tables(measured)
    functions = functions_in({**(facts.recipe or {}), "network": facts.network}).values()
    network = facts.network if facts.network is not None and is_dotted(facts.network) else None
    return fill_in(
        _TEMPLATE,
        _metadata(results, name),
        name=name,
        repo_id=repo_id,
        facts=facts,
        measured=measured,
        num_params=f"{facts.num_params:,}",
        recipe=facts.recipe and yaml.safe_dump(facts.recipe, sort_keys=False).rstrip(),
        functions=" and ".join(f"`{name}`" for name in functions),
        trust=", trust_remote_code=True" if network else "",
        flag=" --trust-remote-code" if network else "",
        network_code=network and f"calls `{network}`. {code_text(network, files, repo_id)}",
        family_code="".join(f" {code_text(name, files, repo_id)}" for name in functions if name != network),
        verdict=verdict(results),
        training=training_text(results),
        asked=_asked(results),
        seconds=seconds_text(results),
        notes={part: table.note for part, table in tables.items()},
        **{part: markdown_table(table.columns, table.rows) for part, table in tables.items()},
    )


def code_text(function: str, files: Collection[str], repo_id: str | None) -> str:
    """Where readers of a card find the code of a function that a pipeline names.

    files, repo_id: as in `render_card`.
    """
    module = module_of(function) or function
    path = RunFolder(Path()).source(function).as_posix()
    if path in files:
        fetch = f" (`hf download {repo_id} {path} --local-dir .` fetches it)" if repo_id else ""
        return (
            f"Its source is [`{path}`]({path}), a text that nothing runs by itself: read it{fetch}. If you trust it, "
            f"start Python or `pdiff` with `PYTHONPATH={path.partition('/')[0]}`, which lets it be found as `{module}`."
        )
    if packages := packages_distributions().get(module.partition(".")[0]):
        return f"It is a function of the package `{packages[0]}`, which has to be installed."
    return f"Its source is not here: ask the author of this pipeline for the file of the Python module `{module}`."


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
    sources = [file.relative_to(folder).as_posix() for file in place.sources()]
    with replacing(place.card) as temporary:
        temporary.write_text(render_card(results, files=sources), encoding="utf-8")


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
