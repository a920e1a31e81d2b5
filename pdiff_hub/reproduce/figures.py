"""Figures 3, 4a, 4b, 4c, 5a, 5b of p-diff (arXiv 2402.13144) and the frontier of arXiv 2506.07998, drawn again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pdiff_hub.evaluation.baselines import noise_standardised
from pdiff_hub.evaluation.figures import (
    checkpoints_figure,
    latents_figure,
    parameter_heat_maps,
    trajectories_figure,
)
from pdiff_hub.evaluation.report import Figure, Table
from pdiff_hub.evaluation.results_page import result_figure, result_sections
from pdiff_hub.evaluation.table import verdict
from pdiff_hub.reproduce.results import Reproduced
from pdiff_hub.reproduce.settings import Settings
from pdiff_hub.reproduce.tables import checkpoint_runs
from pdiff_hub.reproduce.workbench import Run, Workbench
from pdiff_hub.travelling.pipeline_pdiff import PDiffPipelineOutput

_NOISE = 0.05  # after standardising: the middle of the three values that the authors use
_PATHS = 5  # number of noises, as in the paper's figure 5a
_MODELS = 50  # most networks per number of checkpoints, as in figure 5b
_THRESHOLD = 0.01  # how far networks may be below the median accuracy of the originals, on validation
_MOST_NUMBERS = 1 << 28  # if decoded trajectories hold more numbers, latents are drawn instead


def figure3(bench: Workbench, settings: Settings) -> Reproduced:
    """Heat maps of the parameters of networks trained from three seeds."""
    dataset = bench.checkpoints("seeds", settings.seeds())
    stacked = dataset.layout.stack(dataset.params_KP)
    png = _png(bench, "figure3")
    parameter_heat_maps(_one_of_each_kind(stacked), png.with_suffix(""))
    return Reproduced(
        "figure3",
        "Figure 3: parameters of three seeds",
        f"A {dataset.network['name']} trained from three seeds, hidden units in their own order.",
        [
            Figure(
                png,
                "Parameters by layer and seed",
                "Heat maps of conv, norm and linear layers of three "
                "networks, each tensor scaled to its own lowest and highest value.",
            )
        ],
    )


def figure4a(bench: Workbench, settings: Settings) -> Reproduced:
    """Similarity of networks by their errors, in four comparisons."""
    run = _main(bench, settings)
    return Reproduced(
        "figure4a",
        "Figure 4a: similarity of networks by their errors",
        f"IoU of wrong predictions on test; {settings.describe_main()}, {settings.main_checkpoints} checkpoints.",
        _copied(bench, run, "similarity", "figure4a"),
        measured=run.summary("similarity")["similarity"],
    )


def figure4b(bench: Workbench, settings: Settings) -> Reproduced:
    """Accuracy against the highest similarity to an original."""
    run = _main(bench, settings)
    return Reproduced(
        "figure4b",
        "Figure 4b: accuracy against the highest similarity",
        f"{settings.describe_main()}, {settings.main_checkpoints} checkpoints.",
        _copied(bench, run, "accuracy-similarity", "figure4b"),
        measured=run.summary("methods")["methods"],
    )


def figure4c(bench: Workbench, settings: Settings) -> Reproduced:
    """t-SNE of the latents of originals, generated and noise-added networks."""
    run, png = _main(bench, settings), _png(bench, "figure4c")
    encoder = run.pipeline().autoencoder
    generated_BP = run.generated()
    noisy_BP = noise_standardised(run.dataset, len(generated_BP), torch.Generator().manual_seed(settings.seed), _NOISE)
    with torch.no_grad():
        latents = {
            name: encoder.encode_slices(_columns(params_BP))
            for name, params_BP in (("generated", generated_BP), ("noise_standardised", noisy_BP))
        }
        latents["original"] = encoder.encode_slices(run.dataset.read_slice)
    latents_figure(latents, png.with_suffix(""))
    return Reproduced(
        "figure4c",
        "Figure 4c: t-SNE of latents",
        f"{settings.describe_main()}; noise of {_NOISE:g} after standardising each tensor.",
        [
            Figure(
                png,
                "t-SNE of latents",
                "One point per network, by its latent: originals, generated, and noise-added ones.",
            )
        ],
    )


def figure5a(bench: Workbench, settings: Settings) -> Reproduced:
    """Trajectories of the reverse process from five noises."""
    run, png = _main(bench, settings), _png(bench, "figure5a")
    pipe = run.pipeline()
    out = pipe(
        _PATHS, generator=torch.Generator().manual_seed(settings.seed), output_type="latent", return_trajectory=True
    )
    assert isinstance(out, PDiffPipelineOutput) and out.trajectory is not None
    decoded = out.trajectory.shape[0] * _PATHS * run.dataset.layout.num_params <= _MOST_NUMBERS
    if decoded:
        path_TSP = torch.stack([pipe.decode_latents(latents_SCL) for latents_SCL in out.trajectory])
        trajectories_figure(path_TSP, run.dataset.params_KP, png.with_suffix(""), unit="weight units")
    else:
        with torch.no_grad():
            originals_KCL = pipe.autoencoder.encode_slices(run.dataset.read_slice)
        trajectories_figure(out.trajectory, originals_KCL, png.with_suffix(""), unit="scaled latent units")
    return Reproduced(
        "figure5a",
        "Figure 5a: trajectories of the reverse process",
        f"{settings.describe_main()}; {'decoded parameters' if decoded else 'latents'} after each step, "
        f"from {_PATHS} noises, in two dimensions.",
        [
            Figure(
                png,
                "Trajectories",
                "Paths from five noises to generated networks, among the originals with their mean and spread.",
            )
        ],
    )


def figure5b(bench: Workbench, settings: Settings) -> Reproduced:
    """The highest similarity of each generated network to an original, by the number of checkpoints."""
    png = _png(bench, "figure5b")
    similarity = {}
    for number, run in checkpoint_runs(bench, settings).items():
        networks = run.networks()
        least = float(networks["original"]["validation_accuracy"].quantile(0.5)) - _THRESHOLD
        good = networks["generated"]["validation_accuracy"] >= least
        similarity[number] = networks["generated"]["max_similarity"][good][:_MODELS]
    drawn = {number: values_B for number, values_B in similarity.items() if bool(values_B.isfinite().any())}
    if drawn:
        checkpoints_figure(drawn, png.with_suffix(""))
    rows = [
        (str(number), str(len(values_B)), f"{float(values_B.nanmean()):.3f}" if len(values_B) else "undefined")
        for number, values_B in similarity.items()
    ]
    blocks: list[Table | Figure] = (
        [
            Figure(
                png,
                "Highest similarity by K",
                "Highest IoU of errors with an original, a column of points for each number of checkpoints.",
            )
        ]
        if drawn
        else []
    )
    blocks.append(Table("Networks drawn", ("K", "networks", "mean max similarity"), rows))
    return Reproduced(
        "figure5b",
        "Figure 5b: highest similarity by number of checkpoints",
        f"{settings.describe_main()}; up to {_MODELS} networks each, none more than a point below the "
        "originals' median accuracy on validation.",
        blocks,
    )


def frontier(bench: Workbench, settings: Settings) -> Reproduced:
    """Copies, accuracy against both kinds of novelty beside every baseline, and the ensembles of the main run."""
    run = _main(bench, settings)
    pictures = [
        block
        for stem in ("copies", "training", "frontier", "frontier-distance", "ensembles")
        for block in _copied(bench, run, stem, stem)
    ]
    tables = [
        block
        for section in result_sections(run.results, run.folder)
        for block in section.blocks
        if isinstance(block, Table)
    ]
    return Reproduced(
        "frontier",
        "The audit: copies, and accuracy against novelty",
        f"{settings.describe_main()}, {settings.main_checkpoints} checkpoints. {verdict(run.results)}",
        [*tables, *pictures],
        measured=run.summary("copies", "audit", "frontier", "distance_frontier", "ensembles", "methods"),
    )


def _main(bench: Workbench, settings: Settings) -> Run:
    return checkpoint_runs(bench, settings, (settings.main_checkpoints,))[settings.main_checkpoints]


def _one_of_each_kind(stacked_S: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first two tensors per number of dimensions: norm weights and biases, linear layers, convolutions."""
    chosen: dict[str, Tensor] = {}
    for dimensions in sorted({tensor.ndim for tensor in stacked_S.values()}, reverse=True):
        names = [name for name, tensor in stacked_S.items() if tensor.ndim == dimensions]
        chosen |= {name: stacked_S[name] for name in names[:2]}
    return chosen


def _columns(params_BP: Tensor) -> Callable[[int, int], Tensor]:
    return lambda start, stop: params_BP[:, start:stop]


def _png(bench: Workbench, name: str) -> Path:
    return bench.directory / "figures" / f"{name}.png"


def _copied(bench: Workbench, run: Run, stem: str, name: str) -> list[Table | Figure]:
    """Copies the picture `stem`, which the run has drawn, to `name`, the paper's name for it; empty if it has none."""
    drawn = result_figure(run.folder, stem)
    if drawn is None:
        return []
    png = _png(bench, name)
    png.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        shutil.copyfile(drawn.png.with_suffix(suffix), png.with_suffix(suffix))
    return [replace(drawn, png=png)]
