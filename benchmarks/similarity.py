"""IoU of errors of every pair: one matrix product of zeros and ones against counting pair by pair.

200 x 200 networks, 10,000 images. The plain way is timed on some rows and scaled up.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from pdiff_hub.evaluation.similarity import iou_matrix


def main() -> None:
    """Time both ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    wrong_AN = torch.rand(options.networks, options.images, generator=generator) < 0.1
    ratios, seconds = [], []
    for _ in range(options.rounds):
        began = time.perf_counter()
        found_AA = iou_matrix(wrong_AN, wrong_AN)
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        rows = range(0, options.networks, max(1, options.networks // 10))
        for a in rows:
            plain_A = torch.stack([(wrong_AN[a] & other_N).sum() / (wrong_AN[a] | other_N).sum()
                                   for other_N in wrong_AN])
            assert torch.allclose(plain_A.double(), found_AA[a], atol=1e-6)
        plain = (time.perf_counter() - began) * options.networks / len(rows)
        ratios.append(plain / seconds[-1])
        print(f"matrix product {seconds[-1]:.3f} s, pair by pair {plain:.2f} s (scaled up), ratio {ratios[-1]:.0f}")
    print(f"medians: {statistics.median(seconds):.3f} s, ratio {statistics.median(ratios):.0f} "
          f"({torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
