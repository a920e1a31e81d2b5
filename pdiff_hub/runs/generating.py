"""Writes generated networks: all as rows of one file for judging, or each as a file that loads with `strict=True`.

Under a launcher, call these functions in every process: each samples and writes its share of the networks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pdiff_hub.checkpoints.rows import Rows, ShardRows, begin_shard, write_pieces
from pdiff_hub.errors import PdiffError
from pdiff_hub.exporting import SAFETENSORS, SUFFIXES, Usage, program_content, require_format
from pdiff_hub.pipeline import PDiffPipeline, sample
from pdiff_hub.pipeline.exporting import built
from pdiff_hub.pipeline.usage import described, header_of, origin_of, usage_of
from pdiff_hub.processes import alone_in, this_run
from pdiff_hub.progress import progress_bar
from pdiff_hub.records import NetworksFolder, RunFolder
from pdiff_hub.safe_files import disk_errors_of, remove_unfinished, replacing, write_json, write_safetensors
from pdiff_hub.safe_files.lock import holding
from pdiff_hub.travelling.pipeline_pdiff import require_finite

_State = dict[str, torch.Tensor]
_UNFINISHED = "unfinished-generated-"
_DECODED_BYTES = 256 << 20  # of one slice of P, for all networks that are decoded at once


def write_params(
    pipe: PDiffPipeline,
    num_models: int,
    file: Path,
    *,
    seed: int,
    num_inference_steps: int | None = None,
    lasting: bool = True,
) -> Rows:
    """Generate networks into `file`: float32 `params` [num_models, P], written slice by slice of P. -> its rows.

    lasting: replace `file` when all is written, and wait until it is on the disk. Else it is written where it lies.
    """
    here = this_run()
    latents_NCL = _sampled(pipe, num_models, seed=seed, num_inference_steps=num_inference_steps)
    latents_NCL, own = latents_NCL.to(pipe.autoencoder.device), here.share(num_models)
    num_params = pipe.autoencoder.layout.num_params
    batch = max(1, _DECODED_BYTES // (4 * max(stop - start for start, stop in pipe.autoencoder.slices)))

    bar = progress_bar(len(own) * num_params, "write networks", "number", scaled=True)

    def pieces() -> Iterator[tuple[int, int, torch.Tensor]]:
        for first in range(own.start, own.stop, batch):
            some_BCL = latents_NCL[first : min(first + batch, own.stop)]
            for start, _, params_BS in pipe.autoencoder.decode_slices(some_BCL):
                require_finite(params_BS, first)
                yield first, start, params_BS
                bar.update(params_BS.numel())

    file.parent.mkdir(parents=True, exist_ok=True)
    if here.is_main:
        remove_unfinished(file.parent)  # a killed run may have left gigabytes
    written = replacing(file) if lasting else _in_place(file)
    with written if here.is_main else nullcontext() as temporary, torch.no_grad():
        if temporary is not None:
            begin_shard(temporary, num_models, num_params)
        write_pieces(_place(here.told(temporary)), num_models, num_params, pieces())
        here.wait()
    here.wait()
    bar.close()
    return ShardRows([(file, num_models)], num_params)


@contextmanager
def _in_place(file: Path) -> Iterator[Path]:
    with disk_errors_of(file):
        yield file


@contextmanager
def generated_rows(
    pipe: PDiffPipeline, num_models: int, directory: Path, *, seed: int, num_inference_steps: int | None = None
) -> Iterator[Rows]:
    """Generated networks [num_models, P] for judging, in a file in `directory` that is deleted when the block ends.

    PdiffError if another process writes into `directory`.
    """
    here = this_run()
    with alone_in(directory):
        if here.is_main:
            for leftover in directory.glob(f"{_UNFINISHED}????????"):  # of a killed judgement: gigabytes
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover)
        with TemporaryDirectory(prefix=_UNFINISHED, dir=directory) if here.is_main else nullcontext() as temporary:
            file = _place(here.told(temporary)) / RunFolder(directory).generated.name
            steps = num_inference_steps
            yield write_params(pipe, num_models, file, seed=seed, num_inference_steps=steps, lasting=False)
            here.wait()  # until nobody reads it any more


def write_networks(
    pipe: PDiffPipeline,
    num_models: int,
    directory: Path,
    *,
    seed: int,
    num_inference_steps: int | None = None,
    condition: Mapping[str, Any] | None = None,
    guidance_scale: float = 1.0,
    format: str = SAFETENSORS,
    ensemble: bool = False,
    trust_remote_code: bool = False,
) -> list[Path]:
    """Generate networks as `model-00000.safetensors` ... Each holds the frozen tensors and loads with `strict=True`.

    `generated.json` beside them says how to make them again, and all that one must know to use them without this
    package: architecture, input and its normalisation, classes. Each file says it of its network, too.

    Args:
        condition, guidance_scale: what the networks are asked to be, as in a call of the pipeline.
        format: "torch-export" or "onnx" writes `model-00000.pt2` or `.onnx` ..., which run without this package and
            take raw images, as `export_network` says.
        ensemble: in these formats, write one file `ensemble.pt2` or `.onnx` that averages all networks.
        trust_remote_code: in these formats, let the pipeline build a network by its own function.

    Raises:
        ValueError: if an earlier call wrote networks into `directory` that this call does not replace: old and new ones
            would be mixed; for what `export_network` refuses, with nothing written.
    """
    require_format(format)
    if ensemble and format == SAFETENSORS:
        raise PdiffError(
            "an ensemble is one file in the formats torch-export and onnx only; name one of them, or average the "
            "answers of the single networks."
        )
    require_room(directory, num_models, format, ensemble)
    latents_NCL = _sampled(
        pipe,
        num_models,
        seed=seed,
        num_inference_steps=num_inference_steps,
        condition=condition,
        guidance_scale=guidance_scale,
    )
    origin = origin_of(pipe, num_models, seed, num_inference_steps, condition, guidance_scale)
    usage = usage_of(pipe, condition)
    if format == SAFETENSORS:
        return write_latents(pipe, latents_NCL, directory, origin, usage)
    return write_programs(pipe, latents_NCL, directory, origin, usage, format, ensemble, trust_remote_code)


def require_room(directory: Path, num_models: int, format: str = SAFETENSORS, ensemble: bool = False) -> None:
    """ValueError if `directory` holds networks that the new ones would not replace."""
    folder = NetworksFolder(directory)
    there = {file for suffix in SUFFIXES.values() for file in folder.networks(suffix)}
    if more := sorted(there - set(_files(folder, num_models, format, ensemble))):
        raise PdiffError(
            f"{more[0]} is there already and not one of the {num_models} networks to be written; give an "
            "empty folder, or remove what an earlier call left in this one."
        )


@holding("directory", by=alone_in)
def write_latents(
    pipe: PDiffPipeline,
    latents_NCL: torch.Tensor,
    directory: Path,
    origin: Mapping[str, Any],
    usage: Usage | None = None,
) -> list[Path]:
    """The networks of scaled latents, as files that load with `strict=True`.

    origin: how to make them again. usage: how they are used; None takes what the pipeline says.
    """
    here, folder = this_run(), NetworksFolder(directory)
    files, own = _files(folder, len(latents_NCL), SAFETENSORS, ensemble=False), here.share(len(latents_NCL))
    require_finite(latents_NCL)
    facts = described(pipe, origin, usage or usage_of(pipe), format=SAFETENSORS)
    folder.origin.unlink(missing_ok=True)  # it tells of networks that are now replaced one by one
    for index, state in zip(own, _states(pipe, latents_NCL[own.start : own.stop]), strict=True):
        write_safetensors(files[index], state, header_of(facts, index))
    here.wait()
    if here.is_main:
        write_json(folder.origin, facts)
    return files


@holding("directory", by=alone_in)
def write_programs(
    pipe: PDiffPipeline,
    latents_NCL: torch.Tensor,
    directory: Path,
    origin: Mapping[str, Any],
    usage: Usage,
    format: str,
    ensemble: bool,
    trust_remote_code: bool,
) -> list[Path]:
    """As `write_latents`, each network (or all as one) as a file that runs without this package."""
    here, folder, number = this_run(), NetworksFolder(directory), len(latents_NCL)
    files = _files(folder, number, format, ensemble)
    require_finite(latents_NCL)
    facts = described(pipe, origin, usage, format=format, num_averaged=number if ensemble else 1)
    own = here.share(len(files))
    states = _states(pipe, latents_NCL if ensemble and own else latents_NCL[own.start : own.stop])
    parts: Iterable[_State | list[_State]] = [list(states)] if ensemble and own else states
    for index, each in zip(own, parts, strict=True):
        about, file = facts if ensemble else {**facts, "index": index}, files[index]
        content = program_content(built(pipe, each, trust_remote_code), usage, file.name, about, format)
        folder.origin.unlink(missing_ok=True)  # only now: a network that is refused leaves all as it was
        with replacing(file) as temporary:
            temporary.write_bytes(content)
    here.wait()
    if here.is_main:
        write_json(folder.origin, facts)
    return files


def _sampled(pipe: PDiffPipeline, num_models: int, **options: Any) -> torch.Tensor:
    """The scaled latents of all networks, [N,C,L]; options as of `sample`. Each process samples its share of them."""
    here = this_run()
    own = here.share(num_models) if here.count > 1 else None
    return torch.cat(here.gathered(sample(pipe, num_models, output_type="latent", rows=own, **options)))


def _place(name: str | Path | None) -> Path:
    """What the main process has named for all."""
    assert name is not None
    return Path(name)


def _files(folder: NetworksFolder, num_models: int, format: str, ensemble: bool) -> list[Path]:
    suffix = SUFFIXES[format]
    return [folder.ensemble(suffix)] if ensemble else [folder.network(index, suffix) for index in range(num_models)]


def _states(pipe: PDiffPipeline, latents_NCL: torch.Tensor) -> Iterator[_State]:
    """The complete state dict of each network; one batch of them is in memory at once."""
    frozen, batch = pipe.autoencoder.frozen_state(), pipe.default_batch_size()
    for start in range(0, len(latents_NCL), batch):
        params_BP = pipe.decode_latents(latents_NCL[start : start + batch])
        require_finite(params_BP, start)
        stacked = pipe.autoencoder.layout.stack(params_BP)
        for index in range(len(params_BP)):
            yield {**frozen, **{name: tensor_B[index] for name, tensor_B in stacked.items()}}
