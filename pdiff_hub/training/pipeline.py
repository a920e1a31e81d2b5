"""Both stages: a `CheckpointDataset` -> a pipeline folder. Runs under Accelerate and goes on where it was stopped.

The folder's `training/` holds what resuming needs: `autoencoder/` and `latents.safetensors` once stage one is done,
`diffusion/step-*` saves, `summary.json` at the end.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files import require_same_settings, write_json, write_safetensors
from pdiff_hub.training.autoencoder import fit_autoencoder, held_out_r2, split_rows
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.diffusion import build_scheduler, length_multiple, train_unet
from pdiff_hub.training.loop import build_accelerator
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder
from pdiff_hub.travelling.pipeline_pdiff import INDEX, RECIPE, PDiffPipeline, companions_in, fingerprint

_DIGESTED = 2**20  # numbers at either end of a set


@dataclass(frozen=True)
class TrainingSummary:
    """What training found.

    Attributes:
        deviation_r2: held-out deviation R2, None where nothing was held out.
        seconds_autoencoder, seconds_diffusion: on this machine; None for a stage that was stopped and went on, since
            what it took before is not known.
    """

    deviation_r2: float | None
    num_components: int
    latent_shape: tuple[int, int]
    loss: float
    seconds_autoencoder: float | None
    seconds_diffusion: float | None
    num_processes: int


def require_processes(accelerator: Accelerator, asked: int | None = None) -> None:
    """ValueError if another number of processes runs than was asked for.

    `asked`: None takes what the launcher put into the environment. `accelerate launch --cpu --num_processes 2` starts
    one process, in silence (platform notes of accelerate 1.15): it sets ACCELERATE_USE_CPU but no world size, so there
    the number must be given to be checked.
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
    """Train on `dataset` and write a pipeline into `output_dir`; called in every process.

    Args:
        num_inference_steps: the default of the pipeline that is written.
        log_with: an Accelerate tracker ("tensorboard", ...), which logs to `output_dir/training/logs`.

    Raises:
        ValueError: one checkpoint only; other settings than those of the run that `output_dir` holds; a loss that is
            not finite or diverges (the last good state stays).
    """
    autoencoder, diffusion = autoencoder or AutoencoderConfig(), diffusion or DiffusionConfig()
    folder = Path(output_dir)
    state = folder / "training"
    precision = _precision(diffusion)
    accelerator = build_accelerator(
        mixed_precision=precision, log_with=log_with, project_dir=str(state / "logs") if log_with else None
    )
    settings = {
        "autoencoder": _jsonable(asdict(autoencoder)),
        "diffusion": _jsonable(asdict(diffusion)),
        "seed": seed,
        "num_checkpoints": len(dataset),
        "num_params": dataset.layout.num_params,
        "checkpoints_sha256": _digest(dataset),
    }
    split_rows(len(dataset), autoencoder.holdout)
    if accelerator.is_main_process:
        state.mkdir(parents=True, exist_ok=True)
        require_same_settings(state / "settings.json", settings)
    accelerator.wait_for_everyone()
    if not (state / "settings.json").exists():
        raise PdiffError(
            f"process {accelerator.process_index} does not see {state / 'settings.json'}, which the first "
            "process wrote; give an output_dir on a file system that all machines share."
        )
    if not (state / "latents.safetensors").exists():
        # An Accelerator of its own: each saves all that it has prepared.
        _stage_one(dataset, autoencoder, diffusion, seed, build_accelerator(mixed_precision=precision), state)
    accelerator.wait_for_everyone()
    latent_KCL = load_file(state / "latents.safetensors")["latent_KCL"]
    first = _read_json(state / "autoencoder.json")
    if log_with:
        accelerator.init_trackers("pdiff", config={k: str(v) for k, v in settings.items()})
    finished = _read_json(state / "summary.json") if (state / "summary.json").exists() else None
    resumed, began = any((state / "diffusion").glob("step-*")), time.perf_counter()
    unet, loss = train_unet(
        latent_KCL,
        diffusion,
        seed=seed,
        accelerator=accelerator,
        directory=state / "diffusion",
        on_log=lambda step, value: accelerator.log({"diffusion/loss": value}, step=step),
    )
    seconds = None if resumed else time.perf_counter() - began
    summary = TrainingSummary(
        deviation_r2=first["deviation_r2"],
        num_components=first["num_components"],
        latent_shape=(latent_KCL.shape[1], latent_KCL.shape[2]),
        loss=loss,
        seconds_autoencoder=first["seconds"],
        seconds_diffusion=finished["seconds_diffusion"] if finished else seconds,
        num_processes=accelerator.num_processes,
    )
    if accelerator.is_main_process:
        fitted = ParamAutoencoder.from_pretrained(state / "autoencoder")
        pipe = PDiffPipeline(fitted, unet, build_scheduler(), default_num_inference_steps=num_inference_steps)
        publish(pipe, folder)
        write_json(state / "summary.json", asdict(summary))
    accelerator.wait_for_everyone()
    if log_with:
        accelerator.end_training()
    return summary


def _read_json(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return read


def _digest(dataset: CheckpointDataset) -> str:
    """SHA-256 of the first and the last numbers of all checkpoints: which set it is, without reading all of it."""
    columns, digest = min(max(1, _DIGESTED // len(dataset)), dataset.layout.num_params), hashlib.sha256()
    for start in (0, dataset.layout.num_params - columns):
        digest.update(dataset.read_slice(start, start + columns).contiguous().numpy().data)
    return digest.hexdigest()


def _stage_one(
    dataset: CheckpointDataset,
    config: AutoencoderConfig,
    diffusion: DiffusionConfig,
    seed: int,
    accelerator: Accelerator,
    state: Path,
) -> None:
    resumed, began = any((state / "autoencoder-steps").glob("step-*")), time.perf_counter()
    fitted, latent_KCL = fit_autoencoder(
        dataset, config, length_multiple=length_multiple(diffusion), seed=seed, accelerator=accelerator, directory=state
    )
    if accelerator.is_main_process:
        r2 = held_out_r2(fitted, dataset, config.holdout)
        fitted.to("cpu").save_pretrained(state / "autoencoder")
        write_json(
            state / "autoencoder.json",
            {
                "deviation_r2": r2 if math.isfinite(r2) else None,
                "seconds": None if resumed else time.perf_counter() - began,
                "num_components": fitted.config.num_components if config.form == "linear" else latent_KCL[0].numel(),
            },
        )
        # Last: its presence says that stage one is done.
        write_safetensors(state / "latents.safetensors", {"latent_KCL": latent_KCL})
    shutil.rmtree(state / f"components-{accelerator.process_index}", ignore_errors=True)  # where they were fitted


def publish(pipe: PDiffPipeline, folder: Path) -> None:
    """Save the pipeline beside and move it in, the index last: a killed run leaves no half pipeline that opens."""
    unfinished = folder / "training" / "unfinished-pipeline"
    shutil.rmtree(unfinished, ignore_errors=True)
    pipe.save_pretrained(unfinished)
    index = folder / INDEX
    if not index.exists() or fingerprint(folder) != fingerprint(unfinished):
        for file in companions_in(folder):  # they tell of the pipeline that was there before
            if file.name != RECIPE:
                file.unlink()
    index.unlink(missing_ok=True)
    for source in sorted(unfinished.iterdir(), key=lambda path: path.name == index.name):
        target = folder / source.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(source, target)
    unfinished.rmdir()


def _precision(config: DiffusionConfig) -> str:
    if config.mixed_precision != "auto":
        return config.mixed_precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def _jsonable(options: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
