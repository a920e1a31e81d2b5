"""Measured points, the file that keeps them, and the slopes of the lines fitted to them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdiff_hub.safe_files import write_json

LEAST_MEMORY = 4 * 2**20
"""In bytes. Fresh processes that do the same work differ by about this much."""


@dataclass(frozen=True)
class Point:
    """What was measured at one size on one axis.

    Attributes:
        asked: the size on the command line. x: the exact number, for tables and slopes.
        seconds: by part of the work.
        peak: most bytes of resident memory, by process; this includes the interpreter and the libraries.
        measured: date and time, ISO 8601.
    """

    asked: float
    x: int
    seconds: dict[str, float]
    peak: dict[str, int]
    measured: str


class KeptPoints:
    """Finished points in a JSON file. Each is kept with its settings, and is found only under the same settings."""

    def __init__(self, file: Path):
        self._file = file
        self._kept: list[dict[str, Any]] = json.loads(file.read_text())["points"] if file.exists() else []

    def find(self, settings: Mapping[str, Any], asked: float) -> Point | None:
        """The point of that size that was measured under exactly these settings, or None."""
        for kept in self._kept:
            if kept["settings"] == settings and kept["asked"] == asked:
                return Point(**{name: value for name, value in kept.items() if name != "settings"})
        return None

    def keep(self, settings: Mapping[str, Any], point: Point) -> None:
        """Add a point and write the file anew. A kill leaves either the old file or the new one."""
        self._kept.append({"settings": dict(settings), **asdict(point)})
        write_json(self._file, {"points": self._kept})


def slope(xs: Sequence[float], ys: Sequence[float], least: float = 0.0) -> float | None:
    """The exponent b of the best y = a x^b, by least squares on logarithms over the upper half of the range of log x.

    Points with y <= least are left out. None if fewer than two values of x are left.
    """
    fitted = line(xs, ys, least)
    return None if fitted is None else fitted[1]


def line(xs: Sequence[float], ys: Sequence[float], least: float = 0.0) -> tuple[float, float] | None:
    """a and b of the curve y = a x^b that `slope` describes; None where it has no slope."""
    middle = upper_half(xs)
    logs = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True) if x >= middle and y > least]
    if len({x for x, _ in logs}) < 2:
        return None
    mean_x, mean_y = (math.fsum(each) / len(logs) for each in zip(*logs, strict=True))
    exponent = math.fsum((x - mean_x) * (y - mean_y) for x, y in logs) / math.fsum((x - mean_x) ** 2 for x, _ in logs)
    return math.exp(mean_y - exponent * mean_x), exponent


def upper_half(xs: Sequence[float]) -> float:
    """The x at which the upper half of the range of log x begins. A point exactly in the middle belongs to it."""
    return math.sqrt(min(xs) * max(xs)) * (1 - 1e-9)


def parts(points: Sequence[Point]) -> dict[str, list[float]]:
    """The seconds of every part of the work, in the order of the points."""
    return {name: [point.seconds[name] for point in points] for name in points[0].seconds}


def working_memory(points: Sequence[Point]) -> dict[str, list[int]]:
    """Bytes by process: its peak minus the peak of the first point, the memory of interpreter and libraries."""
    return {name: [point.peak[name] - peak for point in points] for name, peak in points[0].peak.items()}
