"""The card of a pipeline folder, rendered from what was measured: nothing in it is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pdiff_hub.evaluation.evaluate import FIGURE_STEM
from pdiff_hub.evaluation.table import audit_rows
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

| networks | best (chosen on validation) | mean | median | std |
|---|---|---|---|---|
{accuracy}

{num_checkpoints} originals, {num_generated} generated; `ensemble` is the average of all originals' weights.

## Does it generate, or copy and average?

| measure | value | how to read it |
|---|---|---|
{audit}

{figure}

## How it was made

The recipe, with every default written out; `pdiff run {name}` makes this pipeline again.

```yaml
{recipe}```

Seconds: {seconds}.

## Limits

It makes variations of the networks it was trained on, for the same data and architecture. The table above says how
different they are from the originals and from their average; read it before calling them new.
"""


def render_card(results: dict[str, Any], recipe: dict[str, Any], name: str, *, has_figure: bool) -> str:
    """The card (README.md) of a pipeline from its `results.json` and its whole recipe."""
    generated = results["accuracy"]["generated"]
    evaluated = [
        EvalResult(task_type="image-classification", dataset_type=results["task"], dataset_name=results["task"],
                   metric_type="accuracy", metric_name=f"{key} accuracy of generated networks",
                   metric_value=round(generated[key], 4))
        for key in ("best", "mean", "median")
    ]
    data = ModelCardData(library_name="diffusers", license="apache-2.0", model_name=name, eval_results=evaluated,
                         tags=["neural-network-diffusion", "weight-generation", "pdiff-hub"])
    accuracy = "\n".join(
        f"| {method} | " + " | ".join(f"{100 * row[key]:.2f}" for key in ("best", "mean", "median", "std")) + " |"
        for method, row in results["accuracy"].items()
    )
    text = _TEMPLATE.format(
        name=name, network=results["network"], task=results["task"], num_params=results["num_params"],
        select=results["select"], steps=results["num_inference_steps"], accuracy=accuracy,
        num_checkpoints=results["num_checkpoints"], num_generated=results["num_generated"],
        audit="\n".join(f"| {' | '.join(row)} |" for row in audit_rows(results)),
        figure=f"![accuracy against similarity]({FIGURE_STEM}.png)" if has_figure else "",
        recipe=yaml.safe_dump(recipe, sort_keys=False),
        seconds=", ".join(f"{stage.replace('_', ' ')} {value:.1f}" for stage, value in results["seconds"].items()
                          if value is not None),
    )
    return str(ModelCard.from_template(data, template_str=text)).rstrip() + "\n"


def write_card(folder: Path, name: str) -> None:
    """Render the card of the pipeline in `folder` from its `results.json` and recipe."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    has_figure = (folder / f"{FIGURE_STEM}.png").exists()
    card = render_card(results, load_recipe(folder).to_dict(), name, has_figure=has_figure)
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
