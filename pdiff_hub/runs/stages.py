"""All stages of a recipe: collect -> train -> generate -> evaluate. A killed run goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import ShardRows
from pdiff_hub.collect.family import FamilyConfig, collect_family, family_classes, unseen_of
from pdiff_hub.collect.finetune import FinetuneConfig, collect_finetune
from pdiff_hub.collect.importing import import_checkpoints
from pdiff_hub.collect.population import PopulationConfig, collect_population
from pdiff_hub.errors import require, require_known
from pdiff_hub.evaluation.evaluate import require_originals
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.networks.dry_run import build_checked
from pdiff_hub.networks.vision import input_statistics
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.recipes import Recipe, functions_of, require_trust
from pdiff_hub.records import Results, RunFolder, TrainingSummary
from pdiff_hub.runs.generating import write_params
from pdiff_hub.runs.judging import evaluate
from pdiff_hub.runs.preprocessing import warn_of_preprocessing
from pdiff_hub.safe_files import (
    keep_settings,
    read_json,
    remove_unfinished,
    replacing,
    require_same_settings,
    write_json,
)
from pdiff_hub.safe_files.checking import checked
from pdiff_hub.safe_files.lock import alone_in
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.training.pipeline import train_pipeline
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_Result = TypeVar("_Result")
# What is known of each checkpoint of a training of our own.
_COLUMNS = ("run", "seed", "step", "train_loss", "validation_loss", "validation_accuracy")


def collect(
    recipe: Recipe,
    directory: Path,
    *,
    device: str = "cpu",
    trained: Path | None = None,
    trust_remote_code: bool = False,
) -> CheckpointDataset:
    """Collect the checkpoints that `recipe` asks for in `directory`; those that are there already are kept.

    trained: as in `collect_finetune`. trust_remote_code: whether a function that the recipe's file names may be called;
    one that was named in Python is. ValueError if the checkpoints that are there are of another network than the
    recipe's.
    """
    require_trust(recipe, trust_remote_code)
    if recipe.condition is not None and isinstance(recipe.collect, FinetuneConfig | PopulationConfig):
        require_known("column of the metadata, by condition", [recipe.condition], _COLUMNS)
    task = load_task(recipe.task, seed=recipe.seed)
    spec = _spec_of(recipe, task)
    dataset = _collect(recipe, task, spec, directory, device, trained)
    _require_of(recipe, spec, dataset, directory)
    return dataset


def _spec_of(recipe: Recipe, task: Task) -> dict[str, Any]:
    """The complete spec of the recipe's network."""
    family = recipe.collect if isinstance(recipe.collect, FamilyConfig) else None
    num_classes = task.num_classes if family is None else family_classes(family, task)
    return resolve_network(
        recipe.network, in_channels=task.in_channels, image_size=task.image_size, num_classes=num_classes
    )


def _require_of(recipe: Recipe, spec: dict[str, Any], dataset: CheckpointDataset, directory: Path) -> None:
    """ValueError unless the set names the recipe's own network and family: what a found set names is never called."""
    there, now = {"network": dataset.network}, {"network": spec}
    if isinstance(recipe.collect, FamilyConfig):
        settings = dataset.collect.get("settings", {}).get("collect", {})
        there["family"] = {key: settings.get(key) for key in ("family", "options")}
        now["family"] = {"family": recipe.collect.family, "options": dict(recipe.collect.options)}
    require_same_settings(directory, there, now)


def _collect(
    recipe: Recipe, task: Task, spec: dict[str, Any], directory: Path, device: str, trained: Path | None
) -> CheckpointDataset:
    config = recipe.collect
    if "normalize" not in task.spec and (statistics := input_statistics(spec)) is not None:
        task = task.normalized(statistics)
    if isinstance(config, FinetuneConfig):
        return collect_finetune(
            task, spec, recipe.select, config, directory, seed=recipe.seed, device=device, trained=trained
        )
    if isinstance(config, PopulationConfig):
        return collect_population(task, spec, recipe.select, config, directory, seed=recipe.seed, device=device)
    if isinstance(config, FamilyConfig):
        return collect_family(task, spec, recipe.select, config, directory, seed=recipe.seed, device=device)
    network = build_checked(spec, seed=recipe.seed, from_files=True)
    layout = ParamLayout.from_module(network, recipe.select, config.buffers)
    dataset = import_checkpoints(
        config.source,
        layout,
        network=spec,
        task=task.spec,
        pattern=config.pattern,
        key=config.key,
        prefix=config.prefix,
        base=config.base,
        ignore=config.globs,
        hub=config.hub,
        conditions=config.conditions,
        build=lambda seed: build_network(spec, seed=seed),
        output_dir=directory,
    )
    warn_of_preprocessing(dataset, network, task)
    return dataset


def train(
    recipe: Recipe, dataset: CheckpointDataset, directory: Path, *, log_with: str | None = None
) -> TrainingSummary:
    """Train `recipe`'s pipeline on `dataset` and write it into `directory`."""
    return train_pipeline(
        dataset if recipe.condition is None else dataset.with_conditions(recipe.condition),
        directory,
        recipe.autoencoder,
        recipe.diffusion,
        seed=recipe.seed,
        num_inference_steps=recipe.generate.num_inference_steps,
        log_with=log_with,
    )


