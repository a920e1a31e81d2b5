"""From a recipe to a pipeline, and from a pipeline to networks: `pdiff run`, `collect`, `train`, `generate`, `fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pdiff_hub.cli.finished import remember, said_before
from pdiff_hub.cli.options import (
    Condition,
    Device,
    Guidance,
    NumModels,
    NumSteps,
    Overrides,
    PipelineName,
    RecipeName,
    Revision,
    Tracker,
    Trust,
    app,
    asked_for,
    echo,
    in_range,
    is_launched,
    named_task,
    process_number,
)
from pdiff_hub.errors import PdiffError


@app.command()
def run(
    recipe: RecipeName,
    output_dir: Annotated[Path | None, typer.Option(help="Default: runs/NAME.")] = None,
    override: Overrides = None,
    device: Device = "cpu",
    log_with: Tracker = None,
    trust_remote_code: Trust = False,
) -> None:
    """Collect, train, generate and evaluate. To go on with a stopped run, start it again with the same folder.

    Example: pdiff run digits-mlp3 --output-dir runs/digits --override generate.num_models=50
    """
    path = Path(recipe).resolve()
    directory = output_dir or Path("runs") / (path.parent.name if path.is_file() else path.name)
    if (said := said_before(directory, recipe, override or [])) is not None:
        echo(
            f"{said}\nThis run was finished before, and nothing has changed since; tables are in report.html. To "
            f"judge again, remove results.json. All is in {directory}"
        )
        return
    from pdiff_hub.evaluation.table import print_results, verdict
    from pdiff_hub.recipes import find_recipe, load_recipe
    from pdiff_hub.runs.trainer import PDiffTrainer
    from pdiff_hub.tasks.listing import local_folder

    loaded = load_recipe(recipe, override or [])
    file = find_recipe(recipe).resolve()
    trainer = PDiffTrainer.from_recipe(
        loaded,
        directory,
        device=device,
        log_with=log_with,
        name=file.parent.name,
        say=echo,
        trust_remote_code=trust_remote_code,
    )
    results = trainer.run()
    if process_number():
        return
    print_results(results)
    task = loaded.task if isinstance(loaded.task, str) else str(loaded.task["dataset"])
    remember(directory, recipe, override or [], file, verdict(results), local_folder(task))
    echo(f"Pipeline, report.html, results.json and the pictures are in {directory}")


@app.command()
def collect(
    recipe: RecipeName,
    output_dir: Annotated[Path, typer.Option(help="Where the data set will be.")],
    override: Overrides = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Collect checkpoints into a data set.

    Example: pdiff collect digits-mlp3 --output-dir checkpoints
    """
    from pdiff_hub.recipes import load_recipe
    from pdiff_hub.runs.trainer import PDiffTrainer

    loaded = load_recipe(recipe, override or [])
    trainer = PDiffTrainer.from_recipe(loaded, output_dir, device=device, trust_remote_code=trust_remote_code)
    dataset = trainer.collect(output_dir)
    echo(f"{len(dataset)} checkpoints of {dataset.layout.num_params:,} parameters are in {output_dir}")


@app.command()
def train(
    recipe: RecipeName,
    dataset: Annotated[str, typer.Option(help="A data set's folder or Hub id.")],
    output_dir: Annotated[Path, typer.Option(help="Where the pipeline will be.")],
    override: Overrides = None,
    log_with: Tracker = None,
) -> None:
    """Train a pipeline on a data set of checkpoints. For several devices use: accelerate launch examples/train.py.

    Example: pdiff train digits-mlp3 --dataset checkpoints --output-dir my-pipeline
    """
    from pdiff_hub.checkpoints import CheckpointDataset
    from pdiff_hub.recipes import load_recipe
    from pdiff_hub.runs.trainer import PDiffTrainer

    loaded, checkpoints = load_recipe(recipe, override or []), CheckpointDataset.from_pretrained(dataset)
    trainer = PDiffTrainer.from_recipe(loaded, output_dir, log_with=log_with, checkpoints=checkpoints)
    summary = trainer.train(output_dir)
    echo(
        f"deviation R2 on held-out checkpoints {summary.deviation_r2}, loss {summary.loss:.4f}; "
        f"the pipeline is in {output_dir}"
    )


