"""Judges a pipeline's networks and writes the report: `evaluate` and `audit`."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import Rows
from pdiff_hub.collect.family import build_family, unseen_of
from pdiff_hub.errors import PdiffError, require_known
from pdiff_hub.evaluation.baselines import baseline_variants
from pdiff_hub.evaluation.environment import environment
from pdiff_hub.evaluation.evaluate import evaluate_networks, require_originals
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.evaluation.known_rows import split_known
from pdiff_hub.evaluation.results_page import write_results_page
from pdiff_hub.evaluation.without_originals import METRICS, evaluate_without_originals, require_no_originals
from pdiff_hub.networks.dry_run import build_to_judge
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.pipeline.facts import facts_of
from pdiff_hub.recipes import EvaluateConfig, is_trusted_to_judge, recipe_of
from pdiff_hub.records import FIGURES, Checkpoints, LossCurve, Measurements, Results, RunFolder
from pdiff_hub.records.made_here import is_trusted
from pdiff_hub.records.shipped import is_shipped
from pdiff_hub.runs.generating import generated_rows
from pdiff_hub.runs.recipe_numbers import JudgingNumbers, judging_numbers
from pdiff_hub.runs.requests import draw_requests, judge_requests, judge_slope, measured_requests
from pdiff_hub.safe_files import write_json
from pdiff_hub.safe_files.lock import alone_in, holding
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
        return _written(Results(facts, measured, self.seed, environment(), stages), self.folder)


@holding("directory")
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

    PdiffError if another process writes into it.

    Args:
        name: what report and card call the pipeline; by default the directory's name.
        recipe: what they say about how it was made; by default the recipe in the pipeline's folder.
        num_inference_steps: the steps that the networks were generated with; None: the pipeline's own.
        source: the pipeline's folder, which holds what training measured; None: `directory`.
        trust_remote_code: whether to call functions that data set and pipeline name. Those that the user's own run on
            this machine called for what is in these folders are called in any case.
        unseen: of a family, the networks of its held-out tasks (`collect.family.unseen_of`). Networks are then asked
            for and fitted on these tasks, and generated_BP is not needed.
        images: where the task's images are, as in `load_recorded_task`.
    """
    began, directory = time.perf_counter(), Path(directory)
    config, folder, source_folder = config or EvaluateConfig(), RunFolder(directory), RunFolder(source or directory)
    _require_same_layout(pipe, dataset)
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
        return _evaluate_requests(judgement, unseen)
    assert generated_BP is not None, "only families are judged without networks"
    task = load_recorded_task(dataset.task, images=images)
    deviation_r2, curve, seconds_of_training = _measured_in_training(source_folder)
    directory.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    network = build_to_judge(dataset.network, dataset.layout, "the data set", allow_factory=trust_remote_code)
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
        num_models=config.baselines,
        seed=seed,
        folder=folder,
    )
    judge = Judge(network, task, dataset.layout, dataset.frozen)
    measured = replace(measured, requests=judge_slope(pipe, judge, guidance_scale=config.guidance_scale, seed=seed))
    return judgement.written(measured, seconds_of_training, began)


def _evaluate_requests(asked: _Judgement, unseen: CheckpointDataset | None) -> Results:
    """As `evaluate`, of networks each with a task of its own."""
    began = time.perf_counter()
    pipe, dataset, folder, config = asked.pipe, asked.dataset, asked.folder, asked.config
    if unseen is None or pipe.conditions is None:
        missing = "networks of held-out tasks to judge by" if unseen is None else "conditions to ask for"
        raise PdiffError(
            f"each network of this data set has a task of its own, and there are no {missing}; a run with "
            "`collect.held_out_tasks` of 1 or more has both."
        )
    assert dataset.task is not None
    settings = dataset.collect.get("settings", {}).get("collect", {})
    task = load_recorded_task(dataset.task, images=asked.images)
    family = build_family(
        str(settings.get("family")), settings.get("options", {}), task, allow_factory=asked.trust_remote_code
    )
    _, curve, seconds_of_training = _measured_in_training(asked.source)
    folder.path.mkdir(parents=True, exist_ok=True)
    _clear(folder)
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
    draw_requests(measured, folder)
    return asked.written(measured, seconds_of_training, began)


