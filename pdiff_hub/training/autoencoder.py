"""Stage one: fit a `ParamAutoencoder` to a set of checkpoints, streaming over slices of the parameter vector.

Shapes: K training checkpoints, H held-out ones, P parameters, S a slice of P, N components, C x L latents.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.files import MAX_PARQUET_PARAMS
from pdiff_hub.checkpoints.rows import PickedRows
from pdiff_hub.errors import PdiffError
from pdiff_hub.progress import progress_bar
from pdiff_hub.records import TrainingFolder
from pdiff_hub.safe_files import write_safetensors
from pdiff_hub.training.config import AutoencoderConfig
from pdiff_hub.training.holdout import split_rows
from pdiff_hub.training.loop import LoopConfig, run_loop, share
from pdiff_hub.training.memory import give_back, return_large_tensors
from pdiff_hub.training.principal_components import spectrum_of
from pdiff_hub.training.row_slices import RowSlices
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder

_MIN_COMPONENTS = 24
_MOST_PER_CHECKPOINT = 2 / 3  # components per training checkpoint: the last ones are noise of these checkpoints
_WINDOW_PARAMS = 2**16  # per gradient step; about 2.5 GiB of activations at batch 50 and the paper's widths
_KEPT_BYTES = 2**30  # checkpoints of up to this size stay on the device; larger sets are read window by window
_MANY_PARAMS = 1_000_000  # with more, memory matters more than the time that new pages take


def fit_autoencoder(
    dataset: CheckpointDataset,
    config: AutoencoderConfig,
    *,
    length_multiple: int,
    seed: int,
    accelerator: Accelerator,
    state: TrainingFolder,
) -> tuple[ParamAutoencoder, Tensor, Tensor]:
    """Fits an autoencoder and its latent scale on the training checkpoints; -> it, their latents [K,C,L], and those of
    the held-out ones [H,C,L].

    All are on the accelerator's device. The latent length is padded to a multiple of `length_multiple`, because the
    U-Net's levels need that.
    """
    train_K, held_out_H = split_rows(dataset, config.holdout)
    if dataset.layout.num_params > _MANY_PARAMS:
        return_large_tensors()
    # Other devices than NVIDIA's may lack float64. Small networks are no work for a GPU.
    few = dataset.layout.num_params < len(train_K)
    device = accelerator.device if accelerator.device.type == "cuda" and not few else torch.device("cpu")
    train, held_out = RowSlices(dataset, train_K, device), RowSlices(dataset, held_out_H, device)
    statistics = _statistics(dataset, train, config).to(device)
    if config.form == "linear":
        autoencoder, train_KCL, held_out_HCL = _principal_components(
            dataset, train, held_out, config, statistics, length_multiple, state.components(accelerator.process_index)
        )
    else:
        block = config.kernel_size ** len(config.encoder_widths)
        length = math.ceil(dataset.layout.num_params / block / length_multiple) * length_multiple
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            autoencoder = _build(dataset, config, length, statistics)
    autoencoder.register_to_config(
        held_out=held_out_H, num_checkpoints=len(dataset), checkpoints_sha256=dataset.digest(len(dataset))
    )
    autoencoder.set_frozen_state(dataset.frozen)
    autoencoder.to(accelerator.device)
    if config.steps:
        _train(autoencoder, dataset, train_K, config, seed, accelerator, state.autoencoder_steps)
    autoencoder.eval().requires_grad_(False)
    if config.steps:
        train_KCL = autoencoder.encode_slices(train)  # not scaled: no scale is fitted yet
        held_out_HCL = autoencoder.encode_slices(held_out) if held_out_H else train_KCL[:0]
    train_KCL, held_out_HCL = train_KCL.to(accelerator.device), held_out_HCL.to(accelerator.device)
    fit_latent_scale(autoencoder, train_KCL)
    return autoencoder, autoencoder.scale_latents(train_KCL), autoencoder.scale_latents(held_out_HCL)


def held_out_r2(
    autoencoder: ParamAutoencoder, dataset: CheckpointDataset, holdout: float, held_out_HCL: Tensor | None = None
) -> float:
    """`deviation_r2` of the held-out checkpoints, against the training mean; NaN if none is held out.

    held_out_HCL: their scaled latents, if they are known.
    """
    train_K, held_out_H = split_rows(dataset, holdout)
    if not held_out_H:
        return math.nan
    train, held_out = RowSlices(dataset, train_K), RowSlices(dataset, held_out_H)
    return deviation_r2(autoencoder, held_out, lambda start, stop: train(start, stop).mean(dim=0), held_out_HCL)


@torch.no_grad()
def deviation_r2(
    autoencoder: ParamAutoencoder,
    read_slice: Callable[[int, int], Tensor],
    mean_slice: Callable[[int, int], Tensor],
    latent_KCL: Tensor | None = None,
) -> float:
    """1 - |x - decode(encode(x))|^2 / |x - mean|^2 in raw units: how much of the checkpoints' differences survives.

    `read_slice(start, stop) -> [K, S]` reads the checkpoints x, `mean_slice` the training mean [S]. 1 is perfect, 0 is
    a decoder that always answers with the mean, NaN means that no checkpoint differs from the mean. latent_KCL:
    encode(x), if it is known.
    """
    error, total = 0.0, 0.0
    if latent_KCL is None:
        latent_KCL = autoencoder.encode_slices(read_slice)
    for start, stop, decoded_KS in autoencoder.decode_slices(latent_KCL):
        params_KS = read_slice(start, stop).to(decoded_KS)
        error += float((params_KS - decoded_KS).double().square().sum())
        total += float((params_KS - mean_slice(start, stop).to(decoded_KS)).double().square().sum())
    return 1.0 - error / total if total > 0 else math.nan


@torch.no_grad()
def fit_latent_scale(autoencoder: ParamAutoencoder, latent_KCL: Tensor) -> None:
    """Sets the latent scaling from *unscaled* latents [K,C,L]; constant (padding) positions keep scale 1."""
    std_CL = latent_KCL.std(dim=0, correction=0)
    autoencoder.latent_mean_CL.copy_(latent_KCL.mean(dim=0))
    autoencoder.latent_std_CL.copy_(torch.where(std_CL > 1e-6 * std_CL.max(), std_CL, 1.0))


def _build(
    dataset: CheckpointDataset,
    config: AutoencoderConfig,
    length: int,
    statistics: ParamAutoencoder | None,
    num_components: int = 0,
) -> ParamAutoencoder:
    autoencoder = ParamAutoencoder(
        layout=dataset.layout.to_dict(),
        form=config.form,
        latent_channels=config.latent_channels,
        latent_length=length,
        num_components=num_components,
        normalization=config.normalization,
        encoder_widths=list(config.encoder_widths),
        decoder_widths=list(config.decoder_widths),
        kernel_size=config.kernel_size,
        network=dataset.network,
        task=dataset.task,
        slice_size=_slice_size(len(dataset), dataset.layout.num_params),
    )
    autoencoder.release = give_back
    if statistics is not None:  # not copied: each may be as large as a network
        autoencoder.mean_P, autoencoder.scale = statistics.mean_P, statistics.scale
    return autoencoder


def _slice_size(num_checkpoints: int, num_params: int) -> int:
    """Parameters per slice: a slice of all checkpoints in float64 takes 128 MiB, but there is a least size.

    The least size is larger for small networks: their sets are in parquet files, which each slice decodes as a whole.
    """
    least = 2**14 if num_params <= MAX_PARQUET_PARAMS else 2**10
    return min(max(2**27 // (8 * num_checkpoints), least), 10**6)


def _statistics(dataset: CheckpointDataset, train: RowSlices, config: AutoencoderConfig) -> ParamAutoencoder:
    """An autoencoder without components that holds the mean and the scale, for `normalize`."""
    shell = _build(dataset, replace(config, form="linear"), 1, None).to(train.device)
    squares_T = torch.zeros(len(dataset.layout.entries), dtype=torch.float64, device=train.device)
    bar = progress_bar(dataset.layout.num_params, "read checkpoints", "parameter", scaled=True)
    for start, stop in shell.slices:
        train_KS = train(start, stop)
        squares_S = torch.empty(stop - start, dtype=torch.float64, device=train.device)
        for first, last in train.blocks(start, stop):
            logs_KB = shell.to_log(train_KS[:, first - start : last - start], first)
            mean_B = logs_KB.double().mean(dim=0)
            shell.mean_P[first:last] = mean_B
            squares_S[first - start : last - start] = (logs_KB - mean_B).square_().mean(dim=0)
        if config.normalization == "per_parameter":
            shell.scale[start:stop] = _positive(squares_S.sqrt())
        for index, entry in dataset.layout.overlapping(start, stop):
            squares_T[index] += squares_S[max(entry.start - start, 0) : entry.stop - start].sum()
        bar.update(stop - start)
    bar.close()
    if config.normalization == "per_tensor":
        sizes_T = torch.tensor([entry.stop - entry.start for entry in dataset.layout.entries], device=train.device)
        shell.scale.copy_(_positive((squares_T / sizes_T).sqrt()))
    return shell


def _positive(std: Tensor) -> Tensor:
    # What never changes has no scale; with 1, its deviations stay zero.
    return torch.where(std > 1e-12, std, 1.0).float()


def _principal_components(
    dataset: CheckpointDataset,
    train: RowSlices,
    held_out: RowSlices,
    config: AutoencoderConfig,
    statistics: ParamAutoencoder,
    length_multiple: int,
    directory: Path,
) -> tuple[ParamAutoencoder, Tensor, Tensor]:
    """-> the autoencoder, and the unscaled latents of both sets of checkpoints.

    On a CPU the components of each slice are written into `directory` and mapped from there, so that memory does not
    grow with P. A GPU holds them all.
    """
    spectrum = spectrum_of(dataset, train, held_out, statistics)
    if config.num_components is not None:
        num_components = config.num_components
        if num_components > spectrum.rank:
            raise PdiffError(
                f"autoencoder.num_components is {num_components}, expected at most {spectrum.rank}: "
                f"{len(train)} training checkpoints of {dataset.layout.num_params} numbers span no "
                "more."
            )
    else:
        enough = int((spectrum.explained_N < config.explained).sum()) + 1
        most = max(1, int(_MOST_PER_CHECKPOINT * len(train)))
        num_components = min(max(enough, _MIN_COMPONENTS), config.max_components, most, spectrum.rank)
    columns = math.ceil(num_components / config.latent_channels)
    length = math.ceil(columns / length_multiple) * length_multiple
    with torch.device("meta"):  # takes no memory for components, which are replaced below
        autoencoder = _build(dataset, config, length, statistics, num_components)
    for name, buffer in autoencoder.named_buffers():
        if buffer.is_meta:
            setattr(autoencoder, name, torch.zeros_like(buffer, device=train.device))
    autoencoder.latent_std_CL.fill_(1.0)
    on_cpu = train.device.type == "cpu"
    if on_cpu:
        directory.mkdir(parents=True, exist_ok=True)
    latents: list[list[Tensor]] = [[], []]
    autoencoder.release = _keep  # each component is used twice
    bar = progress_bar(dataset.layout.num_params, "write principal components", "parameter", scaled=True)
    for index, (start, stop) in enumerate(autoencoder.slices):
        train_KS = train.normalized(statistics, start, stop)
        components_NS = spectrum.components(num_components, start, train_KS)
        if on_cpu:
            file = directory / f"slice-{index:05d}.safetensors"
            write_safetensors(file, {"components_NS": components_NS})
            components_NS = load_file(file)["components_NS"]
        autoencoder.components[index] = nn.Parameter(components_NS, requires_grad=False)
        latents[0].append(autoencoder.encode_deviations(train_KS, start))
        latents[1].append(autoencoder.encode_deviations(held_out.normalized(statistics, start, stop), start))
        if on_cpu:
            give_back(components_NS)
        bar.update(stop - start)
    bar.close()
    autoencoder.release = give_back
    train_KCL, held_out_HCL = (functools.reduce(torch.add, parts) for parts in latents)
    return autoencoder.requires_grad_(True), train_KCL, held_out_HCL


def _keep(tensor: Tensor) -> None:
    """Gives no memory back."""


def _windows(autoencoder: ParamAutoencoder) -> list[tuple[int, int]]:
    """(start, stop) of the windows of the vector. Each gradient step sees one window.

    Conv: a window is a number of whole blocks, because each block is encoded separately. So activations do not grow
    with the network. For vectors longer than a window, this deviates from p-diff sec. 3.2, where each step sees the
    whole vector. Linear: one window is the whole vector, because latents are sums over it.
    """
    num_params = autoencoder.layout.num_params
    length = num_params
    if autoencoder.config.form == "conv":
        count = math.ceil(num_params / max(_WINDOW_PARAMS, autoencoder.block))
        length = math.ceil(num_params / (count * autoencoder.block)) * autoencoder.block  # all of about the same length
    return [(start, min(start + length, num_params)) for start in range(0, num_params, length)]


def _train(
    autoencoder: ParamAutoencoder,
    dataset: CheckpointDataset,
    train_K: list[int],
    config: AutoencoderConfig,
    seed: int,
    accelerator: Accelerator,
    directory: Path,
) -> None:
    device = accelerator.device
    rows_K = torch.tensor(train_K, device=device)
    num_params = dataset.layout.num_params
    windows = _windows(autoencoder)
    kept = len(windows) == 1 or 4 * len(dataset) * num_params <= _KEPT_BYTES
    params_KP = dataset.read_slice(0, num_params).to(device) if kept else None
    columns = autoencoder.config.latent_length if len(windows) == 1 else windows[0][1] // autoencoder.block
    latent_shape = (config.batch_size, autoencoder.config.latent_channels, columns)

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        picked_B = rows_K[torch.randint(len(rows_K), (config.batch_size,), generator=generator, device=device)]
        # The window is drawn on the CPU, so that the CPU need not wait for the device.
        start, stop = windows[random.Random(generator.initial_seed()).randrange(len(windows))]
        own_B = share(picked_B, accelerator)
        if params_KP is not None:
            params_BS = params_KP[own_B, start:stop]
        else:
            params_BS = PickedRows(dataset.rows, own_B.tolist()).read(0, len(own_B), start, stop).to(device)
        target_BS = noisy_BS = autoencoder.normalize(params_BS, start)
        if config.input_noise > 0:
            noise_BS = torch.randn(len(picked_B), stop - start, generator=generator, device=device)
            noisy_BS = autoencoder.normalize(params_BS + config.input_noise * share(noise_BS, accelerator), start)
        noise_BCL = None
        if config.latent_noise > 0:
            noise_BCL = torch.randn(latent_shape, generator=generator, device=device)
            noise_BCL = config.latent_noise * share(noise_BCL, accelerator)
        # Weighted by length, the loss of a window is on average the loss of the whole vector.
        weight = (stop - start) * len(windows) / num_params
        return weight * nn.functional.mse_loss(model(noisy_BS, noise_BCL), target_BS)

    loop = LoopConfig(
        name="autoencoder",
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=min(100, config.steps // 10),
        weight_decay=config.weight_decay,
        max_grad_norm=1.0,
        ema_decay=0.99,
        save_every=500,
        save_limit=1,
        log_every=50,
    )
    run_loop(autoencoder, loss_of, loop, directory, accelerator, seed=seed)
