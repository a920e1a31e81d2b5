"""All stages of a recipe: collect -> train -> generate -> evaluate. A killed run goes on where it stopped.

Under a launcher, call each in every process. A population is collected, the pipeline trained, networks are generated
and judged by all of them; other checkpoints are collected by the main process, for which the others wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.index import INDEX_NAME
from pdiff_hub.checkpoints.rows import SHARD_TENSOR, ShardRows
from pdiff_hub.collect.family import FamilyConfig
from pdiff_hub.errors import PdiffError, require
from pdiff_hub.evaluation.evaluate import require_originals
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.processes import alone_in, this_run
from pdiff_hub.recipes import Recipe, functions_of, remember_made, require_trust
from pdiff_hub.records import Results, RunFolder, TrainingSummary
from pdiff_hub.records.made_here import pass_on
from pdiff_hub.runs.collecting import collect, require_of, spec_of
from pdiff_hub.runs.generating import write_params
from pdiff_hub.runs.judging import evaluate
from pdiff_hub.runs.own_code import keep_sources
from pdiff_hub.safe_files import (
    keep_settings,
    read_json,
    remove_unfinished,
    replacing,
    require_same_settings,
    write_json,
)
from pdiff_hub.safe_files.checking import checked
from pdiff_hub.safe_files.tensors import read_header
from pdiff_hub.tasks import load_task
from pdiff_hub.training.pipeline import train_pipeline

_Result = TypeVar("_Result")


def train(
    recipe: Recipe, dataset: CheckpointDataset, directory: Path, *, log_with: str | None = None
) -> TrainingSummary:
    """Train `recipe`'s pipeline on `dataset` and write it into `directory`."""
    summary = train_pipeline(
        dataset if recipe.condition is None else dataset.with_conditions(recipe.condition),
        directory,
        recipe.autoencoder,
        recipe.diffusion,
        seed=recipe.seed,
        num_inference_steps=recipe.generate.num_inference_steps,
        log_with=log_with,
    )
    if this_run().is_main:
        pass_on(dataset.folder, directory)
    return summary


def run(recipe: Recipe, directory: Path, **options: Any) -> Results:
    """All stages of `recipe` in `directory`; options and errors as of `Stages`."""
    return Stages(recipe, directory, **options).evaluate()


