"""What people give a `PDiffTrainer`, a network, a task and perhaps checkpoints, as a recipe."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.finetune import FinetuneConfig
from pdiff_hub.collect.importing import ImportConfig
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import resolve_network
from pdiff_hub.networks.given import Given, Kept, Weights, importable_name, keep_network, stand_in
from pdiff_hub.networks.memory import is_in_memory
from pdiff_hub.processes import this_run
from pdiff_hub.recipes import Recipe
from pdiff_hub.records import RunFolder
from pdiff_hub.runs.arguments import PDiffArguments
from pdiff_hub.runs.collecting import network_shape
from pdiff_hub.runs.given_checkpoints import States, dataset_of, keep_given, recipe_of_given, were_given
from pdiff_hub.safe_files import differences, read_json, write_safetensors
from pdiff_hub.safe_files.lock import alone_in
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.tasks.given import keep_images
from pdiff_hub.tasks.memory import GivenImages

Network = Given | str | Mapping[str, Any]
Checkpoints = CheckpointDataset | str | Path | States


@dataclass(frozen=True)
class Inputs:
    """A recipe, and what of it is in memory.

    Attributes:
        dataset: the checkpoints, if they are not to be collected.
        images: of the task. Held, because `load_task` knows them only as long as somebody does.
        network: the recipe's, if no other process can build it.
    """

    recipe: Recipe
    dataset: CheckpointDataset | None = None
    images: GivenImages | None = None
    network: Kept | None = None

    def keep(self, folder: RunFolder) -> None:
        """Keeps in the run's folder what is in memory and needed to go on, but not images and code.

        ValueError if the run there was begun with another network in memory.
        """
        given = self.dataset if were_given(self.recipe.collect) else None
        if self.network is None and given is None:
            return
        if not this_run().is_main:
            return
        with alone_in(folder.path):
            begun = folder.training.recipe.exists() and (
                folder.checkpoints.exists() or folder.training.settings.exists()
            )
            if self.network is not None:
                if begun:
                    self._require_network_of(folder)
                elif self.network.weights is not None:
                    folder.training.path.mkdir(parents=True, exist_ok=True)
                    write_safetensors(folder.training.network, self.network.weights)
            if given is not None and not begun:
                keep_given(given, folder.checkpoints)

    def _require_network_of(self, folder: RunFolder) -> None:
        assert self.network is not None
        recorded, now = read_json(folder.training.recipe).get("network"), self.network.spec["name"]
        there = recorded.get("name") if isinstance(recorded, dict) else recorded
        if there == now or not is_in_memory(there):
            return
        again = "use another folder."
        if self.network.weights is not None and folder.training.network.exists():
            again = (
                "if only its first weights are, since it was made again, go on with those that are kept: "
                f"network.load_state_dict(safetensors.torch.load_file({str(folder.training.network)!r})); or use "
                "another folder."
            )
        raise PdiffError(
            f"{folder.path} was begun with another network ({there}, and now it is {now}): its layers, the code of its "
            f"modules or its first weights are others; {again}"
        )


def inputs_of(network: Network | None, task: Any, checkpoints: Checkpoints | None, args: PDiffArguments) -> Inputs:
    """What was given, as `PDiffTrainer` describes it; errors as there."""
    dataset: CheckpointDataset | None = None
    if isinstance(checkpoints, CheckpointDataset):
        dataset = checkpoints
    elif isinstance(checkpoints, str | Path):
        dataset = CheckpointDataset.from_pretrained(checkpoints)
    if task is None:
        task = None if dataset is None else dataset.task
    if task is None:
        raise PdiffError("nothing says which images the networks are for: give task, as PDiffTrainer describes it.")
    spec, images = _task(task)
    if network is None:
        if dataset is None:
            raise PdiffError("nothing says which network this is about: give network, as PDiffTrainer describes it.")
        return Inputs(
            recipe_of_given(args.recipe(spec, dataset.network), dataset), _with_task(dataset, spec, args), images
        )
    if dataset is not None and is_in_memory(dataset.network["name"]):
        stand_in(network, dataset.network, dataset.layout)
        network = dataset.network
    named, kept = _network(network, spec, args, given=checkpoints is not None)
    recipe = args.recipe(spec, named)
    if checkpoints is None:
        return Inputs(recipe, None, images, kept)
    loaded = load_task(spec, seed=args.seed)
    complete = resolve_network(named, **network_shape(recipe, loaded))
    if dataset is not None:
        if different := differences(dataset.network, complete):
            raise PdiffError(
                f"the checkpoints are of another network than the one that was given: {'; '.join(different)}; leave "
                "network out, since they say themselves which it is."
            )
        dataset = _with_task(dataset, spec, args)
    else:
        assert not isinstance(checkpoints, CheckpointDataset | str | Path)
        dataset = dataset_of(checkpoints, recipe.select, complete, loaded)
    return Inputs(recipe_of_given(recipe, dataset), dataset, images, kept)


def _with_task(dataset: CheckpointDataset, spec: str | dict[str, Any], args: PDiffArguments) -> CheckpointDataset:
    if dataset.task is not None:
        return dataset
    known = copy.copy(dataset)
    known.task = load_task(spec, seed=args.seed).spec
    return known


def _task(task: Any) -> tuple[str | dict[str, Any], GivenImages | None]:
    """A task as a recipe has it, and its images if they are in memory."""
    if isinstance(task, Task):
        task = task.spec
    # A DatasetDict is a mapping as well, of splits.
    options = dict(task) if isinstance(task, Mapping) and "dataset" in task else {"dataset": task}
    options.pop("resolved", None)
    data, images = options["dataset"], None
    if isinstance(data, Path):
        options["dataset"] = str(data)
    elif not isinstance(data, str):
        images = keep_images(data, options)
        options["dataset"] = images.name
    return (options["dataset"] if len(options) == 1 else options), images


def _network(
    network: Network, task: str | dict[str, Any], args: PDiffArguments, *, given: bool
) -> tuple[str | dict[str, Any], Kept | None]:
    """A network as a recipe has it, and what is kept of it if it is in memory. given: whether checkpoints are."""
    options = dict(network) if isinstance(network, Mapping) else {"name": network}
    make = options.pop("name", None)
    if callable(make) and (path := importable_name(make)) is not None:
        make = path
    if isinstance(make, str):
        return ({"name": make, **options} if options else make), None
    if not callable(make):
        raise PdiffError(
            f"network is {type(make).__name__}, expected a module, a class or function that makes one, or its name."
        )
    weights: Weights = "new"
    if given or isinstance(args.collect, ImportConfig):
        weights = "any"
    elif isinstance(args.collect, FinetuneConfig):
        weights = "own"
    loaded = load_task(task, seed=args.seed)
    kept = keep_network(make, options, weights=weights, shape=network_shape(args.recipe(task, "mlp"), loaded))
    return kept.spec, kept
