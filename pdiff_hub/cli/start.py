"""Where the command starts and ends: what it may import, and what people see of an error."""

from __future__ import annotations

import os
import sys
import time

import typer

from pdiff_hub.cli import commands, ensembles, hub, judging, listing, recipe_options
from pdiff_hub.cli.options import app, is_launched, process_number
from pdiff_hub.errors import PdiffError, escape_what_has_no_code, printable

_OTHERS_FIRST = 2.0  # seconds that a process waits with its error: a launcher ends it if another has said it

__all__ = ["app", "commands", "ensembles", "hub", "judging", "listing", "main", "recipe_options"]


def main() -> None:
    """Shows our own errors as one sentence for people. Any other error is a bug and shows its trace."""
    # Processes that libraries start with `python -c` or `-m` must not import from the current folder either.
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    escape_what_has_no_code(sys.stdout, sys.stderr)
    try:
        _run()
    except Exception as error:  # names in `except` would be imported, with torch, whenever the command exits
        from pdiff_hub.travelling import conditioner, param_autoencoder, pipeline_pdiff

        ours = (conditioner.ConditionError, param_autoencoder.ParamError, pipeline_pdiff.SamplingError, PdiffError)
        if ended := _other_ended(error):
            sentence = ended
        elif isinstance(error, (*ours, OSError)):
            sentence = str(error)
        elif _out_of_memory(error):
            sentence = f"there is not enough memory: {error}; use smaller batches or fewer networks, or another device."
        else:
            raise
        if ended or process_number():
            time.sleep(_OTHERS_FIRST)
        who = f"process {process_number()}: " if process_number() else ""
        typer.secho(f"pdiff: {who}{printable(sentence)}", fg="red", err=True)
        raise SystemExit(1) from None
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _run() -> None:
    try:
        app()
    except SystemExit as end:  # so a command ends, well or not
        if is_launched() and not end.code:
            from pdiff_hub.processes import leave

            leave()
        raise


def _other_ended(error: Exception) -> str:
    """What to say if an error comes of the end of another process of the same run; "" if it does not."""
    if not is_launched():
        return ""
    from pdiff_hub.processes import is_of_another

    if not is_of_another(error):
        return ""
    return "another process of this run has ended, and the others cannot go on without it; see what it said, or why."


def _out_of_memory(error: Exception) -> bool:
    import torch

    # torch has no type of its own for the memory of the CPU.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
