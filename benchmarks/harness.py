"""What the benchmarks share: timing both ways by turns in one process, the machine's matrix-product rate, results.

The `measure` of a benchmark yields `Result`s, and its script ends with `main(name, measure)`. `make bench` reads the
results from `--json`. Both ways take turns, so that whatever else the machine does slows both of them. The ratio is
taken within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "pipelines" / "digits-mlp3"  # the pipeline that the repository holds
_PACKAGES = ("torch", "diffusers", "transformers")
_NAMED_OPERATIONS = 3  # operations of a profile that a note names
_PRODUCTS = ("conv", "mm", "linear")  # parts of the names of the operations that `count_flops` counts


@dataclass(frozen=True)
class Result:
    """One measurement.

    Attributes:
        part: the part of the package: collecting, saving, training, sampling, evaluation, similarity, ...
        case: what was done, with sizes, in one line.
        plain: the plain way in words. Where there is none, this, its seconds and the ratios are None.
        seconds_plain, seconds_ours: medians over the rounds, for the same work. Ours are None where the case was left
            out; the note says why.
        ratio, ratio_least, ratio_most: seconds of the plain way over ours: median, least and most over the rounds.
        rounds: the number of rounds, without the one that warms up.
        gflops: the float32 GFLOP/s of our way, where its operations can be counted.
        fraction: `gflops` over the rate of a matrix product, measured in the same process.
        note: anything else that a reader should know.
        sides: of a part that compares systems, rows in a table of their own (`peers_table.Side`).
    """

    part: str
    case: str
    plain: str | None
    seconds_plain: float | None
    seconds_ours: float | None
    ratio: float | None
    ratio_least: float | None
    ratio_most: float | None
    rounds: int
    gflops: float | None = None
    fraction: float | None = None
    note: str = ""
    sides: list[dict[str, Any]] = field(default_factory=list)

    def line(self) -> str:
        """The result in one line for a terminal."""
        text = f"{self.part}: {self.case}"
        if self.seconds_ours is not None:
            text += f": {digits(self.seconds_ours)} s"
        if self.plain is not None:
            text += (
                f"; {self.plain}: {digits(self.seconds_plain)} s; {digits(self.ratio)} times as fast "
                f"({digits(self.ratio_least)} to {digits(self.ratio_most)})"
            )
        if self.fraction is not None:
            text += f"; {self.gflops:.3g} GFLOP/s, {100 * self.fraction:.0f} % of a matrix product's"
        return text + (f". {self.note}" if self.note else "")


def digits(value: float | None) -> str:
    """The value with three digits, and without an exponent if it is large. None gives an empty text."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def result(
    part: str,
    case: str,
    seconds_ours: Sequence[float],
    *,
    plain: str | None = None,
    seconds_plain: Sequence[float] | None = None,
    flops: float | None = None,
    note: str = "",
) -> Result:
    """A `Result` from the seconds of each round.

    plain, seconds_plain: both or neither. flops: floating-point operations of our way. Their rate is compared with the
    rate of a matrix product, which is measured now.
    """
    ours, gflops, fraction = statistics.median(seconds_ours), None, None
    if flops is not None:
        gflops = flops / ours / 1e9
        fraction = gflops / matmul_rate()
    if seconds_plain is None:
        return Result(part, case, None, None, ours, None, None, None, len(seconds_ours), gflops, fraction, note)
    ratios = [one / other for one, other in zip(seconds_plain, seconds_ours, strict=True)]
    return Result(
        part,
        case,
        plain,
        statistics.median(seconds_plain),
        ours,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        len(ratios),
        gflops,
        fraction,
        note,
    )


def clock(work: Callable[[], object]) -> float:
    """Seconds that `work` takes. If it returns a float (it did a part and scaled up), that counts instead."""
    began = time.perf_counter()
    own = work()
    return own if isinstance(own, float) else time.perf_counter() - began


def compare(
    plain: Callable[[], object], ours: Callable[[], object], rounds: int = 3
) -> tuple[list[float], list[float]]:
    """Seconds of the plain way and of ours in each round, by turns. One call of each before that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + rounds):
        for kept, work in zip(seconds, (plain, ours), strict=True):
            kept.append(clock(work))
    return seconds[0][1:], seconds[1][1:]


def timed(work: Callable[[], object], rounds: int = 3) -> list[float]:
    """Seconds per round of work that has no plain way. One call before the rounds does not count."""
    return [clock(work) for _ in range(1 + rounds)][1:]


def matmul_rate(sizes: Sequence[int] = (1024, 1536, 2048)) -> float:
    """GFLOP/s of a float32 product of square matrices in this process: the best size counts, by its median of 5."""
    return max(_product_rate(size) for size in sizes)


def _product_rate(size: int) -> float:
    left, right, product = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
    return 2 * size**3 / statistics.median(timed(lambda: torch.mm(left, right, out=product), 5)) / 1e9


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in one call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def where_time_goes(work: Callable[[], object]) -> str:
    """A sentence on what bounds `work`, from a profile of one call: the share of counted arithmetic, and the rest."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    operations = [each for each in profiled.key_averages() if each.self_cpu_time_total > 0]
    operations.sort(key=lambda each: -each.self_cpu_time_total)
    total, count = sum(each.self_cpu_time_total for each in operations), sum(each.count for each in operations)
    products = sum(
        each.self_cpu_time_total for each in operations if any(word in each.key.lower() for word in _PRODUCTS)
    )
    most = ", ".join(
        f"{each.key} {100 * each.self_cpu_time_total / total:.0f} %" for each in operations[:_NAMED_OPERATIONS]
    )
    return (
        f"A profile: {100 * products / total:.0f} % of the time in convolutions and matrix products; {count} "
        f"operations, {total / count:.0f} us each on average; most in {most}."
    )


def machine() -> dict[str, Any]:
    """The machine of the measurement: cpu, cores, threads (torch's), memory_gib, python, versions and date (ISO)."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "date": date.today().isoformat(),
    }


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    names = [line for line in file.read_text().splitlines() if line.startswith("model name")] if file.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # transformers is optional
        return None


def main(
    name: str,
    measure: Callable[[argparse.Namespace], Iterable[Result]],
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """The command line of a benchmark, with its docstring as help, its options, `--rounds` and `--json`.

    It prints one line per result.
    """
    parser = argparse.ArgumentParser(
        prog=f"{name}.py",
        description=sys.modules[measure.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="measured by turns, beside one to warm up")
    parser.add_argument("--json", type=Path, help="also write the results into this file")
    if add_options is not None:
        add_options(parser)
    options = parser.parse_args()
    results = []
    for each in measure(options):
        results.append(each)
        print(each.line(), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"name": name, "results": [asdict(each) for each in results]}, indent=1))
