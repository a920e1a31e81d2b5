"""Networks from a few labelled examples of a task: draws the examples, fits, writes the networks, and judges them.

Shapes: B networks, N images, n labelled examples, P parameters, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from pdiff_hub.errors import PdiffError, require, shortened
from pdiff_hub.exporting import Usage
from pdiff_hub.networks import logits
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.pipeline.public import public
from pdiff_hub.pipeline.usage import usage_of, yes_no
from pdiff_hub.prediction.predictions import SplitImages, predict_logits, tensor_names
from pdiff_hub.recipes.recipe import TASK_TEXTS
from pdiff_hub.recipes.values import plain
from pdiff_hub.records.yaml_files import parse_yaml, read_yaml
from pdiff_hub.runs.generating import require_room, write_latents
from pdiff_hub.safe_files import read_json
from pdiff_hub.seeds import generator_of
from pdiff_hub.tasks import Split, Task, load_task
from pdiff_hub.tasks.normalization import recorded_statistics

_TUNE_STEPS, _TUNE_LEARNING_RATE = 100, 3e-3  # docs/measurements.md, "Asking"


@dataclass(frozen=True)
class Fitted:
    """What `fit_networks` wrote, and what the networks are worth: accuracies, 0 to 1, on the test split.

    Attributes:
        accuracies: of each network alone. together: of their mean answer.
        mean_network: of the mean of the pipeline's networks, fine-tuned on the same labels, for comparison.
    """

    files: list[Path]
    num_labels: int
    num_test: int
    accuracies: list[float]
    together: float
    mean_network: float

    def __str__(self) -> str:
        several, number = "", len(self.accuracies)
        if number > 1:
            mean = sum(self.accuracies) / number
            several = f", one of the {number} has {mean:.2%} on average and all together {self.together:.2%}"
        return (
            f"Fitted to {self.num_labels} labels and judged on {self.num_test:,} test images, the first network has "
            f"{self.accuracies[0]:.2%}{several}; the mean network of the pipeline, fine-tuned on the same labels, has "
            f"{self.mean_network:.2%}."
        )


def fit_networks(
    pipe: PDiffPipeline,
    task: str | Mapping[str, Any],
    directory: Path,
    num_labels: int = 50,
    num_models: int = 5,
    classes: str | None = None,
    condition: Mapping[str, Any] | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Fitted:
    """Fits networks to `num_labels` examples of the training split, and writes them as `write_networks` does.

    Args:
        task: as `load_task` takes it; or a text: a data set, a .yaml or .json file with a spec, or the spec itself.
        num_labels: drawn by `seed`, of each answer equally many as far as there are images.
        classes: for networks of two answers, the labels that are answered by 1, as "0,3,7"; all others by 0.
        others: as in `PDiffPipeline.fit`.

    Raises:
        ValueError: before anything is fitted or written, for a task, labels or a folder that do not fit.
    """
    require(num_models >= 1, "--num-models", num_models, "at least 1")
    require(num_labels >= 2, "--num-labels", num_labels, "at least 2, of different classes")
    require_room(directory, num_models)
    pipe.set_progress_bar_config(desc="fit", unit="step", delay=2, disable=None)
    network = pipe.build_network(trust_remote_code=trust_remote_code)
    loaded = _answers(_open(task, pipe), dict(pipe.autoencoder.config.network), classes)
    index_n = _drawn(loaded, num_labels, seed)
    inputs_nX, labels_n = loaded.inputs(loaded.train, index_n), loaded.train.labels_N[index_n]
    out = pipe.fit(
        inputs_nX,
        labels_n,
        num_models,
        condition,
        torch.Generator().manual_seed(seed),
        trust_remote_code=trust_remote_code,
    )
    assert out.params is not None and out.latents is not None
    origin: dict[str, Any] = {"seed": seed, "num_models": num_models, "num_labels": num_labels, "task": loaded.spec}
    if classes is not None:
        origin["classes"] = classes
    if condition is not None:
        origin["condition"] = dict(condition)
    files = write_latents(pipe, out.latents, directory, origin, _usage(pipe, loaded, classes))
    params_BP = torch.cat([out.params, _tuned_mean(pipe, network, inputs_nX, labels_n)])
    layout, frozen = pipe.autoencoder.layout, pipe.autoencoder.frozen_state()
    logits_BNc = predict_logits(network, layout, frozen, params_BP, SplitImages(loaded, loaded.test))
    right_BN = logits_BNc.argmax(dim=2) == loaded.test.labels_N
    *each, mean_network = right_BN.double().mean(dim=1).tolist()
    answers_N = logits_BNc[:-1].softmax(dim=2).mean(dim=0).argmax(dim=1)
    together = float((answers_N == loaded.test.labels_N).double().mean())
    return Fitted(files, num_labels, len(loaded.test), each, together, mean_network)


def _open(task: str | Mapping[str, Any], pipe: PDiffPipeline) -> Task:
    """The task, normalised and split as that of the pipeline: its networks expect it, and have not seen its test."""
    spec: Any = task
    if isinstance(task, str):
        file = Path(task).expanduser()
        if file.suffix in (".yaml", ".yml", ".json"):
            spec = read_json(file) if file.suffix == ".json" else read_yaml(file)
        elif task.lstrip().startswith("{"):
            spec = parse_yaml(task, f"--task {shortened(task)}")
        if isinstance(spec, dict):
            spec = plain("--task", spec, TASK_TEXTS)
    own = pipe.autoencoder.config.task or {}
    if spec == own.get("dataset"):
        spec = {name: value for name, value in own.items() if name != "resolved"}
    try:
        loaded = load_task(spec, seed=own.get("seed", 0))
    except PdiffError as error:
        if not isinstance(spec, str) or not Path(spec).expanduser().is_dir():
            raise
        raise PdiffError(
            f"{str(error).rstrip('.')}. --task takes options as a recipe does: "
            f"--task '{{dataset: {spec}, image_size: 8, test_size: 0.2}}'."
        ) from error
    recorded = recorded_statistics(own)
    if recorded is None or len(recorded[0]) != loaded.in_channels or "normalize" in loaded.spec:
        return loaded
    return replace(loaded, mean=recorded[0], std=recorded[1])


def _answers(task: Task, network: Mapping[str, Any], classes: str | None) -> Task:
    """The task with the networks' answers as its labels; PdiffError unless it has what the networks take and give."""
    dataset = task.spec["dataset"]
    if task.in_channels != network["in_channels"]:
        colours = {1: "grey", 3: "in colour"}
        found, expected = (colours.get(each, str(each)) for each in (task.in_channels, network["in_channels"]))
        raise PdiffError(
            f"the images of {dataset} are {found}, and the networks of this pipeline take images that are {expected}; "
            "convert the images, or take another pipeline."
        )
    if task.image_size != (side := network["image_size"]):
        raise PdiffError(
            f"the images of {dataset} are {task.image_size} pixels wide, and the networks of this pipeline take "
            f"{side}; give --task '{{dataset: {dataset}, image_size: {side}}}'."
        )
    answers = network["num_classes"]
    if classes is None:
        if task.num_classes != answers:
            hint = ", or say with --classes which labels are answered by 1, such as --classes 0,3,7" * (answers == 2)
            raise PdiffError(
                f"{dataset} has {task.num_classes} classes, and the networks of this pipeline give {answers} answers; "
                f"give labelled images of {answers} classes{hint}."
            )
        return task
    if answers != 2:
        raise PdiffError(
            f"--classes is for networks of two answers, and those of this pipeline give {answers}; leave it out."
        )
    names = list(map(str, task.spec["resolved"]["classes"]))
    chosen = _chosen(classes, names)
    if not 0 < len(chosen) < len(names):
        raise PdiffError(
            f"--classes names {len(chosen)} of the {len(names)} classes of {dataset}, so that all images have one "
            "answer; name some of them, not all."
        )
    yes = torch.zeros(len(names), dtype=torch.int64).index_fill_(0, torch.tensor(chosen), 1)
    train, validation, test = (
        Split(split.images_NCHW, yes[split.labels_N]) for split in (task.train, task.validation, task.test)
    )
    return replace(task, num_classes=2, train=train, validation=validation, test=test)


