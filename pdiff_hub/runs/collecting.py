"""Collecting the checkpoints that a recipe asks for, in whichever way it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.family import FamilyConfig, collect_family, family_classes
from pdiff_hub.collect.finetune import FinetuneConfig, collect_finetune
from pdiff_hub.collect.importing import Alignment, ImportConfig, import_checkpoints
from pdiff_hub.collect.population import PopulationConfig, collect_population
from pdiff_hub.errors import require_known
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.networks.dry_run import build_checked
from pdiff_hub.networks.vision import input_statistics
from pdiff_hub.processes import this_run
from pdiff_hub.recipes import Recipe, remember_made, require_trust
from pdiff_hub.runs.given_checkpoints import reopen_given, were_given
from pdiff_hub.runs.preprocessing import warn_of_preprocessing
from pdiff_hub.safe_files import (
    require_same_settings,
)
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_SAMPLE = 16  # images on which alignment is checked
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
    here = this_run()
    require_trust(recipe, trust_remote_code)
    if recipe.condition is not None and isinstance(recipe.collect, FinetuneConfig | PopulationConfig):
        require_known("column of the metadata, by condition", [recipe.condition], _COLUMNS)
    with here.main_first():  # it may have to be fetched
        task = load_task(recipe.task, seed=recipe.seed)
    spec = spec_of(recipe, task)
    if isinstance(recipe.collect, ImportConfig) and were_given(recipe.collect):
        dataset = reopen_given(recipe.collect, directory)
    elif here.is_main or isinstance(recipe.collect, PopulationConfig):
        dataset = _collect(recipe, task, spec, directory, device, trained)
        here.wait()
    else:
        here.wait()
        dataset = CheckpointDataset.from_pretrained(directory)
    require_of(recipe, spec, dataset, directory)
    if here.is_main:
        remember_made(directory, recipe, spec)
    return dataset


def spec_of(recipe: Recipe, task: Task) -> dict[str, Any]:
    """The complete spec of the recipe's network."""
    return resolve_network(recipe.network, **network_shape(recipe, task))


def network_shape(recipe: Recipe, task: Task) -> dict[str, int]:
    """What the recipe's network takes and gives, as arguments of `resolve_network`."""
    family = recipe.collect if isinstance(recipe.collect, FamilyConfig) else None
    num_classes = task.num_classes if family is None else family_classes(family, task)
    return {"in_channels": task.in_channels, "image_size": task.image_size, "num_classes": num_classes}


def require_of(recipe: Recipe, spec: dict[str, Any], dataset: CheckpointDataset, directory: Path) -> None:
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
    align = None
    if config.align:
        sample_NX = task.inputs(task.validation, slice(0, _SAMPLE))
        align = Alignment(network, sample_NX, config.align_rounds, recipe.seed)
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
        align=align,
        output_dir=directory,
    )
    warn_of_preprocessing(dataset, network, task)
    return dataset
