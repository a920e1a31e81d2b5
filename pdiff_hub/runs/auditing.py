"""Judges a pipeline in its folder or on the Hub: `audit` generates its networks and finds its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError, require_known
from pdiff_hub.evaluation.environment import environment
from pdiff_hub.evaluation.evaluate import require_originals
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.evaluation.on_device import judging_device, task_on
from pdiff_hub.evaluation.without_originals import METRICS, evaluate_without_originals, require_no_originals
from pdiff_hub.networks.dry_run import build_to_judge
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.pipeline.facts import facts_of
from pdiff_hub.processes import alone_in, this_run
from pdiff_hub.recipes import EvaluateConfig, recipe_of
from pdiff_hub.records import Results, RunFolder
from pdiff_hub.records.made_here import is_trusted
from pdiff_hub.records.shipped import is_shipped
from pdiff_hub.runs.generating import generated_rows
from pdiff_hub.runs.judging import clear_drawn, evaluate, require_same_layout, write_results
from pdiff_hub.runs.recipe_numbers import JudgingNumbers, judging_numbers
from pdiff_hub.tasks import load_recorded_task


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
        unseen: as in `evaluate`; None: those that go with the data set, if any do.
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
            f"{folder.checkpoints.name}/{command}, or its data set (--dataset)."
        )
    if _has_own_tasks(folder, dataset) and (num_models, num_inference_steps) != (None, None):
        raise PdiffError(
            f"each network of {pipeline} has a task of its own, and the held-out tasks decide how many are judged: "
            "leave out --num-models and --num-inference-steps."
        )
    num_params = pipe.autoencoder.layout.num_params
    numbers = judging_numbers(folder, num_params, num_models=num_models, seed=seed, baselines=baselines)
    seed = numbers.seed
    if dataset is None:
        gone = f"{pipeline} has no {folder.checkpoints.name}/: the data set that it was trained on is gone"
        require_no_originals(metrics, gone)
        return _audit_without_originals(
            pipe, RunFolder(directory), name, metrics, numbers, num_inference_steps, trust_remote_code, images
        )
    require_same_layout(pipe, dataset)
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
                unseen=unseen,
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
    device = judging_device(pipe.autoencoder.device)
    network = build_to_judge(spec, pipe.autoencoder.layout, "the pipeline", allow_factory=allowed).to(device)
    loaded = task_on(load_recorded_task(dict(task), images=images), device)
    judge = Judge(network, loaded, pipe.autoencoder.layout, pipe.autoencoder.frozen_state())
    with generated_rows(
        pipe, numbers.num_models, folder.path, seed=numbers.seed, num_inference_steps=num_inference_steps
    ) as generated:
        if this_run().is_main:
            clear_drawn(folder)
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
    return write_results(Results(facts, measured, numbers.seed, environment(), seconds), folder)
