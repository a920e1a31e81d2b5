"""The application, and the options that several commands have. They are checked before a command begins.

Heavy imports stay inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pdiff_hub.errors import PdiffError, printable_lines, require

app = typer.Typer(
    name="pdiff",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich is half of the time that `--help` takes
    help="Generate the weights of neural networks by latent diffusion. Begin with: pdiff list",
)
MOST_NETWORKS, MOST_STEPS = 1_000_000, 1_000_000
REPRODUCED = "table1, table2a to c, table3, figure3, figure4a to c, figure5a, figure5b, frontier"


_SHARED_OUT = ("run", "collect", "train", "generate", "evaluate", "audit")  # commands that work in several processes


def is_launched() -> bool:
    """Whether a launcher started this process beside others, for one piece of work."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def process_number() -> int:
    """Which of these processes this is. The main one, which is 0, alone says something."""
    return int(os.environ.get("RANK", "0")) if is_launched() else 0


def echo(text: str) -> None:
    """Prints lines; what may come from a file can do nothing to the terminal."""
    if process_number() == 0:
        typer.echo(printable_lines(text))


def asked_for(condition: str | None) -> dict[str, str] | None:
    """`--condition` as a pipeline takes it."""
    if condition is None:
        return None
    name, equals, value = condition.partition("=")
    if not equals or not value.strip():
        raise PdiffError(f"--condition is {condition!r}, expected NAME=VALUE such as classes=0,3,7.")
    return {name.strip(): value.strip()}


def in_range(seed: int | None) -> int | None:
    """The seed; PdiffError if torch cannot count that far."""
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise PdiffError(f"--seed is {seed}, expected a whole number below 2**63; give a smaller one.")
    return seed


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as version_of  # importing it takes longer than all else here

        typer.echo(f"pdiff-hub {version_of('pdiff-hub')}")
        raise typer.Exit


@app.callback()
def _(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `pdiff` itself. Before a command begins, its processes find each other, and each its own GPU."""
    if is_launched():
        command = context.invoked_subcommand
        if command not in _SHARED_OUT:
            raise PdiffError(
                f"pdiff {command} works in one process, and a launcher started {os.environ['WORLD_SIZE']}: start it "
                f"without one; in several work {', '.join(_SHARED_OUT)}."
            )
        from pdiff_hub.processes import this_run

        echo(f"{this_run().count} processes share the work")


def _count(least: int, most: int) -> Callable[[typer.CallbackParam, int | None], int | None]:
    """Checks a number of something, before anything is opened or made."""

    def checked(param: typer.CallbackParam, value: int | None) -> int | None:
        fits = value is None or least <= value <= most
        require(fits, param.opts[0], value, f"a whole number from {least:,} to {most:,}")
        return value

    return checked


def _scale(scale: float) -> float:
    """How strictly a condition is followed; PdiffError for what is no number, which torch would carry through."""
    require(0 <= scale < float("inf"), "--guidance-scale", scale, "a number of at least 0")
    return scale


def named_task(task: str) -> str:
    """The text that names a task; PdiffError if there is none, which would mean the current folder."""
    require(bool(task.strip()), "--task", task, "a folder of images, a data set, or a task such as '{dataset: digits}'")
    return task


def _usable(device: str) -> str:
    """The device; PdiffError if torch cannot use it here. Checked before anything is written."""
    if device != "cpu":
        from pdiff_hub.networks.devices import require_device

        require_device(device, "--device")
    return device


def _known_tracker(name: str | None) -> str | None:
    """The tracker; PdiffError if accelerate does not know it or its package is not installed."""
    if name is not None:
        from accelerate.tracking import filter_trackers

        try:
            found = filter_trackers(name, logging_dir=".")
        except ValueError as error:
            raise PdiffError(f"--log-with {name} is refused by accelerate: {error}") from error
        if not found:
            raise PdiffError(f"--log-with {name} needs the package {name}: install it, or leave the option out.")
    return name


def _searched(trusted: bool) -> bool:
    """With trust, modules in the current folder may be named; without, none there is ever imported."""
    if trusted:
        from pdiff_hub.networks.factory import search_too

        search_too(Path.cwd())
    return trusted


RecipeName = Annotated[str, typer.Argument(help="A folder or file with a recipe, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", help="Change an option: --override collect.num_checkpoints=50 (repeatable)."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...", callback=_usable)]
ReportDir = Annotated[Path, typer.Option(help="Where report.html, results.json and the pictures will be.")]
PipelineName = Annotated[str, typer.Argument(help="A pipeline: a folder, a name of `pdiff list`, or a Hub id.")]
NumModels = Annotated[int, typer.Option(help="How many, at least 1.", callback=_count(1, MOST_NETWORKS))]
NumSteps = Annotated[
    int | None,
    typer.Option("--num-inference-steps", help="Default: the pipeline's own.", callback=_count(1, MOST_STEPS)),
]
NumJudged = Annotated[
    int | None,
    typer.Option(
        "--num-models",
        help="How many networks to generate and judge. Default: as its recipe.",
        callback=_count(1, MOST_NETWORKS),
    ),
]
Baselines = Annotated[
    int | None,
    typer.Option(
        "--baselines",
        help="Networks that each baseline makes; 0: no baselines. Default: as its recipe.",
        callback=_count(0, MOST_NETWORKS),
    ),
]
Guidance = Annotated[
    float,
    typer.Option("--guidance-scale", help="How strictly to follow the condition; 1 asks once.", callback=_scale),
]
Seed = Annotated[int, typer.Option(callback=in_range)]
RecipeSeed = Annotated[int | None, typer.Option("--seed", help="Default: as its recipe.", callback=in_range)]
Trust = Annotated[
    bool,
    typer.Option(
        help="Call functions that are named as module:function. Read them first: they can do anything.",
        callback=_searched,
    ),
]
Images = Annotated[str | None, typer.Option(help="The folder of the task's images, if it is not as in the run.")]
Revision = Annotated[str | None, typer.Option(help="Of a Hub repository: a branch, tag or commit. Default: main.")]
Condition = Annotated[str | None, typer.Option(help="What to ask for, as classes=0,3,7; see `pdiff info`.")]
Tracker = Annotated[str | None, typer.Option(help="An Accelerate tracker, e.g. tensorboard.", callback=_known_tracker)]