def audit(
    pipeline: str | Path,
    directory: str | Path,
    *,
    dataset: CheckpointDataset | None = None,
    metrics: Collection[str] = (),
    num_models: int | None = None,
    seed: int | None = None,
    num_inference_steps: int | None = None,
    baselines: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    revision: str | None = None,
    images: str | Path | None = None,
    unseen: CheckpointDataset | None = None,
) -> Results:
    """Generate networks of the pipeline and compare them with every baseline.

    Args:
        pipeline, revision: as `PDiffPipeline.from_pretrained` takes them.
        dataset: None reads `checkpoints/` in the pipeline's folder or, if a metric needs originals, the set on the Hub
            that its results name.
        metrics: names out of `METRICS`; none means all. With a data set, they only decide whether baselines, frontier
            and ensembles are measured. ValueError for an unknown name, for one that needs checkpoints if these are
            gone, and for any if each network has a task of its own: what comes of requests is measured whole.
        num_models, seed, baselines: None for those of the pipeline's recipe, or the defaults if it has none. baselines:
            how many networks each makes; left to its recipe, an audit has some even where the run had none.
        num_inference_steps: None for the pipeline's own.
        images: where the task's images are, as in `load_recorded_task`.
        unseen: as in `evaluate`; None: those beside `checkpoints/` in the pipeline's folder, if it has any.
    """
    require_known("metric", metrics, METRICS)
    directory = Path(directory)
    pipe = PDiffPipeline.from_pretrained(pipeline, revision=revision).to(device)
    name = Path(pipeline).resolve().name
    assert pipe.folder is not None
    folder = RunFolder(pipe.folder)
    if dataset is None:
        dataset = own_checkpoints(folder, on_hub=not metrics or any(METRICS[metric] for metric in metrics))
    if _has_own_tasks(folder, dataset) and (metrics or dataset is None):
        command = f" (make one with `pdiff run {name} --output-dir runs/{name}`)" if is_shipped(pipe.folder) else ""
        raise PdiffError(
            f"each network of {pipeline} has a task of its own, so an audit asks for networks of held-out tasks and "
            "measures all that comes of it: give no metric, and the folder of its run, which holds "
            f"{folder.checkpoints.name}/{command}."
        )
    if _has_own_tasks(folder, dataset) and (num_models, num_inference_steps) != (None, None):
        raise PdiffError(
            f"each network of {pipeline} has a task of its own, and the held-out tasks decide how many are judged: "
            "leave out --num-models and --num-inference-steps."
        )
    numbers = judging_numbers(folder, num_models=num_models, seed=seed, baselines=baselines)
    seed = numbers.seed
    if dataset is None:
        gone = f"{pipeline} has no {folder.checkpoints.name}/: the data set that it was trained on is gone"
        require_no_originals(metrics, gone)
        return _audit_without_originals(
            pipe, RunFolder(directory), name, metrics, numbers, num_inference_steps, trust_remote_code, images
        )
    _require_same_layout(pipe, dataset)
    require_originals(dataset)
    if dataset.collect.get("method") == "family":
        with alone_in(directory):
            return evaluate(
                pipe,
                dataset,
                None,
                directory,
                config=_of_audit(numbers.config, True, baselines),
                name=name,
                seed=seed,
                source=folder.path,
                trust_remote_code=trust_remote_code,
                unseen=unseen or unseen_of(folder.checkpoints),
                images=images,
            )
    began = time.perf_counter()
    wanted = not metrics or bool({"frontier", "ensembles"} & set(metrics))
    with generated_rows(
        pipe, numbers.num_models, directory, seed=seed, num_inference_steps=num_inference_steps
    ) as generated:
        return evaluate(
            pipe,
            dataset,
            generated,
            directory,
            config=_of_audit(numbers.config, wanted, baselines),
            name=name,
            seed=seed,
            source=folder.path,
            num_inference_steps=num_inference_steps,
            seconds={"generate": time.perf_counter() - began},
            trust_remote_code=trust_remote_code,
            images=images,
        )


