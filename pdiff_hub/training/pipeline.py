"""Both stages: a `CheckpointDataset` -> a pipeline folder. Runs under Accelerate and resumes where it was stopped.

The folder's `training/` holds what resuming needs: `autoencoder/` and `latents.safetensors` once stage one is done, the
saves `diffusion/step-*`, and `summary.json` at the end.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.records import AutoencoderFacts, LossCurve, RunFolder, TrainingFolder, TrainingSummary
from pdiff_hub.records.components import load_component
from pdiff_hub.records.fingerprint import fingerprint
from pdiff_hub.safe_files import (
    disk_errors_of,
    keep_settings,
    remove_unfinished,
    write_json,
    write_safetensors,
)
from pdiff_hub.safe_files.lock import alone_in
from pdiff_hub.safe_files.tensors import read_tensors
from pdiff_hub.training.autoencoder import fit_autoencoder, held_out_r2
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.diffusion import build_scheduler, length_multiple, train_unet
from pdiff_hub.training.holdout import split_rows
from pdiff_hub.training.loop import Trained, any_saved, build_accelerator
from pdiff_hub.training.memory import give_back
from pdiff_hub.travelling.conditioner import Conditioner
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder
from pdiff_hub.travelling.pipeline_pdiff import PDiffPipeline

_LATENTS = ("latent_KCL", "held_out_HCL")


def require_processes(accelerator: Accelerator, asked: int | None = None) -> None:
    """ValueError if the number of running processes is not the number that was asked for.

    `asked`: None takes the number that the launcher put into the environment. `accelerate launch --cpu --num_processes
    2` starts one process without a message (accelerate 1.15): it sets ACCELERATE_USE_CPU but no world size. So there
    the check works only if `asked` is given.
    """
    expected = int(os.environ.get("WORLD_SIZE", "1")) if asked is None else asked
    if accelerator.num_processes != expected:
        raise PdiffError(
            f"{expected} processes were asked for and {accelerator.num_processes} runs. On CPUs start "
            f"them with `torchrun --nproc_per_node {expected} examples/train.py ...`."
        )


def train_pipeline(
    dataset: CheckpointDataset,
    output_dir: str | Path,
    autoencoder: AutoencoderConfig | None = None,
    diffusion: DiffusionConfig | None = None,
    *,
    num_inference_steps: int = 50,
    seed: int = 0,
    log_with: str | None = None,
) -> TrainingSummary:
    """Trains on `dataset` and writes a pipeline into `output_dir`; call it in every process.

    Args:
        num_inference_steps: the default number of sampling steps of the pipeline that is written.
        log_with: an Accelerate tracker ("tensorboard", ...), which logs to `output_dir/training/logs`.

    Raises:
    XX"""
    autoencoder, diffusion = autoencoder or AutoencoderConfig(), diffusion or DiffusionConfig()
    folder = RunFolder(Path(output_dir))
    accelerator = build_accelerator(
        mixed_precision=_precision(diffusion),
        log_with=log_with,
        project_dir=str(folder.training.logs) if log_with else None,
    )
    rows = split_rows(dataset, autoencoder.holdout)  # refuses too few before anything is written
    with alone_in(folder.path) if accelerator.is_main_process else nullcontext():
        return _train_stages(
            dataset, rows, folder, (autoencoder, diffusion), accelerator, num_inference_steps, seed, log_with
        )


def _train_stages(
    dataset: CheckpointDataset,
    rows: tuple[list[int], list[int]],
    folder: RunFolder,
    configs: tuple[AutoencoderConfig, DiffusionConfig],
    accelerator: Accelerator,
    num_inference_steps: int,
    seed: int,
    log_with: str | None,
) -> TrainingSummary:
    """As `train_pipeline`; the first process holds the folder's lock. rows: for training, and held out."""
    (autoencoder, diffusion), state = configs, folder.training
    settings = {
        "autoencoder": asdict(autoencoder),
        "diffusion": asdict(diffusion),
        "seed": seed,
        "num_checkpoints": len(dataset),
        "num_params": dataset.layout.num_params,
        "checkpoints_sha256": dataset.digest(len(dataset)),
    }
    train_K, held_out_H = rows
    spec, condition_KD, condition_KE = dataset.conditions, dataset.conditions_KD, None
    if spec is not None and condition_KD is not None:
        condition_KE = spec.channels(condition_KD)
        settings["conditions"] = spec.to_dict()
        settings["conditions_sha256"] = hashlib.sha256(condition_KE.contiguous().numpy().data).hexdigest()
    if accelerator.is_main_process:
        state.path.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(state)
        keep_settings(state.settings, settings)
    accelerator.wait_for_everyone()
    if not state.settings.exists():
        raise PdiffError(
            f"process {accelerator.process_index} does not see {state.settings}, which the first "
            "process wrote; give an output_dir on a file system that all machines share."
        )
    if not state.latents.exists():
        # Stage one has its own Accelerator, because each saves all that it has prepared.
        alike = build_accelerator(mixed_precision=_precision(diffusion))
        _stage_one(dataset, autoencoder, diffusion, seed, alike, state)
    accelerator.wait_for_everyone()
    latents = read_tensors(state.latents)
    if {name: (each.ndim, each.dtype) for name, each in latents.items()} != dict.fromkeys(_LATENTS, (3, torch.float32)):
        raise PdiffError(f"{state.latents} does not hold {' and '.join(_LATENTS)}; remove {state.path} to train anew.")
    latent_KCL, held_out_HCL = (latents[name] for name in _LATENTS)
    conditioner = None
    if spec is not None and condition_KD is not None:
        conditioner = Conditioner.fit(spec, condition_KD[train_K], latent_KCL.cpu())
    first = state.read_autoencoder_facts()
    if log_with:
        accelerator.init_trackers("pdiff", config={k: str(v) for k, v in settings.items()})
    finished = state.read_summary()
    resumed, began = any_saved(state.diffusion_steps), time.perf_counter()
    unet, trained = train_unet(
        latent_KCL,
        held_out_HCL,
        diffusion,
        seed=seed,
        accelerator=accelerator,
        directory=state.diffusion_steps,
        conditioner=conditioner,
        condition_KE=None if condition_KE is None else condition_KE[train_K],
        held_out_condition_HE=None if condition_KE is None else condition_KE[held_out_H],
        on_log=lambda step, losses: accelerator.log({f"diffusion/{k}": v for k, v in losses.items()}, step=step),
    )
    seconds = None if resumed else time.perf_counter() - began
    summary = TrainingSummary(
        deviation_r2=first.deviation_r2,
        num_components=first.num_components,
        latent_shape=(latent_KCL.shape[1], latent_KCL.shape[2]),
        loss=trained.loss,
        seconds_autoencoder=first.seconds,
        seconds_diffusion=finished.seconds_diffusion if finished else seconds,
        num_processes=accelerator.num_processes,
        curve=_curve(trained),
    )
    if accelerator.is_main_process:
        fitted = load_component(ParamAutoencoder, state.autoencoder, give_back)
        fitted.release = give_back
        scheduler = build_scheduler(diffusion.prediction)
        pipe = PDiffPipeline(
            fitted,
            unet,
            scheduler,
            default_num_inference_steps=num_inference_steps,
            conditioner=None if conditioner is None else conditioner.to("cpu"),
        )
        publish(pipe, folder)
        write_json(state.summary, asdict(summary))
    accelerator.wait_for_everyone()
    if log_with:
        accelerator.end_training()
    return summary


