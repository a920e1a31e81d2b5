"""The tables of docs/ensembles.md: ensembles by size and way to choose, means of three seeds, beside originals.

python benchmarks/ensembles.py pipelines/digits-mlp3
python benchmarks/ensembles.py pipelines/digits-subsets classes=0,3,7 classes=1,2 classes=4,5,6,8,9
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

import torch

from pdiff_hub import PDiffPipeline
from pdiff_hub.ensembles.figures import Figures

WAYS: tuple[Literal["accuracy", "diverse"] | None, ...] = (None, "accuracy", "diverse")


def main(folder: str, *conditions: str) -> None:
    """Prints a Markdown table of the pipeline in `folder`, for each condition that is given, or for none."""
    pipe = PDiffPipeline.from_pretrained(folder)
    asked: list[Mapping[str, str] | None] = [dict([each.split("=")]) for each in conditions] or [None]
    print("| networks | chosen by | accuracy % | NLL | ECE | NLL, not calibrated | ECE, not calibrated |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in (5, 20):
        for select in WAYS:
            rows: dict[str, list[tuple[Figures, Figures | None]]] = defaultdict(list)
            for condition in asked:
                for seed in range(3):
                    ensemble = pipe.ensemble(
                        size,
                        select,
                        candidates=100,
                        condition=condition,
                        generator=torch.Generator().manual_seed(seed),
                    )
                    report = ensemble.report
                    assert report is not None
                    rows[f"{size} generated"].append((report.test, report.uncalibrated))
                    for name, each in report.beside.items():
                        rows[name].append((each.figures, None))
            for name, found in rows.items():
                cells = [f"{100 * mean([test.accuracy for test, _ in found]):.2f}"]
                cells += [f"{mean([getattr(test, key) for test, _ in found]):.4f}" for key in KEYS]
                raw = [each for _, each in found if each is not None]
                cells += [f"{mean([getattr(each, key) for each in raw]):.4f}" if raw else "" for key in KEYS]
                print(f"| {name} | {select} | {' | '.join(cells)} |", flush=True)


KEYS = ("nll", "calibration_error")


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


if __name__ == "__main__":
    main(*sys.argv[1:])