def run(
    recipe: Recipe,
    directory: Path,
    *,
    device: str = "cpu",
    log_with: str | None = None,
    name: str = "",
    dataset: CheckpointDataset | None = None,
    say: Callable[[str], None] = lambda text: None,
    trust_remote_code: bool = False,
) -> Results:
    """Run all stages of `recipe` in `directory`. A killed run goes on where it stopped if it is started again.

    name: of the pipeline in its report; by default the folder's name. dataset: the recipe's checkpoints, if they are
    collected already. trust_remote_code: as in `collect`. ValueError if `directory` was begun with another recipe, or
    holds checkpoints or a pipeline of another network (it names what differs), and if another process runs in it.
    """
    require_trust(recipe, trust_remote_code)
    if isinstance(recipe.collect, FamilyConfig):
        require(
            recipe.collect.held_out_tasks >= 1,
            "collect.held_out_tasks",
            recipe.collect.held_out_tasks,
            "at least 1 to judge by; without, use `pdiff collect` and `pdiff train`",
        )
    with alone_in(directory):
        return _run(recipe, directory, device, log_with, name, dataset, say, trust_remote_code)


def _run(
    recipe: Recipe,
    directory: Path,
    device: str,
    log_with: str | None,
    name: str,
    dataset: CheckpointDataset | None,
    say: Callable[[str], None],
    trust_remote_code: bool,
) -> Results:
    """As `run`, after what a recipe alone tells was checked, in a folder that nobody else writes into."""
    folder = RunFolder(directory)
    folder.training.path.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder.training.path)
    # A recipe that failed before anything was collected or trained, for a misspelt name say, may be corrected.
    if folder.training.recipe.exists() and (folder.checkpoints.exists() or folder.training.settings.exists()):
        keep_settings(folder.training.recipe, recipe.to_dict())
        say(f"Going on with the run in {directory}")
    else:
        write_json(folder.training.recipe, recipe.to_dict())
    with replacing(folder.recipe) as temporary:
        temporary.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")
    clock = _Clock(folder.training.seconds)

    def collected(place: Path) -> CheckpointDataset:
        return collect(recipe, place, device=device, trust_remote_code=trust_remote_code)

    stages = 3 if isinstance(recipe.collect, FamilyConfig) else 4
    if dataset is None:
        say(f"1/{stages} collect checkpoints")
        begun = folder.checkpoints.exists()
        dataset = clock.time("collect", lambda: collected(folder.checkpoints), begun=begun)
    elif functions_of(recipe):
        _require_of(recipe, _spec_of(recipe, load_task(recipe.task, seed=recipe.seed)), dataset, directory)
    require_originals(dataset)
    say(f"2/{stages} train on {len(dataset)} checkpoints of {dataset.layout.num_params:,} parameters")
    if not folder.training.summary.exists():
        folder.generated.unlink(missing_ok=True)  # of a pipeline that was here before
        train(recipe, dataset, directory, log_with=log_with)
    pipe = PDiffPipeline.from_pretrained(directory).to(device)
    # What is called is what the recipe names, never what a pipeline names that somebody has put here.
    named = pipe.autoencoder.config.network
    if named is not None:
        require_same_settings(directory, {"network": dict(named)}, {"network": dataset.network})
    generated, unseen = None, None
    if isinstance(recipe.collect, FamilyConfig):
        unseen = unseen_of(folder.checkpoints)
        say("3/3 ask for networks for held-out tasks, beside simple ways to get them")
    else:
        num_models = recipe.generate.num_models
        say(f"3/4 generate {num_models} networks")
        if not folder.generated.exists():
            clock.time("generate", lambda: write_params(pipe, num_models, folder.generated, seed=recipe.seed))
        generated = ShardRows([(folder.generated, num_models)], dataset.layout.num_params)
        say("4/4 evaluate, beside simple baselines" if recipe.evaluate.baselines else "4/4 evaluate")
    return evaluate(
        pipe,
        dataset,
        generated,
        directory,
        config=recipe.evaluate,
        name=name,
        seed=recipe.seed,
        seconds=dict(clock.seconds),
        recipe=recipe.to_dict(),
        trust_remote_code=bool(functions_of(recipe)),  # trusted above, and the same as in data set and pipeline
        unseen=unseen,
    )


class _Clock:
    """Seconds per stage, kept on disk; None for a stage that was stopped: nobody timed the part before the stop."""

    def __init__(self, file: Path):
        self.file = file
        self.seconds: dict[str, float | None] = {}
        if file.exists():
            self.seconds = checked(
                dict[str, float | None], read_json(file), str(file), "remove it; only times are lost."
            )

    def time(self, stage: str, work: Callable[[], _Result], *, begun: bool = False) -> _Result:
        """Does `work` and times it. `begun` says that `work` goes on with something that was stopped."""
        began = time.perf_counter()
        result = work()
        if stage not in self.seconds:
            self.seconds[stage] = None if begun else time.perf_counter() - began
            write_json(self.file, self.seconds)
        return result
