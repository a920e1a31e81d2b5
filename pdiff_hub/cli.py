"""The `pdiff` command. Heavy imports stay inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pdiff_hub.errors import PdiffError

app = typer.Typer(
    name="pdiff",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich is half of the time that `--help` takes
    help="Generate the weights of neural networks by latent diffusion. Begin with: pdiff run digits-mlp3",
)
_RecipeName = Annotated[str, typer.Argument(help="A folder or file with a recipe, or the name of a shipped one.")]
_Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", help="Change an option: --override collect.num_checkpoints=50 (repeatable)."),
]


def _usable(device: str) -> str:
    """The device; PdiffError if torch cannot use it here. Checked before anything is written."""
    if device != "cpu":
        import torch

        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter: torch was built without CUDA
            reason = str(error).splitlines()[0]
            raise PdiffError(
                f"--device {device} cannot be used here: {reason}; give cpu, or cuda with a GPU."
            ) from error
    return device


def _asked(condition: str | None) -> dict[str, str] | None:
    """`--condition` as a pipeline takes it."""
    if condition is None:
        return None
    name, equals, value = condition.partition("=")
    if not equals or not value.strip():
        raise PdiffError(f"--condition is {condition!r}, expected NAME=VALUE such as classes=0,3,7.")
    return {name.strip(): value.strip()}


_Device = Annotated[str, typer.Option(help="cpu, cuda, ...", callback=_usable)]
_ReportDir = Annotated[Path, typer.Option(help="Where report.html, results.json and the pictures will be.")]
_NumJudged = Annotated[int, typer.Option(help="How many networks to generate and judge.")]
_Trust = Annotated[bool, typer.Option(help="Call the network function that the data set or pipeline names.")]
_Images = Annotated[str | None, typer.Option(help="The folder of the task's images, if it is not as in the run.")]
_Revision = Annotated[str | None, typer.Option(help="Of a Hub repository: a branch, tag or commit. Default: main.")]
_Condition = Annotated[str | None, typer.Option(help="What to ask for, as classes=0,3,7; see `pdiff info`.")]
_REPRODUCED = "table1, table2a to c, table3, figure3, figure4a to c, figure5a, figure5b, frontier"
_Tracker = Annotated[str | None, typer.Option(help="An Accelerate tracker, e.g. tensorboard.")]


@app.command()
def run(
    recipe: _RecipeName,
    output_dir: Annotated[Path | None, typer.Option(help="Default: runs/NAME.")] = None,
    override: _Overrides = None,
    device: _Device = "cpu",
    log_with: _Tracker = None,
) -> None:
    """Collect, train, generate and evaluate. To go on with a stopped run, start it again with the same folder.

    Example: pdiff run digits-mlp3 --output-dir runs/digits --override generate.num_models=50
    """
    from pdiff_hub import runs
    from pdiff_hub.evaluation.table import print_results
    from pdiff_hub.hub import write_card
    from pdiff_hub.recipes import find_recipe, load_recipe

    loaded = load_recipe(recipe, override or [])
    name = find_recipe(recipe).resolve().parent.name
    directory = output_dir or Path("runs") / name
    results = runs.run(loaded, directory, device=device, log_with=log_with, name=name, say=typer.echo)
    write_card(directory)
    print_results(results)
    typer.echo(f"Pipeline, report.html, results.json and the pictures are in {directory}")


@app.command()
def collect(
    recipe: _RecipeName,
    output_dir: Annotated[Path, typer.Option(help="Where the data set will be.")],
    override: _Overrides = None,
    device: _Device = "cpu",
) -> None:
    """Collect checkpoints into a data set.

    Example: pdiff collect digits-mlp3 --output-dir checkpoints
    """
    from pdiff_hub import runs
    from pdiff_hub.recipes import load_recipe

    dataset = runs.collect(load_recipe(recipe, override or []), output_dir, device=device)
    typer.echo(f"{len(dataset)} checkpoints of {dataset.layout.num_params:,} parameters are in {output_dir}")


@app.command()
def train(
    recipe: _RecipeName,
    dataset: Annotated[str, typer.Option(help="A data set's folder or Hub id.")],
    output_dir: Annotated[Path, typer.Option(help="Where the pipeline will be.")],
    override: _Overrides = None,
    log_with: _Tracker = None,
) -> None:
    """Train a pipeline on a data set of checkpoints. For several devices use: accelerate launch examples/train.py.

    Example: pdiff train digits-mlp3 --dataset checkpoints --output-dir my-pipeline
    """
    from pdiff_hub import runs
    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.recipes import load_recipe

    summary = runs.train(
        load_recipe(recipe, override or []), CheckpointDataset.from_pretrained(dataset), output_dir, log_with=log_with
    )
    typer.echo(
        f"deviation R2 on held-out checkpoints {summary.deviation_r2}, loss {summary.loss:.4f}; "
        f"the pipeline is in {output_dir}"
    )


@app.command()
def generate(
    pipeline: Annotated[str, typer.Argument(help="A pipeline's folder or Hub id.")],
    output_dir: Annotated[Path | None, typer.Option(help="Where the networks will be.")] = None,
    num_models: Annotated[int, typer.Option(help="How many, at least 1.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same networks.")] = 0,
    num_inference_steps: Annotated[int | None, typer.Option(help="Default: the pipeline's own.")] = None,
    push_to_hub: Annotated[str | None, typer.Option(help="Publish it as a Hub repository of this name.")] = None,
    condition: _Condition = None,
    guidance_scale: Annotated[float, typer.Option(help="How strictly to follow the condition; 1 asks once.")] = 1.0,
    revision: _Revision = None,
    device: _Device = "cpu",
) -> None:
    """Generate networks and write them as model-00000.safetensors ..., or publish one. They load with strict=True.

    A folder that holds more networks than these is refused.

    Example: pdiff generate pipelines/digits-mlp3 --num-models 10 --seed 0 --output-dir networks
    """
    from pdiff_hub import runs
    from pdiff_hub.hub import push_network
    from pdiff_hub.pipeline import PDiffPipeline

    if output_dir is None and push_to_hub is None:
        raise PdiffError("nothing says where the networks should go: give --output-dir, or --push-to-hub.")
    if push_to_hub is not None and num_models != 1:
        raise PdiffError(
            f"a repository holds one network, and --num-models is {num_models}: publish one at a time, "
            "each with a seed of its own, or call pdiff_hub.hub.push_network with its index."
        )
    if push_to_hub is not None and condition is not None:
        raise PdiffError("--push-to-hub publishes networks without a condition only: write it with --output-dir.")
    asked = _asked(condition)
    pipe = PDiffPipeline.from_pretrained(pipeline, revision=revision).to(device)
    if output_dir is not None:
        files = runs.write_networks(
            pipe,
            num_models,
            output_dir,
            seed=seed,
            num_inference_steps=num_inference_steps,
            condition=asked,
            guidance_scale=guidance_scale,
        )
        typer.echo(f"{len(files)} networks are in {output_dir}")
    if push_to_hub is not None:
        typer.echo(push_network(pipe, push_to_hub, seed=seed, num_inference_steps=num_inference_steps))


@app.command()
def fit(
    pipeline: Annotated[str, typer.Argument(help="A pipeline's folder or Hub id.")],
    task: Annotated[str, typer.Option(help="A folder with a sub-folder per class, or a task as in a recipe.")],
    output_dir: Annotated[Path, typer.Option(help="Where the networks will be.")],
    num_labels: Annotated[int, typer.Option(help="How many training images are used, evenly over the answers.")] = 50,
    num_models: Annotated[int, typer.Option(help="How many, at least 1; all together say how sure they are.")] = 5,
    classes: Annotated[str | None, typer.Option(help="For yes/no networks: which labels are yes, as 0,3,7.")] = None,
    condition: _Condition = None,
    seed: Annotated[int, typer.Option(help="The same seed draws the same labels and gives the same networks.")] = 0,
    revision: _Revision = None,
    device: _Device = "cpu",
    trust_remote_code: _Trust = False,
) -> None:
    """Find networks that give the labels of a few images, write them as `pdiff generate` does, and judge them.

    Example: pdiff fit PIPELINE --task '{dataset: digits}' --classes 0,3,7 --num-labels 50 --output-dir networks
    """
    from pdiff_hub.pipeline import PDiffPipeline
    from pdiff_hub.runs.fitting import fit_networks

    asked = _asked(condition)
    pipe = PDiffPipeline.from_pretrained(pipeline, revision=revision).to(device)
    fitted = fit_networks(pipe, task, output_dir, num_labels, num_models, classes, asked, seed, trust_remote_code)
    typer.echo(f"{fitted}\n{len(fitted.files)} networks are in {output_dir}")


@app.command()
def evaluate(
    pipeline: Annotated[str, typer.Argument(help="A pipeline's folder or Hub id.")],
    dataset: Annotated[str, typer.Option(help="The data set it was trained on: folder or Hub id.")],
    output_dir: _ReportDir,
    num_models: _NumJudged = 200,
    seed: int = 0,
    num_inference_steps: int | None = None,
    baselines: Annotated[int, typer.Option(help="Networks that each baseline makes; 0: no baselines.")] = 100,
    revision: _Revision = None,
    device: _Device = "cpu",
    trust_remote_code: _Trust = False,
    images: _Images = None,
) -> None:
    """Generate networks and compare them with the originals: accuracy, similarity, and whether they are copies.

    Example: pdiff evaluate runs/digits --dataset runs/digits/checkpoints --output-dir report
    """
    from pdiff_hub import runs
    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.evaluation.table import print_results
    from pdiff_hub.pipeline import PDiffPipeline
    from pdiff_hub.recipes import EvaluateConfig

    pipe = PDiffPipeline.from_pretrained(pipeline, revision=revision).to(device)
    originals = CheckpointDataset.from_pretrained(dataset)
    with runs.generated_rows(
        pipe, num_models, output_dir, seed=seed, num_inference_steps=num_inference_steps
    ) as generated:
        results = runs.evaluate(
            pipe,
            originals,
            generated,
            output_dir,
            config=EvaluateConfig(baselines=baselines),
            name=Path(pipeline).name,
            seed=seed,
            source=pipe.folder,
            num_inference_steps=num_inference_steps,
            trust_remote_code=trust_remote_code,
            unseen=runs.unseen_of(Path(dataset)),
            images=images,
        )
    print_results(results)
    typer.echo(f"report.html, results.json and the pictures are in {output_dir}")


@app.command()
def audit(
    pipeline: Annotated[str, typer.Argument(help="A pipeline's folder or Hub id.")],
    dataset: Annotated[str | None, typer.Option(help="Its training data. Default: its own checkpoints/.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Default: runs/NAME-audit.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Measure only this (repeatable).")] = None,
    num_models: _NumJudged = 200,
    seed: int = 0,
    revision: _Revision = None,
    device: _Device = "cpu",
    trust_remote_code: _Trust = False,
    images: _Images = None,
) -> None:
    """Does it generate, or copy and average? Compare a pipeline with every simple baseline, and say which is better.

    Example: pdiff audit pipelines/digits-mlp3
    """
    from pdiff_hub import runs
    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.evaluation.table import print_results

    directory = output_dir or Path("runs") / f"{Path(pipeline).resolve().name}-audit"
    originals = None if dataset is None else CheckpointDataset.from_pretrained(dataset)
    print_results(
        runs.audit(
            pipeline,
            directory,
            dataset=originals,
            metrics=metric or (),
            num_models=num_models,
            seed=seed,
            device=device,
            trust_remote_code=trust_remote_code,
            revision=revision,
            images=images,
        )
    )
    typer.echo(f"report.html, results.json and the pictures are in {directory}")


@app.command()
def reproduce(
    what: Annotated[str, typer.Argument(help=f"all, or one of {_REPRODUCED}.")],
    scale: Annotated[str, typer.Option(help="small: minutes on a laptop; paper: the paper's own setting.")] = "small",
    task: Annotated[str | None, typer.Option(help="Another data set: a name, Hub id or folder.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Default: runs/reproduce-SCALE.")] = None,
    seed: int = 0,
    device: _Device = "cpu",
) -> None:
    """Measure the paper's tables and figures again, compare them with the published ones, and say which orderings held.

    Tables share work. To go on with a stopped reproduction, start it again. Example: pdiff reproduce table2a
    """
    from pdiff_hub.reproduce.reproduce import reproduce as run_reproduction

    directory = output_dir or Path("runs") / f"reproduce-{scale}"
    run_reproduction(what, directory, scale=scale, task=task, seed=seed, device=device, say=typer.echo)
    written = "report.html, reproduction.json" if what == "all" else f"{what}.html, {what}.json"
    typer.echo(f"{written} and the pictures are in {directory}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A pipeline's or a data set's folder.")],
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

    Example: pdiff push pipelines/digits-mlp3 user/digits-mlp3 --checkpoints-id user/digits-mlp3-checkpoints
    """
    from pdiff_hub.hub import push_folder
    from pdiff_hub.transfer import PushOptions

    options = PushOptions(private=private or None, revision=revision, create_pr=create_pr)
    if message is not None:
        options["commit_message"] = message
    typer.echo(push_folder(folder, repo_id, checkpoints_id=checkpoints_id, append=append, **options))


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(help="A pipeline or data set on the Hub: user/name.")],
    directory: Annotated[Path, typer.Argument(help="A new folder; it ends whole, or is not there.")],
    revision: _Revision = None,
    rows: Annotated[str | None, typer.Option(help="A data set's: only these checkpoints, as 0:10 (not 10).")] = None,
) -> None:
    """Download a pipeline or a data set into a folder.

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
    typer.echo(f"The {kind} is in {directory}")


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="A pipeline's or a data set's folder or Hub id.")],
    revision: _Revision = None,
) -> None:
    """Say what a folder or Hub repository holds, and its results.

    Example: pdiff info pipelines/digits-mlp3
    """
    from pdiff_hub.evaluation.table import print_results
    from pdiff_hub.hub import describe

    text, results = describe(path, revision=revision)
    typer.echo(text)
    measured = None if results is None else results.measured
    if results is not None and measured is not None and (measured.accuracy or measured.requests is not None):
        print_results(results)


def main() -> None:
    """Shows our own errors as one sentence for people. Any other error is a bug and shows its trace."""
    # A recipe may name a network function in the current folder, which comes last so that it shadows no library.
    sys.path.append("")
    try:
        app()
    except Exception as error:  # names in `except` would be imported, with torch, whenever the command exits
        from pdiff_hub.travelling import conditioner, param_autoencoder, pipeline_pdiff

        ours = (conditioner.ConditionError, param_autoencoder.ParamError, pipeline_pdiff.SamplingError, PdiffError)
        if not isinstance(error, (*ours, OSError)):
            raise
        typer.secho(f"pdiff: {error}", fg="red", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