def _remove_leftovers(state: TrainingFolder) -> None:
    """Removes what killed runs have left and no later one reads; components alone can take gigabytes."""
    for folder in (state.path, state.autoencoder):
        remove_unfinished(folder)
    for components in state.all_components():  # each process writes its own anew if stage one is not done
        shutil.rmtree(components, ignore_errors=True)


def _curve(trained: Trained) -> LossCurve | None:
    if not trained.measured:
        return None
    steps, held_out, train = (tuple(each[key] for each in trained.measured) for key in ("step", "held_out", "train"))
    return LossCurve(tuple(map(int, steps)), held_out, train, trained.kept)


def _stage_one(
    dataset: CheckpointDataset,
    config: AutoencoderConfig,
    diffusion: DiffusionConfig,
    seed: int,
    accelerator: Accelerator,
    state: TrainingFolder,
) -> None:
    resumed, began = any_saved(state.autoencoder_steps), time.perf_counter()
    fitted, latent_KCL, held_out_HCL = fit_autoencoder(
        dataset, config, length_multiple=length_multiple(diffusion), seed=seed, accelerator=accelerator, state=state
    )
    if accelerator.is_main_process:
        r2 = held_out_r2(fitted, dataset, config.holdout, held_out_HCL)
        with disk_errors_of(state.autoencoder):
            fitted.to("cpu").save_pretrained(state.autoencoder)
        facts = AutoencoderFacts(
            deviation_r2=r2 if math.isfinite(r2) else None,
            seconds=None if resumed else time.perf_counter() - began,
            num_components=fitted.config.num_components if config.form == "linear" else latent_KCL[0].numel(),
        )
        write_json(state.autoencoder_facts, asdict(facts))
        # Written last: its presence says that stage one is done.
        write_safetensors(state.latents, dict(zip(_LATENTS, (latent_KCL, held_out_HCL), strict=True)))
    shutil.rmtree(state.components(accelerator.process_index), ignore_errors=True)  # needed only while fitting


def publish(pipe: PDiffPipeline, folder: RunFolder) -> None:
    """Saves the pipeline aside and moves it in, the index last, so that no half pipeline opens after a kill."""
    unfinished = RunFolder(folder.training.unfinished_pipeline)
    shutil.rmtree(unfinished.path, ignore_errors=True)
    with disk_errors_of(folder.path):
        pipe.save_pretrained(unfinished.path)
    if not folder.index.exists() or fingerprint(folder) != fingerprint(unfinished):
        for file in folder.companions():  # they describe the pipeline that was there before
            if file != folder.recipe:
                file.unlink()
    folder.index.unlink(missing_ok=True)
    for source in sorted(unfinished.path.iterdir(), key=lambda path: path == unfinished.index):
        target = folder.path / source.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(source, target)
    unfinished.path.rmdir()


def _precision(config: DiffusionConfig) -> str:
    if config.mixed_precision != "auto":
        return config.mixed_precision
    if is_initialized():  # a process has one precision: that of the first Accelerator in it, which may be the caller's
        return str(AcceleratorState().mixed_precision)
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
