"""Your checkpoints and a few labelled images -> networks for these. Run: python examples/fit_to_few_labels.py [FOLDER]

The checkpoints are state dicts of one network for related tasks, from anywhere; here the script trains them to tell 4
digits from the others. The images ask for what none of them knows: is a digit odd? The pipeline will be in FOLDER. With
a pipeline at hand, a command does it: pdiff fit PIPELINE --task IMAGE_FOLDER --num-labels 30 --output-dir networks
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from pdiff_hub import CheckpointDataset, ParamLayout, PDiffPipeline, build_network, load_task
from pdiff_hub.networks import resolve_network
from pdiff_hub.tasks import Task
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig
from pdiff_hub.training.pipeline import train_pipeline

SPEC = resolve_network({"name": "mlp", "hidden": [32]}, in_channels=1, image_size=8, num_classes=2)


def checkpoints_of_yours(task: Task, num_tasks: int = 60) -> list[dict[str, torch.Tensor]]:
    """All begin with the same weights; which four digits a network tells from the others is drawn by its number."""
    inputs, labels, state_dicts = task.inputs(task.train), task.train.labels_N, []
    for number in range(num_tasks):
        generator = torch.Generator().manual_seed(number)
        wanted = torch.randperm(10, generator=generator)[:4]
        network = build_network(SPEC)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(150):
            batch = torch.randint(len(labels), (64,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), torch.isin(labels[batch], wanted).long()).backward()
            optimizer.step()
        state_dicts.append(network.state_dict())
    return state_dicts


def main(folder: str = "runs/fit", num_labels: int = 30) -> None:
    task = load_task("digits")
    state_dicts, layout = checkpoints_of_yours(task), ParamLayout.from_module(build_network(SPEC))
    dataset = CheckpointDataset(layout.flatten(state_dicts), layout, network=SPEC)
    train_pipeline(
        dataset, Path(folder), AutoencoderConfig(max_components=32), DiffusionConfig(steps=300, widths=(32,))
    )

    labelled = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[: int(num_labels)]
    images, odd = task.inputs(task.train, labelled), task.train.labels_N[labelled] % 2
    pipe = PDiffPipeline.from_pretrained(folder)
    out = pipe.fit(images, odd, num_models=5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = torch.stack([pipe.build_network(state)(task.inputs(task.test)) for state in out.state_dicts])
    right = answers.softmax(dim=2).mean(dim=0).argmax(dim=1) == task.test.labels_N % 2
    first = answers[0].argmax(dim=1) == task.test.labels_N % 2
    print(
        f"fitted to {num_labels} labels: the first network {100 * float(first.float().mean()):.1f} % on test, ", end=""
    )
    print(f"all five together {100 * float(right.float().mean()):.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
