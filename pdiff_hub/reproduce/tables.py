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
from pdiff_hub.reproduce import reasons
from pdiff_hub.reproduce.results import Ordering, Reproduced, percent, published
from pdiff_hub.reproduce.settings import Settings
from pdiff_hub.reproduce.workbench import Run, Workbench, noisy_copies, with_checkpoints

_POINT = 0.01  # one percentage point of accuracy
_PERCENT = "Accuracy on test in percent; best is chosen on validation, and may lie below the mean."
_READ_OFF = "The paper's: CIFAR-100, ResNet-18, read off a figure."

Failed = Sequence[tuple[str, Measurements]]
"""Cells in which an ordering did not hold."""


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
    note = f"{_PERCENT} Published: the authors' logs, of {settings.beside}; a dash where they logged none."
    return Reproduced(
        name,
        title,
        settings.describe_cells(whole),
        [Table(title, columns, rows, note)],
        [*_cell_orderings(runs)],
        measured,
    )


def _cell_orderings(runs: Sequence[tuple[str, Measurements]]) -> list[Ordering]:
    def count(
        claim: str, difference: Callable[[Measurements], float | None], unit: str, otherwise: Callable[[Failed], str]
    ) -> Ordering:
        values = {label: difference(measured) for label, measured in runs}
        defined = {label: value for label, value in values.items() if value is not None}
        held = [label for label, value in defined.items() if value >= 0]
        numbers = ", ".join(f"{label} {value:+.2f}{unit}" for label, value in defined.items())
        failed = [(label, measured) for label, measured in runs if label in defined and label not in held]
        return Ordering(
            claim,
            bool(defined) and not failed,
            f"in {len(held)} of {len(defined)}: {numbers}",
            otherwise(failed) if failed else "Nothing was measured for it: it is undefined for these networks.",
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

    def luck(failed: Failed) -> str:
        return reasons.luck_of_the_best({label: measured.accuracy["generated"] for label, measured in failed})

    return [
        count(best, accuracy("best"), " points", luck),
        count(mean, accuracy("mean"), " points", reasons.not_averaged),
        count(alike, similarity, "", reasons.not_averaged),
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
    generated = {f"K={number}": run.measured.accuracy["generated"] for number, run in runs.items()}
    best = [row.best for row in generated.values()]
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
                    "paper's best",
                    "paper's mean",
                    "paper's median",
                ),
                rows,
                f"{_PERCENT} Similarity is the highest IoU of errors with any that the generator was trained on; "
                f"range from the lowest to the highest of the generated networks. {_READ_OFF}",
            )
        ],
        [
            Ordering(
                f"K = {large} gives a mean at least that of K = 1",
                means[large] >= means[1],
                f"{percent(means[large])} against {percent(means[1])} %",
                reasons.one_checkpoint(runs[1].measured, runs[large].measured, large),
            ),
            Ordering(
                "K = 1 is near-copying: max similarity at least 0.95, and the highest of all K",
                one >= 0.95 and all(one >= other for other in others.values()),
                f"{one:.3f}; others {', '.join(f'K={k} {v:.3f}' for k, v in others.items())}",
                reasons.other_copies({1: one, **others}),
            ),
            Ordering(
                "the range of similarity widens with K",
                all(spans[a] <= spans[b] for a, b in pairwise(numbers)),
                ", ".join(f"K={k} {v:.3f}" for k, v in spans.items()),
                reasons.two_decide_a_range(len(similarities[large])),
            ),
            Ordering(
                "the best network hardly depends on K (published: within 0.5 points)",
                max(best) - min(best) <= 0.5 * _POINT,
                f"{percent(min(best))} to {percent(max(best))} %",
                reasons.luck_of_the_best(generated),
            ),
            Ordering(
                "the mean rises with K up to there",
                all(means[1] <= means[k] <= means[large] for k in middle),
                ", ".join(f"K={k} {percent(v)}" for k, v in means.items()),
                reasons.means_alike(generated),
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
                    "paper's best",
                    "paper's mean",
                    "paper's median",
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
                f"{_PERCENT} {_READ_OFF}",
            )
        ],
        [
            Ordering(
                "deeper layers give a mean at least as high",
                means == sorted(means),
                ", ".join(f"{name} {percent(mean)}" for name, mean in zip(runs, means, strict=True)),
                reasons.like_their_originals(
                    {name: run.measured.accuracy["original"].mean for name, run in runs.items()}
                ),
            )
        ],
        {name: run.summary("accuracy")["accuracy"] for name, run in runs.items()},
    )


def table2c(bench: Workbench, settings: Settings) -> Reproduced:
    """Noise augmentation of the paper's own autoencoder: none, on parameters, on latents, or on both."""
    runs = {name: bench.run(f"noise-{name}", recipe) for name, recipe in settings.noises().items()}
    mean = {name: run.measured.accuracy["generated"].mean for name, run in runs.items()}
    best = {name: run.measured.accuracy["generated"].best for name, run in runs.items()}
    mean_decoded = reasons.decoder_of_the_mean({name: run.audit.deviation_r2 for name, run in runs.items()})

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
                    "paper's best",
                    "paper's mean",
                    "paper's median",
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
                f"{_PERCENT} {_READ_OFF} Deviation R2 at or below 0 says that the decoder answers with the mean, "
                "whatever the accuracy.",
            )
        ],
        [
            Ordering(
                "latent noise helps the mean more than parameter noise",
                mean["latents"] > mean["parameters"],
                numbers("latents", "parameters"),
                mean_decoded,
            ),
            Ordering(
                "parameter noise alone does not hurt the mean",
                mean["parameters"] >= mean["none"],
                numbers("parameters", "none"),
                mean_decoded,
            ),
            Ordering(
                "both together are at least as good as either",
                mean["both"] >= max(mean["latents"], mean["parameters"]),
                numbers(*mean),
                mean_decoded,
            ),
            Ordering(
                "the best network hardly depends on it (published: within 0.2 points)",
                max(best.values()) - min(best.values()) <= 0.2 * _POINT,
                f"{percent(min(best.values()))} to {percent(max(best.values()))} %",
                reasons.luck_of_the_best({name: run.measured.accuracy["generated"] for name, run in runs.items()}),
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
