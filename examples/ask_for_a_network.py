"""Ask for a network by what it should do: is a digit a 0, 3 or 7? Run: python examples/ask_for_a_network.py [PIPELINE]

PIPELINE was trained on networks of many tasks: `pdiff info PIPELINE` says what it can be asked for.
"""

from __future__ import annotations

import sys

import torch

from pdiff_hub import PDiffPipeline, load_task


def main(pipeline: str = "digits-subsets", classes: str = "0,3,7") -> None:
    pipe = PDiffPipeline.from_pretrained(pipeline)
    out = pipe(5, generator=torch.Generator().manual_seed(0), condition={"classes": classes})
    networks = [pipe.build_network(state) for state in out.state_dicts]

    task = load_task(pipe.autoencoder.config.task)
    asked = pipe.conditions.encode(classes)[task.test.labels_N]  # 1 for the classes asked for, else 0
    with torch.no_grad():
        answers = torch.stack([network(task.inputs(task.test)).softmax(dim=1) for network in networks])
    each = (answers.argmax(dim=2) == asked).float().mean(dim=1)
    together = (answers.mean(dim=0).argmax(dim=1) == asked).float().mean()
    always = max(float(asked.mean()), 1 - float(asked.mean()))
    print(f"one by one {[round(100 * float(a), 1) for a in each]}, together {100 * float(together):.1f} % on test")
    print(f"a network that always answers the same has {100 * always:.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
