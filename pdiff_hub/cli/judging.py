"""What judges: `pdiff evaluate`, `audit` and `reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pdiff_hub.cli.options import (
    REPRODUCED,
    Baselines,
    Device,
    Images,
    NumJudged,
    NumSteps,
    PipelineName,
    RecipeSeed,
    ReportDir,
    Revision,
    Seed,
    Trust,
    app,
    echo,
    process_number,
)
from pdiff_hub.errors import PdiffError


@app.command()
def evaluate(
    pipeline: PipelineName,
    output_dir: ReportDir,
    dataset: Annotated[str | None, typer.Option(help="Its training data. Default: its own checkpoints/.")] = None,
    num_models: NumJudged = None,
    seed: RecipeSeed = None,
    num_inference_steps: NumSteps = None,
    baselines: Baselines = None,
    revision: Revision = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    images: Images = None,
) -> None:
    """Generate networks and compare them with the originals: accuracy, similarity, and whether they are copies.

    Example: pdiff evaluate runs/digits --output-dir report
    """
    from pdiff_hub import runs
    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.evaluation.table import print_results
    from pdiff_hub.pipeline import PDiffPipeline
    from pdiff_hub.records import RunFolder

    pipe = PDiffPipeline.from_pretrained(pipeline, revision=revision).to(device)
    assert pipe.folder is not None
    folder = RunFolder(pipe.folder)
    originals = runs.own_checkpoints(folder) if dataset is None else CheckpointDataset.from_pretrained(dataset)
    if originals is None:
        raise PdiffError(f"{pipeline} has no {folder.checkpoints.name}/: say with --dataset what it was trained on.")
    num_params = pipe.autoencoder.layout.num_params
    numbers = runs.judging_numbers(folder, num_params, num_models=num_models, seed=seed, baselines=baselines)
    with runs.generated_rows(
        pipe, numbers.num_models, output_dir, seed=numbers.seed, num_inference_steps=num_inference_steps
    ) as generated:
        results = runs.evaluate(
            pipe,
            originals,
            generated,
            output_dir,
            config=numbers.config,
            name=Path(pipeline).name,
            seed=numbers.seed,
            source=folder.path,
            num_inference_steps=num_inference_steps,
            trust_remote_code=trust_remote_code,
            images=images,
        )
    if process_number() == 0:
        print_results(results)
    echo(f"report.html, results.json and the pictures are in {output_dir}")


@app.command()
def audit(
    pipeline: PipelineName,
    dataset: Annotated[str | None, typer.Option(help="Its training data. Default: its own checkpoints/.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Default: runs/NAME-audit.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Measure only this (repeatable).")] = None,
    num_models: NumJudged = None,
    seed: RecipeSeed = None,
    num_inference_steps: NumSteps = None,
    baselines: Baselines = None,
    revision: Revision = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    images: Images = None,
) -> None:
    """Does it generate, or copy and average? Compare a pipeline with every simple baseline, and say which is better.

    Example: pdiff audit digits-mlp3
    """
    from pdiff_hub import runs
    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.evaluation.table import print_results

    directory = output_dir or Path("runs") / f"{Path(pipeline).resolve().name}-audit"
    originals = None if dataset is None else CheckpointDataset.from_pretrained(dataset)
    results = runs.audit(
        pipeline,
        directory,
        dataset=originals,
        metrics=metric or (),
        num_models=num_models,
        seed=seed,
        num_inference_steps=num_inference_steps,
        baselines=baselines,
        device=device,
        trust_remote_code=trust_remote_code,
        revision=revision,
        images=images,
    )
    if process_number() == 0:
        print_results(results)
    echo(f"report.html, results.json and the pictures are in {directory}")


@app.command()
def reproduce(
    what: Annotated[str, typer.Argument(help=f"all, or one of {REPRODUCED}.")],
    scale: Annotated[str, typer.Option(help="small: minutes on a laptop; paper: the paper's own setting.")] = "small",
    task: Annotated[str | None, typer.Option(help="Another data set: a name, Hub id or folder.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Default: runs/reproduce-SCALE.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Measure the paper's tables and figures again, compare them with the published ones, and say which orderings held.

    Tables share work. To go on with a stopped reproduction, start it again. Example: pdiff reproduce table2a
    """
    from pdiff_hub.reproduce.reproduce import reproduce as run_reproduction

    directory = output_dir or Path("runs") / f"reproduce-{scale}"
    run_reproduction(what, directory, scale=scale, task=task, seed=seed, device=device, say=echo)
    written = "report.html, reproduction.json" if what == "all" else f"{what}.html, {what}.json"
    echo(f"{written} and the pictures are in {directory}")