def _usage(pipe: PDiffPipeline, task: Task, classes: str | None) -> Usage:
    """How the networks are used: as others of the pipeline, but on these images, and for these answers."""
    names = list(map(str, task.spec["resolved"]["classes"]))
    answers = tuple(names) if classes is None else yes_no([names[each] for each in _chosen(classes, names)])
    spec = public(task.spec)
    return replace(usage_of(pipe), mean=task.mean, std=task.std, class_names=answers, task=spec)


def _chosen(classes: str, names: Sequence[str]) -> list[int]:
    """The classes that `--classes` names, in their order."""
    return sorted({_number(each.strip(), names) for each in classes.split(",") if each.strip()})


def _number(value: str, names: Sequence[str]) -> int:
    """Of a class, by its name or else its number from 0."""
    if value in names:
        return names.index(value)
    if value.isdecimal() and int(value) < len(names):
        return int(value)
    raise PdiffError(f"--classes: there is no class {value!r}, only {', '.join(names)}.")


def _drawn(task: Task, num_labels: int, seed: int) -> Tensor:
    """Indices [n] of training images: one of each class in turn, as long as there are some, in random order."""
    labels_N = task.train.labels_N
    if num_labels > len(labels_N):
        raise PdiffError(
            f"--num-labels is {num_labels}, and the training split of {task.spec['dataset']} has {len(labels_N)} "
            "images; ask for at most so many."
        )
    present = labels_N.unique().tolist()
    if len(present) < 2:
        raise PdiffError(
            f"all training images of {task.spec['dataset']} are of one class: a network that always answers so would "
            "fit them. Give images of at least two classes."
        )
    generator = generator_of(seed, "labels")
    order_N = torch.randperm(len(labels_N), generator=generator)
    rank_N = torch.empty_like(labels_N)  # how many of the same class come before
    for label in present:
        of_class = order_N[labels_N[order_N] == label]
        rank_N[of_class] = torch.arange(len(of_class))
    # Stable, so that images of one rank keep the random order.
    return order_N[rank_N[order_N].argsort(stable=True)][:num_labels]