@app.command()
def generate(
    pipeline: PipelineName,
    output_dir: Annotated[Path | None, typer.Option(help="Where the networks will be.")] = None,
    num_models: NumModels = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same networks.", callback=in_range)] = 0,
    num_inference_steps: NumSteps = None,
    push_to_hub: Annotated[str | None, typer.Option(help="Publish it as a Hub repository of this name.")] = None,
    condition: Condition = None,
    guidance_scale: Guidance = 1.0,
    format: Annotated[
        str, typer.Option(help="safetensors; torch-export or onnx: programs that run without this package.")
    ] = "safetensors",
    ensemble: Annotated[bool, typer.Option("--ensemble", help="One program that averages all networks.")] = False,
    revision: Revision = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Generate networks and write them as model-00000.safetensors ..., or publish one. They load with strict=True.

    generated.json beside them says how to use them without this package. A folder that holds more networks than these
    is refused.

    Example: pdiff generate digits-mlp3 --num-models 10 --seed 0 --output-dir networks

    Example: pdiff generate digits-mlp3 --num-models 5 --ensemble --format torch-export --output-dir networks
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
    if is_launched() and push_to_hub is not None:
        raise PdiffError("--push-to-hub publishes one network, from one process: start it without a launcher.")
    if ensemble and push_to_hub is not None:
        raise PdiffError("--ensemble writes a file, and --push-to-hub publishes one network: leave one of them out.")
    asked = asked_for(condition)
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
            format=format,
            ensemble=ensemble,
            trust_remote_code=trust_remote_code,
        )
        echo(f"{_networks_are(num_models)} in {f'{files[0]}, as one' if ensemble else output_dir}")
    if push_to_hub is not None:
        url = push_network(
            pipe,
            push_to_hub,
            seed=seed,
            num_inference_steps=num_inference_steps,
            condition=asked,
            guidance_scale=guidance_scale,
            format=format,
            trust_remote_code=trust_remote_code,
        )
        echo(url)


@app.command()
def fit(
    pipeline: PipelineName,
    task: Annotated[
        str, typer.Option(help="A folder with a sub-folder per class, or a task as in a recipe.", callback=named_task)
    ],
    output_dir: Annotated[Path, typer.Option(help="Where the networks will be.")],
    num_labels: Annotated[int, typer.Option(help="How many training images are used, evenly over the answers.")] = 50,
    num_models: NumModels = 5,
    classes: Annotated[str | None, typer.Option(help="For yes/no networks: which labels are yes, as 0,3,7.")] = None,
    condition: Condition = None,
    seed: Annotated[
        int, typer.Option(help="The same seed draws the same labels and gives the same networks.", callback=in_range)
    ] = 0,
    revision: Revision = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Find networks that give the labels of a few images, write them as `pdiff generate` does, and judge them.

    Several networks say together how sure they are.

    Example: pdiff fit digits-subsets --task '{dataset: digits}' --classes 0,3,7 --num-labels 50 --output-dir networks
    """
    from pdiff_hub.pipeline import PDiffPipeline
    from pdiff_hub.runs.fitting import fit_networks

    asked = asked_for(condition)
    pipe = PDiffPipeline.from_pretrained(pipeline, revision=revision).to(device)
    fitted = fit_networks(pipe, task, output_dir, num_labels, num_models, classes, asked, seed, trust_remote_code)
    echo(f"{fitted}\n{_networks_are(len(fitted.files))} in {output_dir}")


def _networks_are(number: int) -> str:
    return "1 network is" if number == 1 else f"{number} networks are"
