"""Draw eight networks from a pipeline and let them vote. Run: python examples/quickstart.py [PIPELINE]"""

from __future__ import annotations

import sys

import torch

from pdiff_hub import PDiffPipeline, load_task


def main(pipeline: str = "pipelines/digits-mlp3") -> None:
    pipe = PDiffPipeline.from_pretrained(pipeline)
    out = pipe(num_models=8, generator=torch.Generator().manual_seed(0))
    task = load_task(pipe.autoencoder.config.task)
    images, labels = task.inputs(task.test), task.test.labels_N
    with torch.no_grad():
        votes = torch.stack([pipe.build_network(state)(images).softmax(dim=1) for state in out.state_dicts])
    each = (votes.argmax(dim=2) == labels).float().mean(dim=1)
    together = (votes.mean(dim=0).argmax(dim=1) == labels).float().mean()
    print(f"one by one {[round(100 * float(a), 2) for a in each]}, together {100 * float(together):.2f} % on test")


if __name__ == "__main__":
    main(*sys.argv[1:])