def own_checkpoints(folder: RunFolder, *, on_hub: bool = True) -> CheckpointDataset | None:
    """The data set in a pipeline's folder; else, with `on_hub`, the one that its results name; None if neither is."""
    if folder.checkpoints.is_dir():
        return CheckpointDataset.from_pretrained(folder.checkpoints)
    known = folder.read_results() if on_hub else None
    if known is None or (there := known.facts.checkpoints) is None:
        return None
    return CheckpointDataset.from_pretrained(there.repo_id, revision=there.revision)


def _has_own_tasks(folder: RunFolder, dataset: CheckpointDataset | None) -> bool:
    """Whether each network of the pipeline in `folder` has a task of its own, by its data set or its recipe."""
    collect = dataset.collect if dataset is not None else (recipe_of(folder) or {}).get("collect", {})
    return collect.get("method") == "family"


def _of_audit(config: EvaluateConfig, wanted: bool, baselines: int | None) -> EvaluateConfig:
    """How its recipe judges the pipeline, so that an audit and the run agree. wanted: whether baselines are needed."""
    if not wanted:
        return replace(config, baselines=0)
    return config if config.baselines or baselines is not None else replace(config, baselines=EvaluateConfig.baselines)


def _audit_without_originals(
    pipe: PDiffPipeline,
    folder: RunFolder,
    name: str,
    metrics: Collection[str],
    numbers: JudgingNumbers,
    num_inference_steps: int | None,
    trust_remote_code: bool,
    images: str | Path | None,
) -> Results:
    spec, task = pipe.autoencoder.config.network, pipe.autoencoder.config.task
    if spec is None or task is None:
        raise PdiffError(
            "this pipeline does not say which network and task it is for, so its networks cannot be "
            "judged; give the data set that it was trained on."
        )
    began = time.perf_counter()
    allowed = is_trusted(spec, pipe.folder, trust_remote_code)
    network = build_to_judge(spec, pipe.autoencoder.layout, "the pipeline", allow_factory=allowed)
    loaded = load_recorded_task(dict(task), images=images)
    judge = Judge(network, loaded, pipe.autoencoder.layout, pipe.autoencoder.frozen_state())
    with generated_rows(
        pipe, numbers.num_models, folder.path, seed=numbers.seed, num_inference_steps=num_inference_steps
    ) as generated:
        _clear(folder)
        measured = evaluate_without_originals(judge, generated, metrics)
    assert pipe.folder is not None
    source = RunFolder(pipe.folder)
    known = source.read_results()
    facts = facts_of(
        pipe,
        name=name,
        recipe=recipe_of(source),
        checkpoints=None if known is None else known.facts.checkpoints,
        num_inference_steps=num_inference_steps,
    )
    seconds: dict[str, float | None] = {"evaluate": time.perf_counter() - began}
    return _written(Results(facts, measured, numbers.seed, environment(), seconds), folder)


def _clear(folder: RunFolder) -> None:
    """Removes what an earlier judgement has drawn, perhaps of another pipeline, and this one may not draw again."""
    for file in (*folder.pictures(), folder.networks):
        file.unlink(missing_ok=True)


def _written(results: Results, folder: RunFolder) -> Results:
    write_json(folder.results, results.to_dict())
    write_results_page(results, folder)
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


def _require_same_layout(pipe: PDiffPipeline, dataset: CheckpointDataset) -> None:
    if dataset.layout != pipe.autoencoder.layout:
        raise PdiffError(
            f"the data set holds {dataset.layout!r}, and the pipeline generates "
            f"{pipe.autoencoder.layout!r}: originals and generated networks have different layouts; give "
            "the data set that the pipeline was trained on."
        )
