"""Tables 1, 2a, 2b, 2c and 3 of p-diff (arXiv 2402.13144), measured again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from pdiff_hub.checkpoints.rows import evenly_spaced
from pdiff_hub.evaluation.report import Table
from pdiff_hub.records import Measurements
from pdiff_hub.reproduce import published as paper
from pdiff_hub.reproduce.results import Ordering, Reproduced, percent, published
from pdiff_hub.reproduce.settings import Settings
from pdiff_hub.reproduce.workbench import Run, Workbench, noisy_copies, with_checkpoints

_POINT = 0.01  # one percentage point of accuracy


def table1(bench: Workbench, settings: Settings) -> Reproduced:
    """The last two norm layers of six architectures: accuracy of originals, weight average and generated networks."""
    return _cells(
        bench, settings, "table1", "Table 1: the last two normalisation layers", settings.table1_cells(), whole=False
    )


def table3(bench: Workbench, settings: Settings) -> Reproduced:
    """Whole networks, ConvNet-3 and MLP-3."""
    return _cells(bench, settings, "table3", "Table 3: whole networks", settings.table3_cells(), whole=True)


def _cells(
    bench: Workbench, settings: Settings, name: str, title: str, cells: Sequence[tuple[str, str, str]], *, whole: bool
) -> Reproduced:
    """Table 1 or 3. cells: (data set, network, the data set of the published row to compare with)."""
    rows, measured, runs = [], {}, []
    for dataset, network, beside in cells:
        label = f"{dataset}-{network}"
        run = bench.run(label, settings.whole(dataset, network) if whole else settings.norms(dataset, network))
        logged = paper.logged(beside, network, whole=whole)
        runs.append((label, run.measured))
        measured[label] = run.summary("accuracy", "similarity") | {"num_params": run.num_params}
        accuracy = run.measured.accuracy
        rows.append(
            (
                label,
                str(run.num_params),
                *(percent(accuracy[method].best) for method in ("original", "ensemble", "generated")),
                *(percent(accuracy[method].mean) for method in ("original", "generated")),
                *(
                    published(logged[key] if logged else None)
                    for key in ("original_best", "best", "original_mean", "mean")
                ),
            )
        )
    columns = (
        "cell",
        "numbers",
        "original, best",
        "average, best",
        "p-diff, best",
        "original, mean",
        "p-diff, mean",
        "published original, best",
        "published p-diff, best",
        "published original, mean",
        "published p-diff, mean",
    )
    note = (
        "Accuracy on test in percent; best chosen on validation. Published: the authors' logs, of "
        f"{settings.beside}; a dash where they logged none."
    )
    return Reproduced(
        name,
        title,
        settings.describe_cells(whole),
        [Table(title, columns, rows, note)],
        [*_cell_orderings(runs)],
        measured,
    )


def _cell_orderings(runs: Sequence[tuple[str, Measurements]]) -> list[Ordering]:
    def count(claim: str, difference: Callable[[Measurements], float | None], unit: str) -> Ordering:
        values = {label: difference(measured) for label, measured in runs}
        defined = {label: value for label, value in values.items() if value is not None}
        held = [label for label, value in defined.items() if value >= 0]
        numbers = ", ".join(f"{label} {value:+.2f}{unit}" for label, value in defined.items())
        return Ordering(
            claim, bool(defined) and len(held) == len(defined), f"in {len(held)} of {len(defined)}: {numbers}"
        )

    def similarity(measured: Measurements) -> float | None:
        assert measured.similarity is not None
        generated, original = measured.similarity.generated_generated, measured.similarity.original_original
        return None if generated is None or original is None else generated - original

    def accuracy(key: Literal["best", "mean"]) -> Callable[[Measurements], float]:
        def difference(measured: Measurements) -> float:
            generated, original = (getattr(measured.accuracy[name], key) for name in ("generated", "original"))
            return float(100 * (generated - original))

        return difference

    best = "the best generated network is at least as good as the best original (authors' logs: 28 of 36)"
    mean = "the generated mean is at least the original mean (authors' logs: 36 of 36)"
    alike = "generated networks are more alike than originals, by IoU of errors (authors' logs: 36 of 36)"
    return [
        count(best, accuracy("best"), " points"),
        count(mean, accuracy("mean"), " points"),
        count(alike, similarity, ""),
    ]


def checkpoint_runs(bench: Workbench, settings: Settings, numbers: Sequence[int] = ()) -> dict[int, Run]:
    """One run per number of checkpoints K (default: those of table 2a). All come from one path, so only K differs."""
    recipe = settings.main()
    collected = bench.checkpoints("main", with_checkpoints(recipe, max(settings.checkpoint_numbers)))
    runs = {}
    for number in numbers or settings.checkpoint_numbers:
        dataset = (
            noisy_copies(collected, len(collected) // 2, settings.seed)
            if number == 1
            else collected.select_rows(evenly_spaced(len(collected), number))
        )
        runs[number] = bench.run(
            f"main-{number}", recipe if number == settings.main_checkpoints else settings.plain(recipe), dataset
        )
    return runs


def table2a(bench: Workbench, settings: Settings) -> Reproduced:
    """How the results depend on the number of checkpoints."""
    runs = checkpoint_runs(bench, settings)
    similarities = {number: run.networks()["generated"]["max_similarity"] for number, run in runs.items()}
    means = {number: run.measured.accuracy["generated"].mean for number, run in runs.items()}
    spans = {number: _range(similarity_B) for number, similarity_B in similarities.items()}
    rows = [
        (
            str(number),
            *_triple(run),
            f"{float(similarities[number].nanmean()):.3f}",
            f"{spans[number]:.3f}",
            *_published(paper.TABLE_2A.get(number)),
        )
        for number, run in runs.items()
    ]
    numbers = sorted(runs)
    large = max(number for number in numbers if number <= settings.main_checkpoints)
    middle = [number for number in numbers if 1 < number < large]
    best = [run.measured.accuracy["generated"].best for run in runs.values()]
    one = float(similarities[1].nanmean())
    others = {number: float(similarities[number].nanmean()) for number in numbers if number != 1}
    return Reproduced(
        "table2a",
        "Table 2a: number of checkpoints K",
        f"K checkpoints of one path ({settings.describe_main()}), evenly spaced, of which a part is held out from the "
        "generator's training; K = 1 is one "
        "checkpoint under the paper's input noise (sigma 0.001), since one point has no distribution to learn.",
        [
            Table(
                "Table 2a: number of checkpoints K",
                (
                    "K",
                    "best",
                    "mean",
                    "median",
                    "max similarity, mean",
                    "max similarity, range",
                    "published best",
                    "published mean",
                    "published median",
                ),
                rows,
                "Accuracy of generated networks on test in percent, best chosen on validation; similarity is the "
                "highest IoU of errors with any that it was trained on; range from the lowest to the highest of the "
                "generated networks. Published: CIFAR-100, ResNet-18, read off a figure.",
            )
        ],
        [
            Ordering(
                f"K = {large} gives a mean at least that of K = 1",
                means[large] >= means[1],
                f"{percent(means[large])} against {percent(means[1])} %",
            ),
            Ordering(
                "K = 1 is near-copying: max similarity at least 0.95, and the highest of all K",
                one >= 0.95 and all(one >= other for other in others.values()),
                f"{one:.3f}; others {', '.join(f'K={k} {v:.3f}' for k, v in others.items())}",
            ),
            Ordering(
                "the range of similarity widens with K",
                all(spans[a] <= spans[b] for a, b in pairwise(numbers)),
                ", ".join(f"K={k} {v:.3f}" for k, v in spans.items()),
            ),
            Ordering(
                "the best network hardly depends on K (published: within 0.5 points)",
                max(best) - min(best) <= 0.5 * _POINT,
                f"{percent(min(best))} to {percent(max(best))} %",
            ),
            Ordering(
                "the mean rises with K up to there",
                all(means[1] <= means[k] <= means[large] for k in middle),
                ", ".join(f"K={k} {percent(v)}" for k, v in means.items()),
            ),
        ],
        {
            str(number): {
                "accuracy": asdict(run.measured.accuracy["generated"]),
                "max_similarity_range": spans[number],
                "max_similarity_mean": float(similarities[number].nanmean()),
            }
            for number, run in runs.items()
        },
    )


def table2b(bench: Workbench, settings: Settings) -> Reproduced:
    """How the results depend on the depth of the generated norm layers, at the same number of parameters."""
    runs = {name: bench.run(f"depth-{name}", recipe) for name, recipe in settings.depths().items()}
    means = [run.measured.accuracy["generated"].mean for run in runs.values()]
    return Reproduced(
        "table2b",
        "Table 2b: depth of the generated layers",
        settings.describe_depths(),
        [
            Table(
                "Table 2b: depth of the generated layers",
                (
                    "conv layers",
                    "numbers",
                    "original mean",
                    "best",
                    "mean",
                    "median",
                    "published best",
                    "published mean",
                    "published median",
                ),
                [
                    (
                        name,
                        str(run.num_params),
                        percent(run.measured.accuracy["original"].mean),
                        *_triple(run),
                        *_published(paper.TABLE_2B[name]),
                    )
                    for name, run in runs.items()
                ],
                "Accuracy on test in percent. Published: CIFAR-100, ResNet-18, read off a figure.",
            )
        ],
        [
            Ordering(
                "deeper layers give a mean at least as high",
                means == sorted(means),
                ", ".join(f"{name} {percent(mean)}" for name, mean in zip(runs, means, strict=True)),
            )
        ],
        {name: run.summary("accuracy")["accuracy"] for name, run in runs.items()},
    )


def table2c(bench: Workbench, settings: Settings) -> Reproduced:
    """Noise augmentation of the paper's own autoencoder: none, on parameters, on latents, or on both."""
    runs = {name: bench.run(f"noise-{name}", recipe) for name, recipe in settings.noises().items()}
    mean = {name: run.measured.accuracy["generated"].mean for name, run in runs.items()}
    best = {name: run.measured.accuracy["generated"].best for name, run in runs.items()}

    def numbers(*names: str) -> str:
        return ", ".join(f"{name} {percent(mean[name])}" for name in names)

    return Reproduced(
        "table2c",
        "Table 2c: noise augmentation",
        settings.describe_noises(),
        [
            Table(
                "Table 2c: noise augmentation",
                (
                    "noise on",
                    "best",
                    "mean",
                    "median",
                    "deviation R2",
                    "spread",
                    "published best",
                    "published mean",
                    "published median",
                ),
                [
                    (
                        name,
                        *_triple(run),
                        _number(run.audit.deviation_r2),
                        _number(run.audit.spread_ratio),
                        *_published(paper.TABLE_2C[name]),
                    )
                    for name, run in runs.items()
                ],
                "Accuracy on test in percent. Published: CIFAR-100, ResNet-18, read off a figure. Deviation R2 at or "
                "below 0 says that the decoder answers with the mean, whatever the accuracy.",
            )
        ],
        [
            Ordering(
                "latent noise helps the mean more than parameter noise",
                mean["latents"] > mean["parameters"],
                numbers("latents", "parameters"),
            ),
            Ordering(
                "parameter noise alone does not hurt the mean",
                mean["parameters"] >= mean["none"],
                numbers("parameters", "none"),
            ),
            Ordering(
                "both together are at least as good as either",
                mean["both"] >= max(mean["latents"], mean["parameters"]),
                numbers(*mean),
            ),
            Ordering(
                "the best network hardly depends on it (published: within 0.2 points)",
                max(best.values()) - min(best.values()) <= 0.2 * _POINT,
                f"{percent(min(best.values()))} to {percent(max(best.values()))} %",
            ),
        ],
        {name: run.summary("accuracy", "audit") for name, run in runs.items()},
    )


def _triple(run: Run) -> tuple[str, str, str]:
    generated = run.measured.accuracy["generated"]
    return percent(generated.best), percent(generated.mean), percent(generated.median)


def _published(values: tuple[float, float, float] | None) -> tuple[str, str, str]:
    best, mean, median = values or (None, None, None)
    return published(best), published(mean), published(median)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _range(similarity_B: Tensor) -> float:
    defined = similarity_B[~torch.isnan(similarity_B)]
    return float(defined.max() - defined.min()) if len(defined) else 0.0
