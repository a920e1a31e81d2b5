"""Ask for networks of a task nobody trained, then fit one to 20 labels. Run: python examples/quickstart.py [CLASSES]

CLASSES are the digits to answer "yes" for, such as 0,3,7.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from pdiff_hub import PDiffPipeline, load_task


def main(classes: str = "0,3,7") -> None:
    pipe = PDiffPipeline.from_pretrained("digits-subsets")
    task = load_task(pipe.autoencoder.config.task)
    yes = pipe.conditions.encode(classes)  # 1 for the digits that are asked for, else 0
    images, labels = task.inputs(task.test), yes[task.test.labels_N]

    def right(state: dict[str, Tensor]) -> float:
        with torch.no_grad():
            return 100 * float((pipe.build_network(state)(images).argmax(dim=1) == labels).float().mean())

    asked = pipe(num_models=5, condition={"classes": classes}, generator=torch.Generator().manual_seed(0))
    print(f"asked for {classes}, five networks: {[round(right(state), 1) for state in asked.state_dicts]} % on test")
    few = yes[task.train.labels_N[:20]].long()
    fitted = pipe.fit(task.inputs(task.train)[:20], few, num_models=1, generator=torch.Generator().manual_seed(0))
    print(f"fitted to 20 labels, without being told what they mean: {right(fitted.state_dicts[0]):.1f} % on test")
    always = 100 * max(float(labels.float().mean()), 1 - float(labels.float().mean()))
    print(f"a network that always answers the same: {always:.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
