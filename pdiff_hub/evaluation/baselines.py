"""Simple ways to make networks out of checkpoints, which a weight generator must surpass (arXiv 2506.07998).

Each baseline is a function `(dataset, num_models, generator, ...) -> float32 [B,P]`, in raw weight units. `generator`
is the only source of randomness. The work is done on its device, where the networks stay; the dataset's numbers should
be there, too (`CheckpointDataset.with_rows`): else they are moved slice by slice. `baseline_variants` lists all
baselines at the settings that are reported; `Variant.blocks` makes networks when they are needed, so that memory does
not grow with their number. A running variance that comes out negative is set to 0, because a network with it would
answer NaN.

Each raises ValueError for num_models below 1, a noise not above 0, and fewer checkpoints than it needs: 3 for a
distribution, 2 for `average_of` and `interpolation`, 1 for the others.
Shapes: K checkpoints, B networks to make, P parameters, S a slice of P, T tensors, R deviations, C x L latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.rows import evenly_spaced
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.fine_tuning import fine_tuned
from pdiff_hub.networks.devices import at_once_drawn
from pdiff_hub.tasks import Task
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder

Make = Callable[[CheckpointDataset, int, torch.Generator], Tensor]

NOISE_RAW = (0.06, 0.12)  # arXiv 2506.07998, in raw weight units
NOISE_STANDARDISED = (0.001, 0.05, 0.15)  # p-diff's authors, in units of each tensor's standard deviation
_AVERAGED = 16
_LAST_DEVIATIONS = 20
_BLOCK_BYTES = 512 << 20  # of networks that are made at once
_SLICE_BYTES = 64 << 20  # for the float64 copies of checkpoints and networks in one slice of P
_stds: WeakKeyDictionary[CheckpointDataset, Tensor] = WeakKeyDictionary()  # of `_tensor_stds`
_FEW = 0.25  # of the checkpoints are read one by one; more of them are read with all others
_DISTRIBUTION = 3  # the least number of checkpoints that a distribution is fitted to


@dataclass(frozen=True)
class Variant:
    """A method at one setting: "noise_raw_0.06" of "noise_raw". make: `(dataset, num_models, generator)` -> [B,P].

    steps: of training that each network takes; the baselines are shared out by it.
    """

    name: str
    method: str
    make: Make
    steps: int = 0

    def blocks(self, dataset: CheckpointDataset, num_models: int, generator: torch.Generator) -> Iterator[Tensor]:
        """The same number of networks, float32 [b,P] at a time: as many as fit into 512 MiB, and at least one.

        A GPU with much free memory makes more at once.

        One block is exactly what `make` makes; of more blocks, each goes on with the generator. A caller who drops a
        block before he takes the next holds no more than one.
        """
        size = max(1, at_once_drawn(_BLOCK_BYTES, generator.device) // (4 * dataset.layout.num_params))
        for first in range(0, num_models, size):
            yield self.make(dataset, min(size, num_models - first), generator)


def baseline_variants(
    network: nn.Module, task: Task, param_autoencoder: ParamAutoencoder, *, fine_tune_steps: int
) -> list[Variant]:
    """Every method but "generated" at every reported setting. Arguments are as in `fine_tuned` and `autoencoder`."""
    return [
        Variant("original", "original", original),
        Variant("ensemble", "ensemble", ensemble),
        Variant(f"average_{_AVERAGED}", f"average_{_AVERAGED}", average_of),
        Variant("gaussian", "gaussian", gaussian),
        Variant("low_rank_gaussian", "low_rank_gaussian", low_rank_gaussian),
        *(Variant(f"noise_raw_{sigma:g}", "noise_raw", partial(noise_raw, sigma=sigma)) for sigma in NOISE_RAW),
        *(
            Variant(f"noise_standardised_{sigma:g}", "noise_standardised", partial(noise_standardised, sigma=sigma))
            for sigma in NOISE_STANDARDISED
        ),
        Variant("interpolation", "interpolation", interpolation),
        Variant(
            "fine_tuned",
            "fine_tuned",
            partial(fine_tuned, network=network, task=task, steps=fine_tune_steps),
            fine_tune_steps,
        ),
        Variant("autoencoder", "autoencoder", partial(autoencoder, param_autoencoder=param_autoencoder)),
    ]


def original(dataset: CheckpointDataset, num_models: int, generator: torch.Generator) -> Tensor:
    """Unchanged checkpoints, evenly spaced in the order of the set; all of them if there are at most `num_models`.

    Nothing is random here; `generator` is not used.
    """
    _check(dataset, num_models)
    return dataset.select_rows(evenly_spaced(len(dataset), num_models)).params_KP.to(generator.device)


def ensemble(dataset: CheckpointDataset, num_models: int, generator: torch.Generator) -> Tensor:
    """The one average of all checkpoints' weights, [1,P] whatever `num_models` is. Nothing is random."""
    _check(dataset, num_models)
    return _by_slices(dataset, 1, generator, lambda params_KS, _: params_KS.double().mean(dim=0, keepdim=True))


