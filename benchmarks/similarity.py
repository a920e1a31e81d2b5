"""IoU of the errors of every pair of networks: one matrix product of zeros and ones against counting pair by pair.

There are 200 x 200 pairs and 10,000 images. The plain way is timed on some rows and scaled up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from harness import Result, compare, main, result

from pdiff_hub.evaluation.similarity import iou_matrix


def measure(options: argparse.Namespace) -> Iterator[Result]:
    generator = torch.Generator().manual_seed(0)
    wrong_AN = torch.rand(options.networks, options.images, generator=generator) < 0.1
    expected_AA = iou_matrix(wrong_AN, wrong_AN)

    def plain() -> float:
        began = time.perf_counter()
        rows = range(0, options.networks, max(1, options.networks // 10))
        for a in rows:
            plain_A = torch.stack(
                [(wrong_AN[a] & other_N).sum() / (wrong_AN[a] | other_N).sum() for other_N in wrong_AN]
            )
            assert torch.allclose(plain_A.double(), expected_AA[a], atol=1e-6)
        return (time.perf_counter() - began) * options.networks / len(rows)

    seconds_plain, seconds_ours = compare(plain, lambda: iou_matrix(wrong_AN, wrong_AN), options.rounds)
    yield result(
        "similarity",
        f"IoU of errors, {options.networks} x {options.networks} networks, {options.images:,} images",
        seconds_ours,
        plain="pair by pair, scaled up from a tenth of the rows",
        seconds_plain=seconds_plain,
        flops=2 * options.networks**2 * options.images,
        note="Both ways agree to 1e-6.",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--images", type=int, default=10_000)


if __name__ == "__main__":
    main("similarity", measure, add_options)
