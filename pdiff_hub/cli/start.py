"""Where the command starts and ends: what it may import, and what people see of an error."""

from __future__ import annotations

import os
import sys

import typer

from pdiff_hub.cli import commands, ensembles, hub, judging, listing, recipe_options
from pdiff_hub.cli.options import app
from pdiff_hub.errors import PdiffError, escape_what_has_no_code, printable

__all__ = ["app", "commands", "ensembles", "hub", "judging", "listing", "main", "recipe_options"]


def main() -> None:
    """Shows our own errors as one sentence for people. Any other error is a bug and shows its trace."""
    # Processes that libraries start with `python -c` or `-m` must not import from the current folder either.
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    escape_what_has_no_code(sys.stdout, sys.stderr)
    try:
        app()
    except Exception as error:  # names in `except` would be imported, with torch, whenever the command exits
        from pdiff_hub.travelling import conditioner, param_autoencoder, pipeline_pdiff

        ours = (conditioner.ConditionError, param_autoencoder.ParamError, pipeline_pdiff.SamplingError, PdiffError)
        if isinstance(error, (*ours, OSError)):
            sentence = str(error)
        elif _out_of_memory(error):
            sentence = f"there is not enough memory: {error}; use smaller batches or fewer networks, or another device."
        else:
            raise
        typer.secho(f"pdiff: {printable(sentence)}", fg="red", err=True)
        raise SystemExit(1) from None
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _out_of_memory(error: Exception) -> bool:
    import torch

    # torch has no type of its own for the memory of the CPU.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
