"""collect -> train -> generate -> evaluate, each stage alone or all of a recipe, going on where a killed run was.

A run's folder is the pipeline's folder: `model_index.json` and its components at the root, `recipe.yaml`,
`results.json`, `report.html` and the pictures beside them, and `checkpoints/`, `generated/`, `training/` below.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import yaml

from pdiff_hub.checkpoints.rows import Rows, ShardRows, write_shard
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.finetune import collect_finetune
from pdiff_hub.collect.finetune import FinetuneConfig
from pdiff_hub.collect.importing import import_checkpoints
from pdiff_hub.collect.population import PopulationConfig, collect_population
from pdiff_hub.evaluation.without_originals import METRICS, evaluate_alone, require_no_originals
from pdiff_hub.evaluation.baselines import baseline_variants
from pdiff_hub.evaluation.environment import environment
from pdiff_hub.evaluation.evaluate import FIGURES, evaluate_networks, require_originals
from pdiff_hub.evaluation.judging import Judge
from pdiff_hub.evaluation.results_page import write_results_page
from pdiff_hub.errors import PdiffError, require_known
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.travelling.param_autoencoder import ParamLayout, write_tensors
from pdiff_hub.pipeline.facts import about, checkpoints_of, measured_in_training, recipe_of
from pdiff_hub.travelling.pipeline_pdiff import PDiffPipeline
from pdiff_hub.recipes import RECIPE_FILE, EvaluateConfig, Recipe
from pdiff_hub.safe_files import remove_unfinished, replacing, require_same_settings, write_json
from pdiff_hub.tasks import Task, load_task
from pdiff_hub.training.pipeline import TrainingSummary, train_pipeline

_Result = TypeVar("_Result")
GENERATED = Path("generated") / "params.safetensors"
"""Where a run keeps the networks that it generated and judged: float32 `params` [N,P]."""
CHECKPOINTS = "checkpoints"
_DECODED_BYTES = 256 << 20  # of one slice of many networks


def collect(recipe: Recipe, directory: Path, *, device: str = "cpu", trained: Path | None = None) -> CheckpointDataset:
    """The checkpoints that `recipe` asks for, in `directory`; what is there already is kept.

    trained: as in `collect_finetune`.
    """
    task = load_task(recipe.task, seed=recipe.seed)
    spec = resolve_network(
        recipe.network, in_channels=task.in_channels, image_size=task.image_size, num_classes=task.num_classes
    )
    config = recipe.collect
    if isinstance(config, FinetuneConfig):
        return collect_finetune(
            task, spec, recipe.select, config, directory, seed=recipe.seed, device=device, trained=trained
        )
    if isinstance(config, PopulationConfig):
        return collect_population(task, spec, recipe.select, config, directory, seed=recipe.seed, device=device)
    network = build_network(spec, seed=recipe.seed, pretrained=False)
    layout = ParamLayout.from_module(network, recipe.select, config.buffers)
    return import_checkpoints(
        config.source,
        layout,
        network=spec,
        task=task.spec,
        pattern=config.pattern,
        key=config.key,
        prefix=config.prefix,
        hub=config.hub,
        output_dir=directory,
    )


def train(
    recipe: Recipe, dataset: CheckpointDataset, directory: Path, *, log_with: str | None = None
) -> TrainingSummary:
    """Train `recipe`'s pipeline on `dataset` and write it into `directory`."""
    return train_pipeline(
        dataset,
        directory,
        recipe.autoencoder,
        recipe.diffusion,
        seed=recipe.seed,
        num_inference_steps=recipe.generate.num_inference_steps,
        log_with=log_with,
    )


def generate(
    pipe: PDiffPipeline, num_models: int, *, seed: int, num_inference_steps: int | None = None
) -> torch.Tensor:
    """float32 [num_models, P]: parameters of generated networks, raw weight units."""
    return _sample(pipe, num_models, "params", seed, num_inference_steps)


def _sample(pipe: PDiffPipeline, num_models: int, output_type: str, seed: int, steps: int | None) -> torch.Tensor:
    pipe.set_progress_bar_config(desc="generate", unit="step", disable=None)
    output: tuple[torch.Tensor, ...] = pipe(
        num_models, steps, torch.Generator().manual_seed(seed), output_type=output_type, return_dict=False
    )
    return output[0]