def average_of(
    dataset: CheckpointDataset, num_models: int, generator: torch.Generator, num_averaged: int = _AVERAGED
) -> Tensor:
    """Averages of `num_averaged` (2 or more) different random checkpoints, drawn anew for each network.

    If the set has fewer checkpoints, all are averaged, and every network is the same.
    """
    _check(dataset, num_models, least=2)
    if num_averaged < 2:
        raise PdiffError(f"num_averaged is {num_averaged}; expected at least 2: one checkpoint is no average.")
    chosen = min(num_averaged, len(dataset))
    order_BK = torch.rand(num_models, len(dataset), generator=generator, device=generator.device).argsort(dim=1)
    weights_BK = torch.zeros(order_BK.shape, device=generator.device).scatter_(1, order_BK[:, :chosen], 1 / chosen)
    return _by_slices(dataset, num_models, generator, lambda params_KS, _: weights_BK @ params_KS)


def gaussian(dataset: CheckpointDataset, num_models: int, generator: torch.Generator) -> Tensor:
    """Draws of an independent normal distribution per coordinate, with the checkpoints' mean and (unbiased) std."""
    _check(dataset, num_models, least=_DISTRIBUTION)

    def draw(params_KS: Tensor, _: int) -> Tensor:
        std_S, mean_S = torch.std_mean(params_KS.double(), dim=0)
        return _normal(generator, num_models, len(mean_S)) * std_S + mean_S

    return _by_slices(dataset, num_models, generator, draw)


def low_rank_gaussian(dataset: CheckpointDataset, num_models: int, generator: torch.Generator) -> Tensor:
    """Draws of SWAG's normal distribution (arXiv 1902.02476, eq. 1).

    Half of its variance is diagonal, half comes from the last R = min(20, K) deviations D:
    mean + std z / sqrt(2) + D z' / sqrt(2 (R - 1)), z of size P and z' of size R. Two things differ from the paper:
    D is taken from the mean of all checkpoints, not from the running mean, and the std is the unbiased one. So with
    K = R every coordinate has exactly the variance that it has in `gaussian`.
    """
    _check(dataset, num_models, least=_DISTRIBUTION)
    rank = min(_LAST_DEVIATIONS, len(dataset))
    shared_BR = _normal(generator, num_models, rank).double() / math.sqrt(2 * (rank - 1))

    def draw(params_KS: Tensor, _: int) -> Tensor:
        params_KS = params_KS.double()
        std_S, mean_S = torch.std_mean(params_KS, dim=0)
        own_BS = _normal(generator, num_models, len(mean_S)) * (std_S / math.sqrt(2))
        return mean_S + own_BS + shared_BR @ (params_KS[-rank:] - mean_S)

    return _by_slices(dataset, num_models, generator, draw)