class Stages:
    """The stages of `recipe` in `directory`. Each goes on where it was stopped, after those that it needs.

    Args:
        name: of the pipeline in its report; by default the folder's name.
        dataset: the recipe's checkpoints, if they are collected already.
        say: is told what begins.
        around: makes a context around each stage ("collect", "train", "generate", "evaluate") that is not done yet.
        trust_remote_code: as in `collect`.

    All methods raise ValueError if `directory` was begun with another recipe, or holds checkpoints or a pipeline of
    another network (it names what differs), and if another process runs in it.
    """

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        *,
        device: str = "cpu",
        log_with: str | None = None,
        name: str = "",
        dataset: CheckpointDataset | None = None,
        say: Callable[[str], None] = lambda text: None,
        around: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext(),
        trust_remote_code: bool = False,
    ):
        self.recipe, self.folder, self.name = recipe, RunFolder(directory), name
        self._device, self._log_with, self._trust_remote_code = device, log_with, trust_remote_code
        self._given, self._around = dataset, around
        self._here = this_run()
        self._say = say if self._here.is_main else lambda text: None
        self._dataset: CheckpointDataset | None = None
        self._pipe: PDiffPipeline | None = None
        self._last = 3 if isinstance(recipe.collect, FamilyConfig) else 4

    def collect(self) -> CheckpointDataset:
        """The checkpoints, in the folder's `checkpoints/` unless they were given."""
        with self._begun():
            return self._collected()

    def train(self) -> PDiffPipeline:
        """The trained pipeline, opened from the folder."""
        with self._begun():
            return self._trained()

    def evaluate(self) -> Results:
        """Judges networks that the pipeline generates, and writes results, report and pictures."""
        if isinstance(self.recipe.collect, FamilyConfig):
            require(
                self.recipe.collect.held_out_tasks >= 1,
                "collect.held_out_tasks",
                self.recipe.collect.held_out_tasks,
                "at least 1 to judge by; without, use `pdiff collect` and `pdiff train`",
            )
        with self._begun():
            pipe, dataset = self._trained(), self._collected()
            generated = None if self._last == 3 else self._generated(pipe, dataset)
            return self._judged(pipe, dataset, generated)

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """Holds the folder, which keeps the recipe, so that the same one goes on in it and no other."""
        recipe, folder = self.recipe, self.folder
        require_trust(recipe, self._trust_remote_code)
        _require_no_loss(folder, recipe.file)
        with alone_in(folder.path):
            if self._here.is_main:
                self._write_recipe()
            self._here.wait()
            self._clock = _Clock(folder.training.seconds)
            yield

    def _write_recipe(self) -> None:
        recipe, folder = self.recipe, self.folder
        folder.training.path.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder.training.path)
        # A recipe that failed before anything was collected or trained, for a misspelt name say, may be corrected.
        if folder.training.recipe.exists() and (folder.checkpoints.exists() or folder.training.settings.exists()):
            keep_settings(folder.training.recipe, recipe.to_dict())
            if self._dataset is None:
                self._say(f"Going on with the run in {folder.path}")
        else:
            write_json(folder.training.recipe, recipe.to_dict())
        with replacing(folder.recipe) as temporary:
            temporary.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")

    def _collected(self) -> CheckpointDataset:
        if self._dataset is None:
            recipe, place = self.recipe, self.folder.checkpoints
            if self._given is not None:
                if functions_of(recipe):
                    spec = spec_of(recipe, load_task(recipe.task, seed=recipe.seed))
                    require_of(recipe, spec, self._given, self.folder.path)
                self._dataset = self._given
            else:
                self._say(f"1/{self._last} collect checkpoints")
                begun, done = place.exists(), (place / INDEX_NAME).exists()
                with nullcontext() if done else self._around("collect"):
                    self._dataset = self._clock.time("collect", self._collect, begun=begun)
        return self._dataset

    def _collect(self) -> CheckpointDataset:
        return collect(
            self.recipe, self.folder.checkpoints, device=self._device, trust_remote_code=self._trust_remote_code
        )

    def _trained(self) -> PDiffPipeline:
        if self._pipe is not None:
            return self._pipe
        dataset, folder = self._collected(), self.folder
        require_originals(dataset)
        self._say(f"2/{self._last} train on {len(dataset)} checkpoints of {dataset.layout.num_params:,} parameters")
        if not self._here.told(folder.training.summary.exists()):
            folder.generated.unlink(missing_ok=True)  # of a pipeline that was here before
            with self._around("train"):
                train(self.recipe, dataset, folder.path, log_with=self._log_with)
        if self._here.is_main:
            remember_made(folder.path, self.recipe, dataset.network)
            keep_sources(folder.path, self.recipe)
        self._here.wait()
        pipe = PDiffPipeline.from_pretrained(folder.path).to(self._device)
        # What is called is what the recipe names, never what a pipeline names that somebody has put here.
        named = pipe.autoencoder.config.network
        if named is not None:
            require_same_settings(folder.path, {"network": dict(named)}, {"network": dataset.network})
        self._pipe = pipe
        return pipe

    def _generated(self, pipe: PDiffPipeline, dataset: CheckpointDataset) -> ShardRows:
        asked, num_params, file = self.recipe.generate.num_models, dataset.layout.num_params, self.folder.generated
        num_models = self.recipe.evaluate.num_generated(asked, num_params)
        fewer = "" if num_models == asked else f", not {asked}, since they are large (evaluate.most_numbers)"
        self._say(f"3/4 generate {num_models} networks{fewer}")
        if not self._here.told(file.exists() and not _of_another_number(file, num_models, num_params)):
            with self._around("generate"):
                self._clock.time("generate", lambda: write_params(pipe, num_models, file, seed=self.recipe.seed))
        return ShardRows([(file, num_models)], num_params)

    def _judged(self, pipe: PDiffPipeline, dataset: CheckpointDataset, generated: ShardRows | None) -> Results:
        recipe = self.recipe
        if generated is None:
            self._say("3/3 ask for networks for held-out tasks, beside simple ways to get them")
        else:
            self._say("4/4 evaluate, beside simple baselines" if recipe.evaluate.baselines else "4/4 evaluate")
        with self._around("evaluate"):
            return evaluate(
                pipe,
                dataset,
                generated,
                self.folder.path,
                config=recipe.evaluate,
                name=self.name,
                seed=recipe.seed,
                seconds=dict(self._clock.seconds),
                recipe=recipe.to_dict(),
                trust_remote_code=bool(functions_of(recipe)),  # trusted above, and the same as in data set and pipeline
            )


def _require_no_loss(folder: RunFolder, recipe: Path | None) -> None:
    """ValueError if a run that begins in `folder` would write over what somebody else wrote there."""
    if folder.training.recipe.exists():
        return  # begun by an earlier run, which wrote its recipe and card
    if recipe is not None and folder.recipe.exists() and recipe.resolve() == folder.recipe.resolve():
        raise PdiffError(
            f"{recipe} lies in the folder of the run, which writes its recipe with every default there: what you wrote "
            "would be lost; give another output folder."
        )
    if folder.card.exists() and not folder.index.exists():
        raise PdiffError(
            f"{folder.path} has a {folder.card.name} and no pipeline: a run would write its card over it; give another "
            "output folder."
        )


def _of_another_number(file: Path, num_models: int, num_params: int) -> bool:
    """Whether an earlier version, which bounded no numbers, has generated more networks into `file`."""
    found = read_header(file).get(SHARD_TENSOR)
    return found is not None and found.shape[1:] == (num_params,) and found.shape[0] != num_models


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
            if this_run().is_main:
                write_json(self.file, self.seconds)
        return result
