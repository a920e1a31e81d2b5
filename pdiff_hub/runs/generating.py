"""Writes generated networks: all as rows of one file for judging, or each as a file that loads with `strict=True`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pdiff_hub.checkpoints.rows import Rows, ShardRows, write_shard
from pdiff_hub.errors import PdiffError
from pdiff_hub.pipeline import PDiffPipeline, sample
from pdiff_hub.records import NetworksFolder, RunFolder
from pdiff_hub.safe_files import remove_unfinished, replacing, write_json, write_safetensors
from pdiff_hub.safe_files.lock import alone_in, holding

_UNFINISHED = "unfinished-generated-"
_DECODED_BYTES = 256 << 20  # of one slice of P, for all networks that are decoded at once


def write_params(
    pipe: PDiffPipeline, num_models: int, file: Path, *, seed: int, num_inference_steps: int | None = None
) -> Rows:
    """Generate networks into `file`: float32 `params` [num_models, P], written slice by slice of P. -> its rows."""
    latents_NCL = sample(pipe, num_models, seed=seed, output_type="latent", num_inference_steps=num_inference_steps)
    latents_NCL = latents_NCL.to(pipe.autoencoder.device)
    num_params = pipe.autoencoder.layout.num_params
    batch = max(1, _DECODED_BYTES // (4 * max(stop - start for start, stop in pipe.autoencoder.slices)))

    def pieces() -> Iterator[tuple[int, int, torch.Tensor]]:
        for first in range(0, num_models, batch):
            for start, _, params_BS in pipe.autoencoder.decode_slices(latents_NCL[first : first + batch]):
                yield first, start, params_BS

    file.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(file.parent)  # a killed run may have left gigabytes
    with replacing(file) as temporary, torch.no_grad():
        write_shard(temporary, num_models, num_params, pieces())
    return ShardRows([(file, num_models)], num_params)


@contextmanager
def generated_rows(
    pipe: PDiffPipeline, num_models: int, directory: Path, *, seed: int, num_inference_steps: int | None = None
) -> Iterator[Rows]:
    """Generated networks [num_models, P] for judging, in a file in `directory` that is deleted when the block ends.

    PdiffError if another process writes into `directory`.
    """
    with alone_in(directory):
        for leftover in directory.glob(f"{_UNFINISHED}????????"):  # of a killed judgement: gigabytes
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
        with TemporaryDirectory(prefix=_UNFINISHED, dir=directory) as temporary:
            file = Path(temporary) / RunFolder(directory).generated.name
            yield write_params(pipe, num_models, file, seed=seed, num_inference_steps=num_inference_steps)


def write_networks(
    pipe: PDiffPipeline,
    num_models: int,
    directory: Path,
    *,
    seed: int,
    num_inference_steps: int | None = None,
    condition: Mapping[str, Any] | None = None,
    guidance_scale: float = 1.0,
) -> list[Path]:
    """Generate networks as `model-00000.safetensors` ... Each holds the frozen tensors and loads with `strict=True`.

    condition, guidance_scale: what the networks are asked to be, as in a call of the pipeline.

    `generated.json` beside them says how to make them again. ValueError if an earlier call wrote networks into
    `directory` that this call does not replace: old and new ones would be mixed.
    """
    require_room(directory, num_models)
    latents_NCL = sample(
        pipe,
        num_models,
        seed=seed,
        output_type="latent",
        num_inference_steps=num_inference_steps,
        condition=condition,
        guidance_scale=guidance_scale,
    )
    steps = num_inference_steps or pipe.config.default_num_inference_steps
    origin: dict[str, Any] = {"seed": seed, "num_models": num_models, "num_inference_steps": steps}
    if condition is not None:
        origin |= {"condition": dict(condition), "guidance_scale": guidance_scale}
    return write_latents(pipe, latents_NCL, directory, origin)


def require_room(directory: Path, num_models: int) -> None:
    """ValueError if `directory` holds networks that `num_models` new ones would not replace."""
    folder = NetworksFolder(directory)
    if more := sorted(set(folder.networks()) - {folder.network(index) for index in range(num_models)}):
        raise PdiffError(
            f"{more[0]} is there already and not one of the {num_models} networks to be written; give an "
            "empty folder, or remove what an earlier call left in this one."
        )


@holding("directory")
def write_latents(
    pipe: PDiffPipeline, latents_NCL: torch.Tensor, directory: Path, origin: Mapping[str, Any]
) -> list[Path]:
    """The networks of scaled latents, as files that load with `strict=True`; `origin` says how to make them again."""
    folder, num_models = NetworksFolder(directory), len(latents_NCL)
    files = [folder.network(index) for index in range(num_models)]
    folder.origin.unlink(missing_ok=True)  # it tells of networks that are now replaced one by one
    frozen, batch = pipe.autoencoder.frozen_state(), pipe.default_batch_size()
    for start in range(0, num_models, batch):  # only one batch in memory at once
        stacked = pipe.autoencoder.layout.stack(pipe.decode_latents(latents_NCL[start : start + batch]))
        for index in range(start, min(start + batch, num_models)):
            own = {name: tensor_B[index - start] for name, tensor_B in stacked.items()}
            write_safetensors(files[index], {**frozen, **own}, {"format": "pt"})
    write_json(folder.origin, origin)
    return files
