"""How time and memory grow: with the network, with the number of checkpoints, with the number of generated networks.

Every point is measured in fresh processes. This writes a page, benchmarks/GROWTH.md, with pictures of time and memory
and the slopes of fitted lines. Finished points are kept in --work-dir, and a run that was stopped goes on from them.
Remove that folder to measure all points again. A network of 1e8 parameters takes minutes, and about 12 GB of disk in
--work-dir.

This example takes three minutes:

    python benchmarks/growth.py --sizes 1e3 1e4 --checkpoints 10 30 --models 1 4 --output-dir trial
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from growth_axes import AXES, Axis
from growth_page import draw, render, summary
from growth_peer import measure_peer
from growth_points import KeptPoints, Point
from growth_process import run
from harness import ROOT, machine
from peers_source import add_source_options
from tqdm import tqdm
from whole_size import KEPT, kept_runs

from pdiff_hub import __version__
from pdiff_hub.errors import PdiffError
from pdiff_hub.safe_files import replacing


def measure(axis: Axis, asked: float, folder: Path, bar: Any) -> Point:
    """Does and measures all stages of one size. `folder` is made anew, and removed at the end."""
    shutil.rmtree(folder, ignore_errors=True)  # a run that was killed may have left half of it
    folder.mkdir(parents=True)
    seconds: dict[str, float] = {}
    peak: dict[str, int] = {}
    try:
        for stage in axis.stages(folder, asked):
            bar.set_description(f"{axis.name} {asked:g}: {stage.name}")
            cost = run(stage.work, *stage.arguments)
            seconds |= cost.seconds
            peak[stage.name] = cost.peak
            bar.update()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Point(asked, axis.number(asked), seconds, peak, datetime.now(UTC).isoformat(timespec="seconds"))


def measure_all(sizes: dict[str, list[float]], work_dir: Path, known: dict[str, Any]) -> dict[str, list[Point]]:
    """The points by name of their axis, smallest size first. Points kept in `work_dir` are not measured again.

    known: the machine and the versions. Points that were kept under other ones are not used.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    kept = KeptPoints(work_dir / "points.json")
    settings = {axis.name: {"axis": axis.name, **axis.settings, "machine": known} for axis in AXES}
    missing = [
        (axis, asked) for axis in AXES for asked in sizes[axis.name] if kept.find(settings[axis.name], asked) is None
    ]
    total = sum(len(axis.stages(work_dir, asked)) for axis, asked in missing)
    with tqdm(total=total, unit="process", disable=None) as bar:
        for axis, asked in missing:
            kept.keep(settings[axis.name], measure(axis, asked, work_dir / "unfinished", bar))
    points: dict[str, list[Point]] = {}
    for axis in AXES:
        found = [kept.find(settings[axis.name], asked) for asked in sizes[axis.name]]
        points[axis.name] = [point for point in found if point is not None]
    return points


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes",
        type=float,
        nargs="+",
        default=[1e3, 1e4, 1e5, 1e6, 1e7, 1e8],
        metavar="P",
        help="parameters of the network, at least 1e3 (default: 1e3 1e4 1e5 1e6 1e7 1e8)",
    )
    parser.add_argument(
        "--checkpoints",
        type=float,
        nargs="+",
        default=[10, 30, 100, 300, 1000, 3000, 10_000],
        metavar="K",
        help="at least 3 (default: 10 30 100 300 1000 3000 10000)",
    )
    parser.add_argument(
        "--models",
        type=float,
        nargs="+",
        default=[1, 10, 100, 1000, 10_000],
        metavar="N",
        help="generated networks, at least 1 (default: 1 10 100 1000 10000)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=ROOT / "runs" / "growth",
        metavar="DIR",
        help="where points are kept and large files come and go (default: runs/growth)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=ROOT,
        metavar="DIR",
        help="gets benchmarks/GROWTH.md and docs/growth-*.png and .svg (default: this repository)",
    )
    add_source_options(parser)
    options = parser.parse_args(arguments)
    sizes: dict[str, list[float]] = {}
    for name, asked, least in (
        ("parameters", options.sizes, 1000),
        ("checkpoints", options.checkpoints, 3),
        ("models", options.models, 1),
    ):
        if min(asked) < least or (name != "parameters" and any(each % 1 for each in asked)):
            parser.error(f"number of {name}: expected whole numbers of at least {least}, found {asked}")
        sizes[name] = sorted(set(asked))
    known = {**machine(), "pdiff-hub": __version__}
    del known["date"]  # every point has its own date
    try:
        points = measure_all(sizes, options.work_dir, known)
        peer = measure_peer(options.peer_source, options.fetch_peers, sizes["parameters"], options.work_dir, known)
    except (RuntimeError, PdiffError) as error:
        kept = f"Finished points are kept in {options.work_dir}; the same command goes on."
        raise SystemExit(f"{str(error).rstrip('.')}. {kept}") from None
    for axis in AXES:
        draw(axis, points[axis.name], options.output_dir / "docs" / f"growth-{axis.name}")
    file = options.output_dir / "benchmarks" / "GROWTH.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(render(AXES, points, known, "../docs", kept_runs(KEPT), peer), encoding="utf-8")
    rows = summary(AXES, points)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nThe page: {file}", file=sys.stderr)


if __name__ == "__main__":
    main()
