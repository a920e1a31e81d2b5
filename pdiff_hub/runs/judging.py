"""Judges networks of a pipeline and writes the report: `evaluate`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.held_out import require_unseen
from pdiff_hub.checkpoints.rows import Rows
from pdiff_hub.collect.family import build_family
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.baselines import baseline_variants
from pdiff_hub.evaluation.environment import environment
from pdiff_hub.evaluation.evaluate import evaluate_networks, require_originals
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.evaluation.known_rows import split_known
from pdiff_hub.evaluation.on_device import judging_device, task_on
from pdiff_hub.evaluation.results_page import write_results_page
from pdiff_hub.networks.dry_run import build_to_judge
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.pipeline.facts import facts_of
from pdiff_hub.processes import alone_in, this_run
from pdiff_hub.recipes import EvaluateConfig, is_trusted_to_judge, recipe_of
from pdiff_hub.records import FIGURES, Checkpoints, LossCurve, Measurements, Results, RunFolder
from pdiff_hub.runs.requests import draw_requests, judge_requests, judge_slope, measured_requests
from pdiff_hub.safe_files import write_json
from pdiff_hub.safe_files.lock import holding
from pdiff_hub.tasks import load_recorded_task


@dataclass(frozen=True, eq=False)
class _Judgement:
    """What `evaluate` was asked for; a recipe of None was looked for and not found."""

    pipe: PDiffPipeline
    dataset: CheckpointDataset
    folder: RunFolder
    source: RunFolder
    config: EvaluateConfig
    name: str
    seed: int
    seconds: Mapping[str, float | None]
    recipe: dict[str, Any] | None
    num_inference_steps: int | None
    trust_remote_code: bool
    images: str | Path | None

    def written(self, measured: Measurements, seconds_of_training: Mapping[str, float | None], began: float) -> Results:
        """The results of what was measured since `began` (`time.perf_counter`), as they were written."""
        facts = facts_of(
            self.pipe,
            name=self.name or self.folder.path.resolve().name,
            recipe=self.recipe,
            checkpoints=Checkpoints(self.dataset.hub_id, self.dataset.hub_revision) if self.dataset.hub_id else None,
            network=self.dataset.network,
            task=self.dataset.task,
            figures=[stem for stem in FIGURES if self.folder.picture(stem).exists()],
            num_inference_steps=self.num_inference_steps,
        )
        stages = {"collect": None, **seconds_of_training, "generate": None, **self.seconds}
        stages["evaluate"] = time.perf_counter() - began
        return write_results(Results(facts, measured, self.seed, environment(), stages), self.folder)


@holding("directory", by=alone_in)
def evaluate(
    pipe: PDiffPipeline,
    dataset: CheckpointDataset,
    generated_BP: torch.Tensor | Rows | None,
    directory: str | Path,
    *,
    config: EvaluateConfig | None = None,
    name: str = "",
    seed: int = 0,
    source: Path | None = None,
    seconds: Mapping[str, float | None] | None = None,
    recipe: dict[str, Any] | None = None,
    num_inference_steps: int | None = None,
    trust_remote_code: bool = False,
    unseen: CheckpointDataset | None = None,
    images: str | Path | None = None,
) -> Results:
    """Judge networks, and write results, numbers of single networks, report and pictures into `directory`.

    Under a launcher, call it in every process; each judges its share. PdiffError if another process writes into it.

    Args:
        name: what report and card call the pipeline; by default the directory's name.
        recipe: what they say about how it was made; by default the recipe in the pipeline's folder.
        num_inference_steps: the steps that the networks were generated with; None: the pipeline's own.
        source: the pipeline's folder, which holds what training measured; None: `directory`.
        trust_remote_code: whether to call functions that data set and pipeline name. Those that the user's own run on
            this machine called for what is in these folders are called in any case.
        unseen: of a family, the networks of its held-out tasks; None: those that go with the data set. Networks are
            then asked for and fitted on these tasks, and generated_BP is not needed.
        images: where the task's images are, as in `load_recorded_task`.
    """
    began, directory = time.perf_counter(), Path(directory)
    config, folder, source_folder = config or EvaluateConfig(), RunFolder(directory), RunFolder(source or directory)
    require_same_layout(pipe, dataset)
    originals, fresh = split_known(dataset, pipe.autoencoder)
    require_originals(originals)
    if dataset.task is None:
        raise PdiffError(
            "the data set does not say which task its networks are for, so they cannot be judged; import "
            "it again with a task."
        )
    trust_remote_code = is_trusted_to_judge(dataset, pipe.autoencoder.config.network, pipe.folder, trust_remote_code)
    judgement = _Judgement(
        pipe,
        dataset,
        folder,
        source_folder,
        config,
        name,
        seed,
        seconds or {},
        recipe or recipe_of(source_folder),
        num_inference_steps,
        trust_remote_code,
        images,
    )
    if dataset.collect.get("method") == "family":
        return _evaluate_requests(judgement, unseen or dataset.held_out())
    assert generated_BP is not None, "only families are judged without networks"
    device = judging_device(pipe.autoencoder.device)
    task = task_on(load_recorded_task(dataset.task, images=images), device)
    deviation_r2, curve, seconds_of_training = _measured_in_training(source_folder)
    directory.mkdir(parents=True, exist_ok=True)
    if this_run().is_main:
        clear_drawn(folder)
    network = build_to_judge(dataset.network, dataset.layout, "the data set", allow_factory=trust_remote_code)
    network = network.to(device)
    num_baselines = config.num_baselines(dataset.layout.num_params)
    variants = baseline_variants(network, task, pipe.autoencoder, fine_tune_steps=config.fine_tune_steps)
    measured = evaluate_networks(
        network,
        task,
        originals,
        generated_BP,
        deviation_r2=deviation_r2,
        fresh=fresh,
        autoencoder=pipe.autoencoder,
        curve=curve,
        num_originals=config.num_originals,
        variants=variants if config.baselines else (),
        num_models=num_baselines,
        seed=seed,
        folder=folder,
    )
    judge = Judge(network, task, dataset.layout, dataset.frozen)
    requests = judge_slope(pipe, judge, guidance_scale=config.guidance_scale, seed=seed)
    asked = (judgement.recipe or {}).get("generate", {}).get("num_models")
    fewer = notes_on_fewer(config, dataset.layout.num_params, asked, measured.num_generated)
    measured = replace(measured, requests=requests, notes=[*measured.notes, *fewer])
    return judgement.written(measured, seconds_of_training, began)


def notes_on_fewer(config: EvaluateConfig, num_params: int, asked: int | None, made: int) -> list[str]:
    """Notes, if the networks are so large that there are fewer than the recipe says."""
    notes, why = [], "since these are large (the option evaluate.most_numbers); intervals are wider"
    if asked is not None and made < asked and made == config.num_generated(asked, num_params):
        notes.append(f"{made} networks were generated, not {asked}, {why}.")
    if (number := config.num_baselines(num_params)) != config.baselines:
        notes.append(f"Each baseline made {number} networks, not {config.baselines}, {why}.")
    return notes


def _evaluate_requests(asked: _Judgement, unseen: CheckpointDataset | None) -> Results:
    """As `evaluate`, of networks each with a task of its own."""
    began = time.perf_counter()
    pipe, dataset, folder, config = asked.pipe, asked.dataset, asked.folder, asked.config
    if unseen is None or pipe.conditions is None:
        missing = "networks of held-out tasks to judge by" if unseen is None else "conditions to ask for"
        raise PdiffError(
            f"each network of this data set has a task of its own, and there are no {missing}; a run with "
            "`collect.held_out_tasks` of 1 or more has both, and they go with its whole data set."
        )
    assert dataset.task is not None
    require_unseen(dataset, unseen)
    settings = dataset.collect.get("settings", {}).get("collect", {})
    task = load_recorded_task(dataset.task, images=asked.images)
    family = build_family(
        str(settings.get("family")), settings.get("options", {}), task, allow_factory=asked.trust_remote_code
    )
    _, curve, seconds_of_training = _measured_in_training(asked.source)
    folder.path.mkdir(parents=True, exist_ok=True)
    if this_run().is_main:
        clear_drawn(folder)
    requests, generated_UP = judge_requests(
        pipe,
        dataset,
        unseen,
        task,
        family,
        guidance_scale=config.guidance_scale,
        num_fit_tasks=config.fit_tasks,
        num_labels=tuple(config.num_labels),
        seed=asked.seed,
        trust_remote_code=asked.trust_remote_code,
    )
    known, _ = split_known(dataset, pipe.autoencoder)
    measured = measured_requests(requests, generated_UP, known, unseen, pipe.autoencoder, curve)
    if this_run().is_main:
        draw_requests(measured, folder)
    return asked.written(measured, seconds_of_training, began)


def clear_drawn(folder: RunFolder) -> None:
    """Removes what an earlier judgement has drawn, perhaps of another pipeline, and this one may not draw again."""
    for file in (*folder.pictures(), folder.networks):
        file.unlink(missing_ok=True)


def write_results(results: Results, folder: RunFolder) -> Results:
    """Writes report and results into `folder`; -> the results. A folder with results is finished, so they come last."""
    if this_run().is_main:
        write_results_page(results, folder)
        write_json(folder.results, results.to_dict())
    return results


def _measured_in_training(folder: RunFolder) -> tuple[float | None, LossCurve | None, dict[str, float | None]]:
    """Held-out deviation R2, the losses, and the seconds of both stages; from the results if there is no training/."""
    if (summary := folder.training.read_summary()) is not None:
        seconds = {"train_autoencoder": summary.seconds_autoencoder, "train_diffusion": summary.seconds_diffusion}
        return summary.deviation_r2, summary.curve, seconds
    results = folder.read_results()
    known = {} if results is None else results.seconds
    measured = None if results is None else results.measured
    audited = None if measured is None else measured.audit
    seconds = {stage: known.get(stage) for stage in ("train_autoencoder", "train_diffusion")}
    deviation_r2 = None if audited is None else audited.deviation_r2
    return deviation_r2, None if measured is None else measured.training, seconds


def require_same_layout(pipe: PDiffPipeline, dataset: CheckpointDataset) -> None:
    if dataset.layout != pipe.autoencoder.layout:
        raise PdiffError(
            f"the data set holds {dataset.layout!r}, and the pipeline generates "
            f"{pipe.autoencoder.layout!r}: originals and generated networks have different layouts; give "
            "the data set that the pipeline was trained on."
        )
