"""Publish one generated network with its accuracy. Run: python examples/publish_network.py USER/NAME [PIPELINE]"""

from __future__ import annotations

import sys

import torch

from pdiff_hub import PDiffPipeline, load_task
from pdiff_hub.hub import push_network


def main(repo_id: str, pipeline: str = "digits-mlp3") -> None:
    pipe = PDiffPipeline.from_pretrained(pipeline)
    network = pipe.build_network(pipe(generator=torch.Generator().manual_seed(0)).state_dicts[0])
    task = load_task(pipe.autoencoder.config.task)
    with torch.no_grad():
        right = network(task.inputs(task.test)).argmax(dim=1) == task.test.labels_N
    print(push_network(pipe, repo_id, seed=0, accuracy=float(right.float().mean())))


if __name__ == "__main__":
    main(*sys.argv[1:])
