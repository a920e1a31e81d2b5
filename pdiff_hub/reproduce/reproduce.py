"""`pdiff reproduce`: makes the requested tables and figures, and one report with the claims of the paper that held."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from pdiff_hub.errors import require_known
from pdiff_hub.evaluation.environment import environment
from pdiff_hub.evaluation.report import Section, Table, write_report
from pdiff_hub.evaluation.results_page import settings_table
from pdiff_hub.evaluation.terminal import print_table, safe
from pdiff_hub.records.json_files import without_nan
from pdiff_hub.reproduce import figures, tables
from pdiff_hub.reproduce.results import Ordering, Reproduced, orderings_table
from pdiff_hub.reproduce.settings import SCALES, Settings
from pdiff_hub.reproduce.workbench import Workbench
from pdiff_hub.safe_files import keep_settings, write_json
from pdiff_hub.safe_files.lock import holding

PARTS: Mapping[str, Callable[[Workbench, Settings], Reproduced]] = {
    "table1": tables.table1,
    "table2a": tables.table2a,
    "table2b": tables.table2b,
    "table2c": tables.table2c,
    "table3": tables.table3,
    "figure3": figures.figure3,
    "figure4a": figures.figure4a,
    "figure4b": figures.figure4b,
    "figure4c": figures.figure4c,
    "figure5a": figures.figure5a,
    "figure5b": figures.figure5b,
    "frontier": figures.frontier,
}


@holding("directory")
def reproduce(
    what: str,
    directory: Path,
    *,
    scale: str = "small",
    task: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> list[Reproduced]:
    """Measure `what` ("all", or a key of `PARTS`) and write a report, its numbers and pictures into `directory`.

    The files are `report.html` and `reproduction.json` for "all", else `WHAT.html` and `WHAT.json`. What an earlier
    call has collected and trained in `directory` is used again.
    Raises ValueError for an unknown part or scale, for a directory begun with another scale, task or seed, and for one
    that another process writes into.
    """
    require_known("part of the paper", [what], ["all", *PARTS])
    require_known("scale", [scale], SCALES)
    names = list(PARTS) if what == "all" else [what]
    directory.mkdir(parents=True, exist_ok=True)
    keep_settings(directory / "settings.json", {"scale": scale, "task": task, "seed": seed})
    settings = Settings("paper" if scale == "paper" else "small", task, seed)
    bench = Workbench(directory, device=device, say=say)
    parts, seconds = [], {}
    for number, name in enumerate(names, 1):
        say(f"[{number}/{len(names)}] {name}")
        began = time.perf_counter()
        parts.append(PARTS[name](bench, settings))
        seconds[name] = time.perf_counter() - began
    stem = "report" if what == "all" else what
    _write(parts, seconds, settings, directory / f"{stem}.html")
    write_json(
        directory / ("reproduction.json" if what == "all" else f"{what}.json"),
        without_nan(
            {
                "settings": {"scale": scale, "task": task, "seed": seed},
                "environment": environment(),
                "seconds": seconds,
                "parts": {
                    part.name: {
                        "title": part.title,
                        "measured": part.measured,
                        "orderings": [
                            {
                                "claim": each.claim,
                                "held": each.held,
                                "numbers": each.numbers,
                                "why_not": each.why_not,
                            }
                            for each in part.orderings
                        ],
                    }
                    for part in parts
                },
            }
        ),
    )
    _print(parts)
    return parts


def _write(parts: list[Reproduced], seconds: Mapping[str, float], settings: Settings, path: Path) -> None:
    orderings = _orderings(parts)
    held = sum(each.held for each in orderings)
    lead = "Neural Network Diffusion (https://arxiv.org/abs/2402.13144), measured again with pdiff-hub."
    sections = []
    if orderings:
        lead += f"\n\n{held} of {len(orderings)} orderings of the paper held here."
        sections.append(
            Section(
                "What held",
                "Absolute accuracies differ between data sets; orderings should not.",
                [orderings_table(orderings)],
            )
        )
    lead += "".join(f"\n\n{part.text}" for part in parts if part.name == "frontier")
    sections += [part.section() for part in parts]
    about: dict[str, Any] = {"scale": settings.scale, "task": settings.task, "seed": settings.seed, **environment()}
    sections.append(
        Section(
            "Settings",
            "",
            [
                settings_table(about),
                Table(
                    "Seconds of this call",
                    ("part", "seconds"),
                    [(name, f"{value:.1f}") for name, value in seconds.items()],
                    "Work that parts share is counted where it was done first; what was there already took no time.",
                ),
            ],
        )
    )
    write_report(path, f"p-diff reproduced, {settings.scale} scale", lead, sections)


def _orderings(parts: list[Reproduced]) -> list[Ordering]:
    return [each for part in parts for each in part.orderings]


def _print(parts: list[Reproduced]) -> None:
    console = Console()
    for part in parts:
        for block in part.blocks:
            if isinstance(block, Table):
                print_table(console, block)
    console.print()
    for each in _orderings(parts):
        said = f"{'held' if each.held else 'NOT held'}: {each.claim} ({each.numbers}). {each.why_not}"
        console.print(safe(said.rstrip()))
