"""The card of a pipeline, rendered from its `results.json` alone: nothing in it is typed by hand.

Names out of results and recipes are other people's text: they go into the card as they are, never through a template
language.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    Rows,
    accuracy_rows,
    audit_rows,
    ensemble_rows,
    method_rows,
    seconds_text,
    verdict,
)
from pdiff_hub.safe_files import replacing

_TAGS = ["neural-network-diffusion", "weight-generation", "pdiff-hub"]
_LIMITS = """It makes variations of the networks it was trained on, for the same data and architecture. The tables above
say how different they are from the originals and from their average; read them before calling the networks new."""
_LIMITS_UNKNOWN = """It makes variations of the networks it was trained on, for the same data and architecture. Whether
they work, and whether they are more than copies, is not known before it is evaluated."""


def render_card(results: Mapping[str, Any], *, repo_id: str | None = None) -> str:
    """The card (README.md) of a pipeline from its `results.json`.

    A pipeline without results has a card too: `pipeline.facts.about` says of it what is known without measuring.

    Args:
        repo_id: where on the Hub the pipeline is; None for a folder.

    Raises:
        ValueError: results that lack what every `results.json` has.
    """
    try:
        name = repo_id.split("/")[-1] if repo_id else str(results["name"])
        sections = [
            f"# {name}",
            _lead(results),
            *_usage(results, repo_id or f"path/to/{name}", repo_id or f"user/{name}"),
            *(_evaluated(results) if results.get("accuracy") else _not_evaluated(results, repo_id or name)),
            "## How it was made",
            _made(results, name),
            "## Limits",
            _LIMITS if results.get("audit") else _LIMITS_UNKNOWN,
        ]
        metadata = _metadata(results, name).to_yaml()
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise PdiffError(
            f"these are no results of `pdiff evaluate` that a card could be made from ({error!r}): "
            "evaluate the pipeline again."
        ) from error
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(sections) + "\n"


def write_card(folder: Path) -> None:
    """Render the card of the pipeline in `folder` from its `results.json`."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(render_card(results), encoding="utf-8")


def _metadata(results: Mapping[str, Any], name: str) -> ModelCardData:
    more: dict[str, Any] = {}
    checkpoints = results["checkpoints"]
    if datasets := [each for each in (results["task_dataset"], checkpoints and checkpoints["repo_id"]) if each]:
        more["datasets"] = datasets
    if results["base_model"]:
        more["base_model"] = results["base_model"]
    if generated := results.get("accuracy", {}).get("generated"):
        more |= {
            "model_name": name,
            "eval_results": [
                EvalResult(
                    task_type="image-classification",
                    dataset_type=results["task_dataset"] or results["task"],
                    dataset_name=results["task"],
                    dataset_split="test",
                    metric_type="accuracy",
                    metric_name=f"{key} accuracy of generated networks",
                    metric_value=round(generated[key], 4),
                )
                for key in ("best", "mean", "median")
            ],
        }
    return ModelCardData(library_name="diffusers", license="apache-2.0", tags=_TAGS, **more)


def _lead(results: Mapping[str, Any]) -> str:
    trained = ""
    if checkpoints := results["checkpoints"]:
        trained = (
            f" It was trained on the checkpoints in the data set `{checkpoints['repo_id']}`, revision "
            f"`{checkpoints['revision']}`."
        )
    return (
        f"Generates `{results['network']}` networks for `{results['task'] or 'a task that it does not name'}`: "
        f"{results['num_params']:,} numbers each (`select: {results['select']}`), from noise, in\n"
        f"{results['num_inference_steps']} sampling steps. Made with "
        f"[Neural Network Diffusion](https://arxiv.org/abs/2402.13144) by pdiff-hub.{trained}"
    )


def _usage(results: Mapping[str, Any], place: str, hub_id: str) -> list[str]:
    return [
        "## Use it",
        "With the package (`pip install pdiff-hub`), which runs no code out of this repository:",
        _code(
            "python",
            [
                "import torch",
                "from pdiff_hub import PDiffPipeline",
                f'pipe = PDiffPipeline.from_pretrained("{place}")',
                "out = pipe(num_models=8, generator=torch.Generator().manual_seed(0))",
                "network = pipe.build_network(out.state_dicts[0])",
            ],
        ),
        "From the Hub without the package, with torch and diffusers; the flag runs this repository's two code files:",
        _code(
            "python",
            [
                "import torch",
                "from diffusers import DiffusionPipeline",
                f'pipe = DiffusionPipeline.from_pretrained("{hub_id}", trust_remote_code=True)',
                "out = pipe(num_models=8, generator=torch.Generator().manual_seed(0))",
                "state_dict = out.state_dicts[0]  # of the whole network: it loads with strict=True",
            ],
        ),
    ]


def _evaluated(results: Mapping[str, Any]) -> list[str]:
    measured = f"{results['num_generated']} generated."
    if results["num_checkpoints"]:
        measured = f"{results['num_checkpoints']} originals, {measured}"
    sections = [
        "## Accuracy on the test split, in percent",
        _table(ACCURACY_COLUMNS, accuracy_rows(results)),
        f"\\{ACCURACY_NOTE}. {measured}",
        *results["notes"],
        "## Does it generate, or copy and average?",
        f"**{verdict(results)}**",
    ]
    if results["audit"]:
        sections.append(_table(AUDIT_COLUMNS, audit_rows(results)))
    if results["frontier"]:
        sections += [_table(METHOD_COLUMNS, method_rows(results)), METHOD_NOTE]
    if results["ensembles"]:
        sections += ["## As ensembles", _table(ENSEMBLE_COLUMNS, ensemble_rows(results))]
    return [*sections, *(f"![{stem.replace('-', ' ')}]({stem}.png)" for stem in results["figures"])]


def _not_evaluated(results: Mapping[str, Any], place: str) -> list[str]:
    dataset = results["checkpoints"]["repo_id"] if results["checkpoints"] else "CHECKPOINTS"
    return [
        "## Accuracy",
        "It was not evaluated: nothing is known of how good its networks are, or whether they are "
        "copies. This judges them beside the checkpoints that it was trained on:",
        _code("bash", [f"pdiff audit {place} --dataset {dataset}"]),
    ]


def _made(results: Mapping[str, Any], name: str) -> str:
    if results["recipe"] is None:
        text = "Its recipe is not known."
    else:
        recipe = yaml.safe_dump(results["recipe"], sort_keys=False).rstrip()
        text = (
            "The recipe, with every default written out. With the file `recipe.yaml` that lies beside this card, "
            "this makes the pipeline again:\n\n"
            + _code("bash", [f"pdiff run recipe.yaml --output-dir {name}"])
            + "\n\n"
            + _code("yaml", [recipe])
        )
    if "seconds" in results:
        text += f"\n\nSeconds: {seconds_text(results)}. Versions and all numbers: `results.json`."
    return text


def _code(language: str, lines: list[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _table(columns: Sequence[str], rows: Rows) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
