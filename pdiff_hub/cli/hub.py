"""What is done with folders and Hub repositories: `pdiff push`, `pull` and `info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pdiff_hub.cli.options import Revision, app, echo
from pdiff_hub.errors import PdiffError


@app.command()
def push(
    folder: Annotated[str, typer.Argument(help="A pipeline's or a data set's folder, or a name of `pdiff list`.")],
    repo_id: Annotated[str, typer.Argument(help="Where on the Hub: user/name.")],
    checkpoints_id: Annotated[
        str | None,
        typer.Option(help="A pipeline's: push its checkpoints/ too, as a data set of this name, its card then names."),
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="A data set's: add to the checkpoints there.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch. Default: main.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
) -> None:
    """Put a pipeline or a data set on the Hub, with a card, in one commit. Log in first: hf auth login

    Example: pdiff push digits-mlp3 user/digits-mlp3 --checkpoints-id user/digits-mlp3-checkpoints
    """
    from pdiff_hub.hub import push_folder
    from pdiff_hub.records import RunFolder
    from pdiff_hub.records.shipped import folder_or_shipped
    from pdiff_hub.transfer import PushOptions

    options = PushOptions(private=private or None, revision=revision, create_pr=create_pr)
    if message is not None:
        options["commit_message"] = message
    for source in RunFolder(folder_or_shipped(folder) or Path(folder)).sources():
        echo(f"{source} goes with it, so that others can see how its networks are built.")
    echo(push_folder(folder, repo_id, checkpoints_id=checkpoints_id, append=append, **options))


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(help="A pipeline, data set, network or ensemble on the Hub: user/name.")],
    directory: Annotated[Path, typer.Argument(help="A new folder; it ends whole, or is not there.")],
    revision: Revision = None,
    rows: Annotated[str | None, typer.Option(help="A data set's: only these checkpoints, as 0:10 (not 10).")] = None,
) -> None:
    """Download a pipeline, a data set, a generated network or an ensemble into a folder.

    Example: pdiff pull user/digits-mlp3 digits-mlp3
    """
    import re

    from pdiff_hub.hub import pull as pull_folder

    wanted = None
    if rows is not None:
        found = re.fullmatch(r"(\d*):(\d*)", rows)
        if found is None:
            raise PdiffError(f"--rows is {rows!r}, expected START:STOP such as 0:10.")
        wanted = slice(int(found[1] or 0), int(found[2]) if found[2] else None)
    kind = pull_folder(repo_id, directory, revision=revision, rows=wanted)
    echo(f"The {kind} is in {directory}")


@app.command()
def info(
    path: Annotated[
        str, typer.Argument(help="Of a pipeline, data set or generated networks: a folder, name or Hub id.")
    ],
    revision: Revision = None,
) -> None:
    """Say what a folder or Hub repository holds, and its results.

    Example: pdiff info digits-mlp3
    """
    from pdiff_hub.evaluation.table import print_results
    from pdiff_hub.hub import describe

    text, results = describe(path, revision=revision)
    echo(text)
    measured = None if results is None else results.measured
    if results is not None and measured is not None and (measured.accuracy or measured.requests is not None):
        print_results(results)