def _tuned_mean(pipe: PDiffPipeline, network: torch.nn.Module, inputs_nX: Tensor, labels_n: Tensor) -> Tensor:
    """The mean of the pipeline's networks after Adam on all labels: float32 [1,P]. Running statistics stay."""
    autoencoder, device = pipe.autoencoder, pipe.autoencoder.device
    middle = torch.zeros(1, autoencoder.config.latent_channels, autoencoder.config.latent_length, device=device)
    start_BP = pipe.decode_latents(middle)
    frozen, stacked = autoencoder.frozen_state(), autoencoder.layout.stack(start_BP)
    selected, rest = tensor_names(network, autoencoder.layout, frozen)
    fixed = {name: frozen[name].to(device) for name in rest}
    state = {name: stacked[name][0].to(device) for name in selected}
    trained = {name for name, _ in network.named_parameters()} & state.keys()
    if not trained:
        return start_BP
    leaves = {name: state[name].clone().requires_grad_() for name in trained}
    network, inputs_nX, labels_n = network.to(device), inputs_nX.to(device), labels_n.to(device)
    optimizer = torch.optim.Adam(leaves.values(), lr=_TUNE_LEARNING_RATE)
    for _ in range(_TUNE_STEPS):
        optimizer.zero_grad()
        answers_nc = logits(functional_call(network, {**fixed, **state, **leaves}, (inputs_nX,)))
        torch.autograd.backward(F.cross_entropy(answers_nc, labels_n))
        optimizer.step()
    tuned = {name: tensor.detach()[None].cpu() for name, tensor in {**state, **leaves}.items()}
    return autoencoder.layout.unstack(tuned)