def noise_raw(dataset: CheckpointDataset, num_models: int, generator: torch.Generator, sigma: float) -> Tensor:
    """Random checkpoints plus normal noise on every number, of standard deviation `sigma` in raw weight units."""
    _check(dataset, num_models)
    _check_sigma(sigma)
    source, rows_B = _needed(dataset, _rows(dataset, num_models, generator))

    def draw(params_KS: Tensor, _: int) -> Tensor:
        picked_BS = params_KS[rows_B]
        return picked_BS + sigma * _normal(generator, *picked_BS.shape)

    return _by_slices(dataset, num_models, generator, draw, source)


def noise_standardised(dataset: CheckpointDataset, num_models: int, generator: torch.Generator, sigma: float) -> Tensor:
    """Random checkpoints plus normal noise of `sigma` times the standard deviation of each tensor.

    This is the same as standardising each tensor by its mean and std over all checkpoints and entries, adding normal
    noise of std `sigma`, and undoing the standardisation. A tensor of equal numbers stays unchanged.
    """
    _check(dataset, num_models)
    _check_sigma(sigma)
    std_T = _tensor_stds(dataset, generator.device)
    source, rows_B = _needed(dataset, _rows(dataset, num_models, generator))

    def draw(params_KS: Tensor, start: int) -> Tensor:
        picked_BS = params_KS[rows_B]
        stop = start + picked_BS.shape[1]
        overlapping = dataset.layout.overlapping(start, stop)
        lengths = torch.tensor([min(e.stop, stop) - max(e.start, start) for _, e in overlapping], device=std_T.device)
        std_S = std_T[[index for index, _ in overlapping]].repeat_interleave(lengths, output_size=stop - start)
        return picked_BS + (sigma * std_S).float() * _normal(generator, *picked_BS.shape)

    return _by_slices(dataset, num_models, generator, draw, source)


def interpolation(dataset: CheckpointDataset, num_models: int, generator: torch.Generator) -> Tensor:
    """Points on the line between two different random checkpoints, drawn uniformly from one end to the other."""
    _check(dataset, num_models, least=2)
    first_B, device = _rows(dataset, num_models, generator), generator.device
    between_B = torch.randint(1, len(dataset), (num_models,), generator=generator, device=device)
    weight_B1 = torch.rand(num_models, 1, generator=generator, device=device)
    source, ends_2B = _needed(dataset, torch.stack([first_B, (first_B + between_B) % len(dataset)]))

    def draw(params_KS: Tensor, _: int) -> Tensor:
        return params_KS[ends_2B[0]].lerp(params_KS[ends_2B[1]], weight_B1)

    return _by_slices(dataset, num_models, generator, draw, source)


def autoencoder(
    dataset: CheckpointDataset, num_models: int, generator: torch.Generator, param_autoencoder: ParamAutoencoder
) -> Tensor:
    """Decoded draws of an independent normal distribution per latent coordinate: p-diff without its diffusion.

    The mean and (unbiased) std of a coordinate are those over the encoded checkpoints. The autoencoder does its work on
    its own device. Raises ValueError also if the autoencoder is of another layout.
    """
    _check(dataset, num_models, least=_DISTRIBUTION)
    if param_autoencoder.layout != dataset.layout:
        raise PdiffError(
            f"the autoencoder is for {param_autoencoder.layout!r}, the data set holds {dataset.layout!r}; "
            "expected the autoencoder that was trained on this data set."
        )
    params_BP = torch.empty(num_models, dataset.layout.num_params, device=generator.device)
    with torch.no_grad():
        std_CL, mean_CL = torch.std_mean(param_autoencoder.encode_slices(dataset.read_slice), dim=0)
        noise_BCL = _normal(generator, num_models, *std_CL.shape).to(std_CL)
        for start, stop, decoded_BS in param_autoencoder.decode_slices(noise_BCL * std_CL + mean_CL):
            params_BP[:, start:stop] = decoded_BS
    return params_BP


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _rows(dataset: CheckpointDataset, num_models: int, generator: torch.Generator) -> Tensor:
    """int64 [B]: a random checkpoint for each network."""
    return torch.randint(len(dataset), (num_models,), generator=generator, device=generator.device)


