"""Writes docs/options.md, every option of a recipe, from the dataclasses: python docs/options_page.py"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from pdiff_hub.recipes.options import Option, OptionGroup, option_groups

PAGE = Path(__file__).parent / "options.md"
_OPENING = """\
# Every option of a recipe

A recipe is a file `recipe.yaml` that says only what differs from these defaults: `task` and `network` alone are one.

```yaml
task: digits
network: {name: mlp3, hidden: [32, 32]}
collect: {num_checkpoints: 100}
diffusion: {steps: 500}
```

On the command line, one option is changed with `--override diffusion.steps=500`. `pdiff options diffusion` and
`pdiff options diffusion.steps` print what is below. The same options are fields of dataclasses in Python.

A value out of range is refused before anything is trained, in a sentence that names the option. This page is written
by `docs/options_page.py`, which reads the code; change it there.
"""
_TITLES = {
    "recipe": "The keys",
    "task": "task: the images",
    "network": "network: what is generated",
    "collect": "collect: where checkpoints come from",
    "autoencoder": "autoencoder: networks to latents",
    "diffusion": "diffusion: the generator",
    "generate": "generate: how many",
    "evaluate": "evaluate: the audit",
}


def page() -> str:
    parts = [_OPENING]
    for key, groups in groupby(option_groups(), lambda group: group.key.partition(".")[0]):
        several = list(groups)
        parts.append(f"## {_TITLES[key]}\n")
        for group in several:
            parts.append(_section(group, titled=len(several) > 1))
    return "\n".join(parts)


def _section(group: OptionGroup, *, titled: bool) -> str:
    lines = [f"### `{group.place}`\n"] if titled else [f"`{group.place}`\n"]
    lines += [f"{group.about}\n", "| option | default | values | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *map(_row, group.options), ""])


def _row(option: Option) -> str:
    cells = (
        f"`{option.name}`",
        option.default if option.default == "required" else f"`{option.default}`",
        option.range,
        option.meaning,
    )
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
