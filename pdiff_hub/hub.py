"""The card of a pipeline folder, rendered from what was measured: nothing in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pdiff_hub.evaluation.evaluate import FIGURES
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
from pdiff_hub.recipes import load_recipe
from pdiff_hub.safe_files import replacing

_TEMPLATE = """---
{{{{ card_data }}}}
---

# {name}

Generates working `{network}` networks for `{task}`: {num_params:,} numbers each (`select: {select}`), from noise, in
{steps} sampling steps. Made with [Neural Network Diffusion](https://arxiv.org/abs/2402.13144) by pdiff-hub.

```python
import torch
from pdiff_hub import PDiffPipeline
pipe = PDiffPipeline.from_pretrained("path/to/{name}")  # this folder, or its Hub id
out = pipe(num_models=8, generator=torch.Generator().manual_seed(0))
network = pipe.build_network(out.state_dicts[0])
```

## Accuracy on the test split, in percent

{accuracy}

{accuracy_note} {num_checkpoints} originals, {num_generated} generated.

## Does it generate, or copy and average?

**{verdict}**

{audit}

{baselines}{figures}
## How it was made

The recipe, with every default written out; `pdiff run {name}` makes this pipeline again.

```yaml
{recipe}```

Seconds: {seconds}. Versions and all numbers: `results.json`.

## Limits

It makes variations of the networks it was trained on, for the same data and architecture. The table above says how
different they are from the originals and from their average; read it before calling them new.
"""


def render_card(results: dict[str, Any], recipe: dict[str, Any], name: str, *, figures: Sequence[str]) -> str:
    """The card (README.md) of a pipeline from its `results.json` and its whole recipe.

    figures: the stems of the PNG files that lie beside it.
    """
    generated = results["accuracy"]["generated"]
    evaluated = [
        EvalResult(task_type="image-classification", dataset_type=results["task"], dataset_name=results["task"],
                   metric_type="accuracy", metric_name=f"{key} accuracy of generated networks",
                   metric_value=round(generated[key], 4))
        for key in ("best", "mean", "median")
    ]
    data = ModelCardData(library_name="diffusers", license="apache-2.0", model_name=name, eval_results=evaluated,
                         tags=["neural-network-diffusion", "weight-generation", "pdiff-hub"])
    baselines = ""
    if results["frontier"]:
        baselines = (f"{_table(METHOD_COLUMNS, method_rows(results))}\n\n{METHOD_NOTE}\n\n## As ensembles\n\n"
                     f"{_table(ENSEMBLE_COLUMNS, ensemble_rows(results))}\n\n")
    text = _TEMPLATE.format(
        name=name, network=results["network"], task=results["task"], num_params=results["num_params"],
        select=results["select"], steps=results["num_inference_steps"],
        accuracy=_table(ACCURACY_COLUMNS, accuracy_rows(results)), accuracy_note=f"\\{ACCURACY_NOTE}.",
        num_checkpoints=results["num_checkpoints"], num_generated=results["num_generated"],
        verdict=verdict(results), audit=_table(AUDIT_COLUMNS, audit_rows(results)), baselines=baselines,
        figures="".join(f"![{stem.replace('-', ' ')}]({stem}.png)\n\n" for stem in figures),
        recipe=yaml.safe_dump(recipe, sort_keys=False), seconds=seconds_text(results),
    )
    return str(ModelCard.from_template(data, template_str=text)).rstrip() + "\n"


def write_card(folder: Path, name: str) -> None:
    """Render the card of the pipeline in `folder` from its `results.json` and recipe."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    figures = [stem for stem in FIGURES if (folder / f"{stem}.png").exists()]
    card = render_card(results, load_recipe(folder).to_dict(), name, figures=figures)
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def _table(columns: Sequence[str], rows: Rows) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