def _needed(dataset: CheckpointDataset, rows: Tensor) -> tuple[CheckpointDataset, Tensor]:
    """The checkpoints `rows` alone, if they are a few of many, so that no others are read; and where each is there."""
    needed, places = rows.unique(return_inverse=True)
    if len(needed) > _FEW * len(dataset):
        return dataset, rows
    return dataset.select_rows(needed.tolist()), places


def _slices(dataset: CheckpointDataset, num_models: int, device: torch.device) -> Iterator[tuple[int, int]]:
    step = max(1, at_once_drawn(_SLICE_BYTES, device) // (8 * (len(dataset) + num_models)))
    for start in range(0, dataset.layout.num_params, step):
        yield start, min(start + step, dataset.layout.num_params)


def _by_slices(
    dataset: CheckpointDataset,
    num_models: int,
    generator: torch.Generator,
    draw: Callable[[Tensor, int], Tensor],
    source: CheckpointDataset | None = None,
) -> Tensor:
    """[B,P] on the generator's device, made slice by slice with `draw(params_KS, start) -> [B,S]`.

    source: what is read, by default all of the data set; where a slice ends does not depend on it.
    Negative running variances are set to 0.
    """
    device = generator.device
    params_BP = torch.empty(num_models, dataset.layout.num_params, device=device)
    for start, stop in _slices(dataset, num_models, device):
        params_BP[:, start:stop] = draw((source or dataset).read_slice(start, stop).to(device), start)
    for entry in dataset.layout.entries:
        if entry.log:
            params_BP[:, entry.start : entry.stop].clamp_min_(0)
    return params_BP


def _tensor_stds(dataset: CheckpointDataset, device: torch.device) -> Tensor:
    """float64 [T] on the device: the (unbiased) standard deviation of each tensor over all checkpoints and entries.

    They are found once for each data set: every noise and every block of networks needs them.
    """
    if (known_T := _stds.get(dataset)) is not None:
        return known_T.to(device)
    entries = dataset.layout.entries
    origin_T, sums_T, squares_T = torch.zeros(3, len(entries), dtype=torch.float64, device=device).unbind()
    for start, stop in _slices(dataset, 0, device):
        params_KS = dataset.read_slice(start, stop).to(device).double()
        for index, entry in dataset.layout.overlapping(start, stop):
            part = params_KS[:, max(entry.start - start, 0) : entry.stop - start]
            if entry.start >= start:
                origin_T[index] = part[0, 0]
            part = part - origin_T[index]  # else sums of squares cancel if the mean is far above the deviation
            sums_T[index] += part.sum()
            squares_T[index] += part.square().sum()
    counts_T = len(dataset) * sums_T.new_tensor([entry.stop - entry.start for entry in entries])
    # A single number (one checkpoint, a tensor of one entry) has the deviation 0, not 0 / 0.
    _stds[dataset] = ((squares_T - sums_T.square() / counts_T).clamp_min(0) / (counts_T - 1).clamp_min(1)).sqrt()
    return _stds[dataset]


def _check(dataset: CheckpointDataset, num_models: int, least: int = 1) -> None:
    if num_models < 1:
        raise PdiffError(f"num_models is {num_models}; expected at least 1 network to make.")
    if len(dataset) < least:
        raise PdiffError(
            f"the data set has {len(dataset)} checkpoints, and this baseline needs at least {least}; collect more."
        )


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < math.inf:
        raise PdiffError(f"sigma is {sigma}; expected a standard deviation above 0.")
