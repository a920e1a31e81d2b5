"""The `pdiff` command. Heavy imports stay inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="pdiff", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Generate the weights of neural networks by latent diffusion. Begin with: pdiff run digits-mlp3",
)
_RecipeName = Annotated[str, typer.Argument(help="A folder or file with a recipe, or the name of a shipped one.")]
_Overrides = Annotated[list[str] | None, typer.Option(
    "--override", help="Change an option: --override collect.num_checkpoints=50 (repeatable).")]
_Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
_ReportDir = Annotated[Path, typer.Option(help="Where report.html, results.json and the pictures will be.")]
_NumJudged = Annotated[int, typer.Option(help="How many networks to generate and judge.")]
_Trust = Annotated[bool, typer.Option(help="Call the network function that the data set or pipeline names.")]
_Tracker = Annotated[str | None, typer.Option(help="An Accelerate tracker, e.g. tensorboard.")]


@app.command()
def run(recipe: _RecipeName,
        output_dir: Annotated[Path | None, typer.Option(help="Default: runs/NAME.")] = None,
        override: _Overrides = None, device: _Device = "cpu", log_with: _Tracker = None) -> None:
    """Collect, train, generate and evaluate. Started again with the same folder, it goes on where it was.

    Example: pdiff run digits-mlp3 --output-dir runs/digits --override generate.num_models=50
    """
    from pdiff_hub import workflow
    from pdiff_hub.evaluation.table import print_results
    from pdiff_hub.hub import write_card
    from pdiff_hub.recipes import find_recipe, load_recipe

    loaded = load_recipe(recipe, override or [])
    name = find_recipe(recipe).resolve().parent.name
    directory = output_dir or Path("runs") / name
    results = workflow.run(loaded, directory, device=device, log_with=log_with, name=name, say=typer.echo)
    write_card(directory, name)
    print_results(results)
    typer.echo(f"Pipeline, report.html, results.json and the pictures are in {directory}")


@app.command()
def collect(recipe: _RecipeName, output_dir: Annotated[Path, typer.Option(help="Where the data set will be.")],
            override: _Overrides = None, device: _Device = "cpu") -> None:
    """Collect checkpoints into a data set.

    Example: pdiff collect digits-mlp3 --output-dir checkpoints
    """
    from pdiff_hub import workflow
    from pdiff_hub.recipes import load_recipe

    dataset = workflow.collect(load_recipe(recipe, override or []), output_dir, device=device)
    typer.echo(f"{len(dataset)} checkpoints of {dataset.layout.num_params:,} parameters are in {output_dir}")


@app.command()
def train(recipe: _RecipeName, dataset: Annotated[str, typer.Option(help="A data set's folder or Hub id.")],
          output_dir: Annotated[Path, typer.Option(help="Where the pipeline will be.")],
          override: _Overrides = None, log_with: _Tracker = None) -> None:
    """Train a pipeline on a data set of checkpoints. On several devices: accelerate launch examples/train.py.

    Example: pdiff train digits-mlp3 --dataset checkpoints --output-dir my-pipeline
    """
    from pdiff_hub import workflow
    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.recipes import load_recipe

    summary = workflow.train(load_recipe(recipe, override or []), CheckpointDataset.from_pretrained(dataset),
                             output_dir, log_with=log_with)
    typer.echo(f"deviation R2 on held-out checkpoints {summary.deviation_r2}, loss {summary.loss:.4f}; "
               f"the pipeline is in {output_dir}")


@app.command()
def generate(pipeline: Annotated[str, typer.Argument(help="A pipeline's folder or Hub id.")],
             output_dir: Annotated[Path, typer.Option(help="Where the networks will be.")],
             num_models: Annotated[int, typer.Option(help="How many, at least 1.")] = 1,
             seed: Annotated[int, typer.Option(help="The same seed gives the same networks.")] = 0,
             num_inference_steps: Annotated[int | None, typer.Option(help="Default: the pipeline's own.")] = None,
             device: _Device = "cpu") -> None:
    """Write generated networks as model-00000.safetensors ..., which load with strict=True.

    Example: pdiff generate pipelines/digits-mlp3 --num-models 10 --seed 0 --output-dir networks
    """
    from pdiff_hub import workflow
    from pdiff_hub.pipeline_pdiff import PDiffPipeline

    files = workflow.write_networks(PDiffPipeline.from_pretrained(pipeline).to(device), num_models, output_dir,
                                    seed=seed, num_inference_steps=num_inference_steps)
    typer.echo(f"{len(files)} networks are in {output_dir}")


@app.command()
def evaluate(pipeline: Annotated[str, typer.Argument(help="A pipeline's folder or Hub id.")],
             dataset: Annotated[str, typer.Option(help="The data set it was trained on: folder or Hub id.")],
             output_dir: _ReportDir,
             num_models: _NumJudged = 200, seed: int = 0, num_inference_steps: int | None = None,
             baselines: Annotated[int, typer.Option(help="Networks that each baseline makes; 0: no baselines.")] = 100,
             device: _Device = "cpu", trust_remote_code: _Trust = False) -> None:
    """Generate networks and judge them beside the originals: accuracy, similarity, and whether they are copies.

    Example: pdiff evaluate runs/digits --dataset runs/digits/checkpoints --output-dir report
    """
    from pdiff_hub import workflow
    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.evaluation.table import print_results
    from pdiff_hub.pipeline_pdiff import PDiffPipeline
    from pdiff_hub.recipes import EvaluateConfig

    config = EvaluateConfig(baselines=baselines)
    pipe = PDiffPipeline.from_pretrained(pipeline).to(device)
    originals = CheckpointDataset.from_pretrained(dataset)
    params_NP = workflow.generate(pipe, num_models, seed=seed, num_inference_steps=num_inference_steps)
    print_results(workflow.evaluate(pipe, originals, params_NP, output_dir, config=config, name=Path(pipeline).name,
                                    seed=seed, source=Path(pipeline), num_inference_steps=num_inference_steps,
                                    trust_remote_code=trust_remote_code))
    typer.echo(f"report.html, results.json and the pictures are in {output_dir}")


@app.command()
def audit(pipeline: Annotated[Path, typer.Argument(help="A pipeline's folder.")],
          dataset: Annotated[str | None, typer.Option(help="The data set it was trained on, folder or Hub id. Default: "
                                                           "checkpoints/ in the pipeline's folder.")] = None,
          output_dir: Annotated[Path | None, typer.Option(help="Default: runs/NAME-audit.")] = None,
          metric: Annotated[list[str] | None, typer.Option(help="Measure only this (repeatable).")] = None,
          num_models: _NumJudged = 200, seed: int = 0, device: _Device = "cpu", trust_remote_code: _Trust = False
          ) -> None:
    """Does it generate, or copy and average? Judge a pipeline beside every simple baseline, and say who is better.

    Example: pdiff audit pipelines/digits-mlp3
    """
    from pdiff_hub import workflow
    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.evaluation.table import print_results

    directory = output_dir or Path("runs") / f"{pipeline.resolve().name}-audit"
    originals = None if dataset is None else CheckpointDataset.from_pretrained(dataset)
    print_results(workflow.audit(pipeline, directory, dataset=originals, metrics=metric or (), num_models=num_models,
                                 seed=seed, device=device, trust_remote_code=trust_remote_code))
    typer.echo(f"report.html, results.json and the pictures are in {directory}")


@app.command()
def reproduce(what: Annotated[str, typer.Argument(help="all, or one of table1, table2a, table2b, table2c, table3, "
                                                       "figure3, figure4a, figure4b, figure4c, figure5a, figure5b, "
                                                       "frontier.")],
              scale: Annotated[str, typer.Option(help="small: minutes on a laptop; paper: the paper's own setting.")]
              = "small",
              task: Annotated[str | None, typer.Option(help="Another data set: a name, Hub id or folder.")] = None,
              output_dir: Annotated[Path | None, typer.Option(help="Default: runs/reproduce-SCALE.")] = None,
              seed: int = 0, device: _Device = "cpu") -> None:
    """Measure the paper's tables and figures again, beside the published figures, and say which orderings held.

    Work is shared between tables; a stopped reproduction goes on where it was. Example: pdiff reproduce table2a
    """
    from pdiff_hub.reproduce.reproduce import reproduce as run_reproduction

    directory = output_dir or Path("runs") / f"reproduce-{scale}"
    run_reproduction(what, directory, scale=scale, task=task, seed=seed, device=device, say=typer.echo)
    typer.echo(f"report.html, reproduction.json and the pictures are in {directory}")


@app.command()
def info(path: Annotated[Path, typer.Argument(help="A pipeline's or a data set's folder.")]) -> None:
    """Say what a folder holds, and its results.

    Example: pdiff info pipelines/digits-mlp3
    """
    import json

    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.evaluation.table import print_results
    from pdiff_hub.pipeline_pdiff import PDiffPipeline

    if (path / "model_index.json").exists():
        pipe = PDiffPipeline.from_pretrained(path)
        config: Any = pipe.autoencoder.config
        typer.echo(f"pipeline: {pipe.autoencoder.layout}; {config.form} autoencoder, latents "
                   f"{config.latent_channels} x {config.latent_length}; {type(pipe.scheduler).__name__}, "
                   f"{pipe.config.default_num_inference_steps} steps")
        if (path / "results.json").exists():
            print_results(json.loads((path / "results.json").read_text()))
    else:
        dataset = CheckpointDataset.from_pretrained(path)
        typer.echo(f"data set: {len(dataset)} checkpoints, {dataset.layout}, network {dataset.network['name']}")


def main() -> None:
    """Errors of ours are one sentence for people; anything else is a bug, and shows its trace."""
    # A recipe may name a network function in the current folder; last, so that nothing there shadows a library.
    sys.path.append("")
    try:
        app()
    except (ValueError, FileNotFoundError, OSError, ImportError) as error:
        typer.secho(f"pdiff: {error}", fg="red", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