def write_params(
    pipe: PDiffPipeline, num_models: int, file: Path, *, seed: int, num_inference_steps: int | None = None
) -> Rows:
    """Generate networks into `file`, float32 `params` [num_models, P], a slice of P at a time; -> its rows."""
    latents_NCL = _sample(pipe, num_models, "latent", seed, num_inference_steps).to(pipe.autoencoder.device)
    num_params = pipe.autoencoder.layout.num_params
    batch = max(1, _DECODED_BYTES // (4 * max(stop - start for start, stop in pipe.autoencoder.slices)))

    def pieces() -> Iterator[tuple[int, int, torch.Tensor]]:
        for first in range(0, num_models, batch):
            for start, _, params_BS in pipe.autoencoder.decode_slices(latents_NCL[first : first + batch]):
                yield first, start, params_BS

    file.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(file.parent)  # gigabytes, where a run was killed
    with replacing(file) as temporary, torch.no_grad():
        write_shard(temporary, num_models, num_params, pieces())
    return ShardRows([(file, num_models)], num_params)


@contextmanager
def generated_rows(
    pipe: PDiffPipeline, num_models: int, directory: Path, *, seed: int, num_inference_steps: int | None = None
) -> Iterator[Rows]:
    """Generated networks [num_models, P] for judging, in a file in `directory` that goes when the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="unfinished-generated-", dir=directory) as temporary:
        yield write_params(
            pipe, num_models, Path(temporary) / GENERATED.name, seed=seed, num_inference_steps=num_inference_steps
        )


def write_networks(
    pipe: PDiffPipeline, num_models: int, directory: Path, *, seed: int, num_inference_steps: int | None = None
) -> list[Path]:
    """Generate networks as `model-00000.safetensors` ..., each with the frozen rest: they load with `strict=True`.

    `generated.json` beside them says how to make them again. ValueError if `directory` holds more networks than
    these, which an earlier call wrote and which would then lie among them.
    """
    files = [directory / f"model-{index:05d}.safetensors" for index in range(num_models)]
    if more := sorted(set(directory.glob("model-*.safetensors")) - set(files)):
        raise PdiffError(
            f"{more[0]} is there already and not one of the {num_models} networks to be written; give an "
            "empty folder, or remove what an earlier call left in this one."
        )
    latents_NCL = _sample(pipe, num_models, "latent", seed, num_inference_steps)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "generated.json").unlink(missing_ok=True)  # of networks that are now replaced one by one
    remove_unfinished(directory)
    frozen, batch = pipe.autoencoder.frozen_state(), pipe.default_batch_size()
    for start in range(0, num_models, batch):  # no more of them in memory at once
        stacked = pipe.autoencoder.layout.stack(pipe.decode_latents(latents_NCL[start : start + batch]))
        for index in range(start, min(start + batch, num_models)):
            with replacing(files[index]) as temporary:
                write_tensors(temporary, {**frozen, **{name: t_B[index - start] for name, t_B in stacked.items()}})
    steps = num_inference_steps or pipe.config.default_num_inference_steps
    write_json(directory / "generated.json", {"seed": seed, "num_models": num_models, "num_inference_steps": steps})
    return files


def evaluate(
    pipe: PDiffPipeline,
    dataset: CheckpointDataset,
    generated_BP: torch.Tensor | Rows,
    directory: Path,
    *,
    config: EvaluateConfig | None = None,
    name: str = "",
    seed: int = 0,
    source: Path | None = None,
    seconds: dict[str, float | None] | None = None,
    recipe: dict[str, Any] | None = None,
    num_inference_steps: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Judge networks and write `results.json`, `networks.json`, `report.html` and the pictures into `directory`.

    Args:
        name, recipe: what report and card call the pipeline, and what they say about how it was made; by default the
            directory's name, and the recipe in the pipeline's folder.
        num_inference_steps: that the networks were generated with; None: the pipeline's own.
        source: the pipeline's folder, which knows what training measured; None: `directory`.
        trust_remote_code: whether a data set may name a function of yours that builds its network, to be called.
    """
    began = time.perf_counter()
    config = config or EvaluateConfig()
    _require_same_layout(pipe, dataset)
    require_originals(dataset)
    if dataset.task is None:
        raise PdiffError(
            "the data set does not say which task its networks are for, so they cannot be judged; import "
            "it again with a task."
        )
    task: Task = load_task(dataset.task)
    trained = measured_in_training(source or directory)
    recipe = recipe or recipe_of(source or directory)
    directory.mkdir(parents=True, exist_ok=True)
    network = build_network(dataset.network, pretrained=False, allow_factory=trust_remote_code)
    variants = baseline_variants(network, task, pipe.autoencoder, fine_tune_steps=config.fine_tune_steps)
    measured = evaluate_networks(
        network,
        task,
        dataset,
        generated_BP,
        deviation_r2=trained.get("deviation_r2"),
        num_originals=config.num_originals,
        variants=variants if config.baselines else (),
        num_models=config.baselines,
        seed=seed,
        directory=directory,
    )
    name = name or directory.resolve().name
    checkpoints = {"repo_id": dataset.hub_id, "revision": dataset.hub_revision} if dataset.hub_id else None
    results = {
        **about(
            pipe,
            dataset.network,
            dataset.task,
            name=name,
            recipe=recipe,
            checkpoints=checkpoints,
            figures=[stem for stem in FIGURES if (directory / f"{stem}.png").exists()],
        ),
        **measured,
        "num_inference_steps": num_inference_steps or pipe.config.default_num_inference_steps,
        "seed": seed,
        "environment": environment(),
        "seconds": {
            "collect": None,
            "train_autoencoder": trained.get("seconds_autoencoder"),
            "train_diffusion": trained.get("seconds_diffusion"),
            "generate": None,
            **(seconds or {}),
            "evaluate": time.perf_counter() - began,
        },
    }
    write_json(directory / "results.json", results)
    write_results_page(results, directory, name, recipe)
    return results


def audit(
    pipeline: str | Path,
    directory: Path,
    *,
    dataset: CheckpointDataset | None = None,
    metrics: Collection[str] = (),
    num_models: int = 200,
    seed: int = 0,
    device: str = "cpu",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> dict[str, Any]:
    """Generate networks of the pipeline (a folder, or a Hub id at `revision`) and judge them beside every baseline.

    dataset: None reads `checkpoints/` in the pipeline's folder, or else the set on the Hub that its results name.
    metrics: names out of `alone.METRICS`; none means all. Raises ValueError for one that is unknown, and if the
        checkpoints are gone and one needs them.
    """
    require_known("metric", metrics, METRICS)
    pipe = PDiffPipeline.from_pretrained(pipeline, revision=revision).to(device)
    folder, name = pipe.folder, Path(pipeline).resolve().name
    assert folder is not None
    if dataset is None and (folder / CHECKPOINTS).is_dir():
        dataset = CheckpointDataset.from_pretrained(folder / CHECKPOINTS)
    needed = not metrics or any(METRICS[metric] for metric in metrics)
    if dataset is None and needed and (known := checkpoints_of(folder)):
        dataset = CheckpointDataset.from_pretrained(known["repo_id"], revision=known["revision"])
    if dataset is None:
        require_no_originals(metrics, f"{pipeline} has no {CHECKPOINTS}/: the data set that it was trained on is gone")
        return _audit_alone(pipe, directory, name, metrics, num_models, seed, trust_remote_code)
    _require_same_layout(pipe, dataset)
    require_originals(dataset)
    began = time.perf_counter()
    wanted = not metrics or bool({"frontier", "ensembles"} & set(metrics))
    with generated_rows(pipe, num_models, directory, seed=seed) as generated:
        seconds: dict[str, float | None] = {"generate": time.perf_counter() - began}
        return evaluate(
            pipe,
            dataset,
            generated,
            directory,
            config=EvaluateConfig() if wanted else EvaluateConfig(baselines=0),
            name=name,
            seed=seed,
            source=folder,
            seconds=seconds,
            trust_remote_code=trust_remote_code,
        )


def _audit_alone(
    pipe: PDiffPipeline,
    directory: Path,
    name: str,
    metrics: Collection[str],
    num_models: int,
    seed: int,
    trust_remote_code: bool,
) -> dict[str, Any]:
    spec, task = pipe.autoencoder.config.network, pipe.autoencoder.config.task
    if spec is None or task is None:
        raise PdiffError(
            "this pipeline does not say which network and task it is for, so its networks cannot be "
            "judged; give the data set that it was trained on."
        )
    began = time.perf_counter()
    network = build_network(dict(spec), pretrained=False, allow_factory=trust_remote_code)
    judge = Judge(network, load_task(dict(task)), pipe.autoencoder.layout, pipe.autoencoder.frozen_state())
    with generated_rows(pipe, num_models, directory, seed=seed) as generated:
        measured = evaluate_alone(judge, generated, metrics)
    known = (
        {"recipe": None, "checkpoints": None}
        if pipe.folder is None
        else {"recipe": recipe_of(pipe.folder), "checkpoints": checkpoints_of(pipe.folder)}
    )
    results = {
        **about(pipe, spec, task, name=name, figures=[], **known),
        **measured,
        "seed": seed,
        "environment": environment(),
        "seconds": {"evaluate": time.perf_counter() - began},
    }
    write_json(directory / "results.json", results)
    write_results_page(results, directory, name, results["recipe"])
    return results


def _require_same_layout(pipe: PDiffPipeline, dataset: CheckpointDataset) -> None:
    if dataset.layout != pipe.autoencoder.layout:
        raise PdiffError(
            f"the data set holds {dataset.layout!r}, and the pipeline generates "
            f"{pipe.autoencoder.layout!r}: originals and generated networks have different layouts; give "
            "the data set that the pipeline was trained on."
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
) -> dict[str, Any]:
    """All stages of `recipe` in `directory`; a killed run started again goes on where it was.

    name: of the pipeline in its report; by default the folder's. dataset: what the recipe collects, if that is there.
    ValueError if `directory` was begun with another recipe, naming what differs.
    """
    (directory / "training").mkdir(parents=True, exist_ok=True)
    require_same_settings(directory / "training" / "recipe.json", recipe.to_dict())
    with replacing(directory / RECIPE_FILE) as temporary:
        temporary.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")
    clock = _Clock(directory / "training" / "seconds.json")
    if dataset is None:
        say("1/4 collect checkpoints")
        dataset = clock.time(
            "collect",
            lambda: collect(recipe, directory / CHECKPOINTS, device=device),
            begun=(directory / CHECKPOINTS).exists(),
        )
    require_originals(dataset)
    say(f"2/4 train on {len(dataset)} checkpoints of {dataset.layout.num_params:,} parameters")
    if not (directory / "training" / "summary.json").exists():
        train(recipe, dataset, directory, log_with=log_with)
    pipe = PDiffPipeline.from_pretrained(directory).to(device)
    say(f"3/4 generate {recipe.generate.num_models} networks")
    num_models = recipe.generate.num_models
    if not (directory / GENERATED).exists():
        clock.time("generate", lambda: write_params(pipe, num_models, directory / GENERATED, seed=recipe.seed))
    generated = ShardRows([(directory / GENERATED, num_models)], dataset.layout.num_params)
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
        trust_remote_code=True,
    )  # the recipe itself named the network


class _Clock:
    """Seconds a stage took, kept on disk; None for one that was stopped and went on, whose first part nobody timed."""

    def __init__(self, file: Path):
        self.file = file
        self.seconds: dict[str, float | None] = json.loads(file.read_text()) if file.exists() else {}

    def time(self, stage: str, work: Callable[[], _Result], *, begun: bool = False) -> _Result:
        """Does `work`, which takes up something where it was left if `begun`."""
        began = time.perf_counter()
        result = work()
        if stage not in self.seconds:
            self.seconds[stage] = None if begun else time.perf_counter() - began
            write_json(self.file, self.seconds)
        return result
