"""A pipeline for a network of your own, named by a dotted path. Run: python examples/bring_your_own_network.py"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from pdiff_hub import PDiffArguments, PDiffTrainer
from pdiff_hub.evaluation.table import print_results


def make_network(in_channels: int, image_size: int, num_classes: int, width: int = 32) -> nn.Module:
    """The factory that the recipe names. Arguments named like these are filled in from the shape of the data."""
    pixels = in_channels * image_size**2
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, num_classes)
    )


def main(output_dir: str = "runs/my-network") -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    network = {"name": "bring_your_own_network:make_network", "width": 48}  # a path, so that commands can build it too
    trainer = PDiffTrainer(network, "digits", PDiffArguments(output_dir, num_checkpoints=100, num_models=50))
    print_results(trainer.run())


if __name__ == "__main__":
    main(*sys.argv[1:])
