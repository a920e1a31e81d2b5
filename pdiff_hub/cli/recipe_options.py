"""What a recipe can say: `pdiff options`."""

from __future__ import annotations

import shutil
import textwrap
from typing import Annotated

import typer

from pdiff_hub.cli.options import app, echo


@app.command()
def options(
    name: Annotated[
        str | None, typer.Argument(help="A part of a recipe, as collect.import, or an option, as diffusion.steps.")
    ] = None,
) -> None:
    """Say what a recipe can say: every option with its default, range and meaning. The same is in docs/options.md.

    Example: pdiff options diffusion
    """
    from pdiff_hub.recipes.options import find_groups, option_groups

    if name is None:
        for group in option_groups():
            echo(f"{group.key}: {', '.join(each.name for each in group.options)}\n")
        echo("pdiff options NAME says more of a part, or of one option: pdiff options diffusion.steps")
        return
    groups, option = find_groups(name)
    width = min(100, shutil.get_terminal_size().columns)
    for group in groups:
        echo(f"{group.place}\n{textwrap.fill(group.about, width)}\n")
        for each in group.options:
            if option in (None, each.name):
                echo(f"{each.name} = {each.default}")
                for text in (each.range, each.meaning):
                    echo(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    "))
        echo("")
