"""`pdiff ensemble`: several generated networks as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pdiff_hub.cli.options import (
    Condition,
    Device,
    Images,
    PipelineName,
    Revision,
    Trust,
    app,
    asked_for,
    echo,
    in_range,
)
from pdiff_hub.errors import PdiffError


@app.command()
def ensemble(
    pipeline: PipelineName,
    output_dir: Annotated[Path | None, typer.Option(help="Where the ensemble will be.")] = None,
    num_models: Annotated[int, typer.Option(help="Networks in it, at least 1.")] = 5,
    select: Annotated[
        str, typer.Option(help="accuracy: the best alone; diverse: each adds most to the others; none: the first.")
    ] = "accuracy",
    candidates: Annotated[int | None, typer.Option(help="Networks to choose from. Default: 50, or 5 for each.")] = None,
    calibrate: Annotated[bool, typer.Option(help="Set a temperature on validation, where it helps.")] = True,
    push_to_hub: Annotated[str | None, typer.Option(help="Publish it as a Hub repository of this name.")] = None,
    condition: Condition = None,
    dataset: Annotated[str | None, typer.Option(help="Originals to compare with. Default: its checkpoints/.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same networks.", callback=in_range)] = 0,
    revision: Revision = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    images: Images = None,
) -> None:
    """Generate networks, choose some on validation, and write them as one module with what it was measured to bring.

    Example: pdiff ensemble digits-mlp3 --num-models 5 --output-dir ensemble
    """
    if output_dir is None and push_to_hub is None:
        raise PdiffError("nothing says where the ensemble should go: give --output-dir, or --push-to-hub.")
    if select not in ("accuracy", "diverse", "none"):
        raise PdiffError(f"--select is {select!r}, expected accuracy, diverse or none.")
    import torch

    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.pipeline import PDiffPipeline

    asked = asked_for(condition)
    pipe = PDiffPipeline.from_pretrained(pipeline, revision=revision).to(device)
    made = pipe.ensemble(
        num_models,
        None if select == "none" else "diverse" if select == "diverse" else "accuracy",
        calibrate,
        candidates=candidates,
        condition=asked,
        generator=torch.Generator().manual_seed(seed),
        originals=None if dataset is None else CheckpointDataset.from_pretrained(dataset),
        images=images,
        trust_remote_code=trust_remote_code,
    )
    if output_dir is not None:
        made.save_pretrained(output_dir)
    echo(str(made.report))
    if output_dir is not None:
        echo(f"The ensemble is in {output_dir}")
    if push_to_hub is not None:
        echo(made.push_to_hub(push_to_hub))
