"""The card of one generated network: where it came from, how to make it again, how to use it, what is known of it.

Names out of a pipeline, its task and its results are other people's text: they go into the card as they are, never
through a template language.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pdiff_hub.evaluation.table import verdict
from pdiff_hub.networks import base_model
from pdiff_hub.tasks import TASK_NAMES, hub_id_of
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_TAGS = ["neural-network-diffusion", "generated-network", "pdiff-hub"]
_MIXIN_TAGS = ["model_hub_mixin", "pytorch_model_hub_mixin"]  # what the mixin's own cards have; people filter by them
_MOST_CLASSES = 100  # to list in a card


@dataclass(frozen=True)
class Origin:
    """Where a generated network comes from: enough to make it again. Stored as `generated.json`.

    Attributes:
        pipeline, revision: the pipeline's Hub id and commit; None for one that is not on the Hub.
        weights: then, sha256 (hex) by path of the weight files that the pipeline saves; else empty.
        seed, index, num_models, num_inference_steps: network `index` of the `num_models` that `seed` gives.
        scheduler, device: the sampler's class, and the kind of device ("cpu", "cuda") that it ran on.
        environment: versions and machine, as in `results.json`.
    """

    pipeline: str | None
    revision: str | None
    weights: dict[str, str]
    seed: int
    index: int
    num_models: int
    num_inference_steps: int
    scheduler: str
    device: str
    environment: dict[str, str | int | None]


@dataclass(frozen=True)
class Images:
    """What a network's images and answers are, without anything of the machine that it was made on.

    Attributes:
        dataset: the data set's short name, Hub id, or the last part of a local folder's path.
        hub_id: of the data set, if it is on the Hub.
        classes: in the order of the logits. mean, std: of each channel, with pixels scaled to [0, 1].
        num_test: images in the test split.
    """

    dataset: str
    hub_id: str | None
    classes: list[str]
    mean: list[float]
    std: list[float]
    num_test: int

    @classmethod
    def of_task(cls, task: Mapping[str, Any], num_classes: int) -> Images | None:
        """Read from a complete task spec; None if it does not say all of this, or not for `num_classes` classes."""
        try:
            dataset, resolved = task["dataset"], task["resolved"]
            classes, num_test = [str(name) for name in resolved["classes"]], int(resolved["sizes"]["test"])
            mean, std = ([float(value) for value in resolved[key]] for key in ("mean", "std"))
        except (KeyError, TypeError, ValueError):
            return None
        # label2id of transformers needs a name a class.
        if not isinstance(dataset, str) or len(set(classes)) != num_classes or len(classes) != num_classes:
            return None
        hub_id = hub_id_of(task)
        name = dataset if hub_id or dataset in TASK_NAMES else last_part(dataset)
        return cls(name, hub_id, classes, mean, std, num_test)


def last_part(path: str) -> str:
    """The last part of a path of any system: what may be said of a local folder in public."""
    return PurePath(path.replace("\\", "/")).name


def render_network_card(
    repo_id: str,
    origin: Origin,
    spec: Mapping[str, Any],
    images: Images | None,
    *,
    transformers: bool,
    layout: ParamLayout,
    licence: str | None,
    accuracy: float | None,
    results: Mapping[str, Any] | None,
) -> str:
    """README.md of a generated network.

    Args:
        spec: the network's, as published. transformers: whether its repository is one that transformers opens.
        layout: which of its numbers were generated.
        accuracy: a fraction on the task's test split. results: the pipeline's `results.json`.
    """
    name, task = repo_id.split("/")[-1], "a task that its pipeline does not name" if images is None else images.dataset
    sections = [
        f"# {name}",
        f"One `{spec['name']}` network for {task}, not trained but generated: number {origin.index} (counted from 0) "
        f"of the {origin.num_models} that {_pipeline(origin)} makes from seed {origin.seed}. {layout.num_params:,} of "
        f"its numbers were generated (`select: {layout.select}`); what is left, if anything, is the same in every "
        "network of that pipeline. Made with [Neural Network Diffusion](https://arxiv.org/abs/2402.13144) by "
        "pdiff-hub.",
        "## Use it",
        _usage(repo_id, spec, images, transformers),
        "## Make it again",
        _again(origin, spec),
        "## How good is it?",
        _accuracy(accuracy, images),
        "## Is it new, or a copy?",
        _verdict(results),
        "## Limits",
        "It is a variation of the networks that its pipeline was trained on, for the same data and architecture, and "
        "knows no more than they do.",
    ]
    data = _metadata(name, spec, images, transformers, licence, accuracy)
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(
    name: str,
    spec: Mapping[str, Any],
    images: Images | None,
    transformers: bool,
    licence: str | None,
    accuracy: float | None,
) -> ModelCardData:
    more: dict[str, Any] = {}
    if transformers and (base := base_model(spec)) is not None:  # a function of the user's may have such options too
        more |= {"base_model": base, "base_model_relation": "finetune"}
    if images is not None and images.hub_id is not None:
        more["datasets"] = [images.hub_id]
    if images is not None and accuracy is not None:
        more |= {
            "model_name": name,
            "eval_results": [
                EvalResult(
                    task_type="image-classification",
                    dataset_type=images.hub_id or images.dataset,
                    dataset_name=images.dataset,
                    dataset_split="test",
                    metric_type="accuracy",
                    metric_name="accuracy",
                    metric_value=round(accuracy, 4),
                )
            ],
        }
    return ModelCardData(
        library_name="transformers" if transformers else "pdiff-hub",
        license=licence,
        pipeline_tag="image-classification",
        tags=_TAGS if transformers else [*_TAGS, *_MIXIN_TAGS],
        **more,
    )


def _pipeline(origin: Origin) -> str:
    if origin.pipeline is None:
        return "a pipeline that is not on the Hub (its weights are named below)"
    return f"the pipeline `{origin.pipeline}`"


def _usage(repo_id: str, spec: Mapping[str, Any], images: Images | None, transformers: bool) -> str:
    if transformers:
        lines = [
            "from transformers import AutoModelForImageClassification",
            f'network = AutoModelForImageClassification.from_pretrained("{repo_id}")',
        ]
        if images is not None:
            lines[:1] = ["from transformers import AutoImageProcessor, AutoModelForImageClassification"]
            lines += [
                f'processor = AutoImageProcessor.from_pretrained("{repo_id}")',
                'logits = network(**processor(picture, return_tensors="pt")).logits',
            ]
    else:
        trust = ", trust_remote_code=True" if _is_dotted(spec) else ""
        lines = [
            "from pdiff_hub.hub import GeneratedNetwork  # pip install pdiff-hub",
            f'network = GeneratedNetwork.from_pretrained("{repo_id}"{trust})',
            "logits = network(images)",
        ]
    text = _code("python", lines)
    if _is_dotted(spec):
        text += f"\n\nIt is built by calling `{spec['name']}`: read that function before you trust it."
    side = spec["image_size"]
    text += f"\n\nImages are float32 [batch, {spec['in_channels']}, {side}, {side}]"
    if images is None:
        return text + f"; logits are [batch, {spec['num_classes']}]."
    text += (
        f": pixels scaled to 0..1, less the mean {_numbers(images.mean)}, over the standard deviation "
        f"{_numbers(images.std)} of a channel."
    )
    if len(images.classes) > _MOST_CLASSES:
        return text + f" The logits are of the {len(images.classes)} classes of `{images.dataset}`, in its order."
    return text + " The logits are of these classes:\n\n" + _code("json", [json.dumps(images.classes)])


def _again(origin: Origin, spec: Mapping[str, Any]) -> str:
    place, revision = "path/to/pipeline", ""
    if origin.pipeline is not None:
        place, revision = origin.pipeline, f', revision="{origin.revision}"'
    trust = ", trust_remote_code=True" if _is_dotted(spec) else ""
    numbers = f"{origin.num_models}, {origin.num_inference_steps}"
    code = _code(
        "python",
        [
            "import torch",
            "from pdiff_hub import PDiffPipeline",
            f'pipe = PDiffPipeline.from_pretrained("{place}"{revision})',
            f"out = pipe({numbers}, torch.Generator().manual_seed({origin.seed}))",
            f"network = pipe.build_network(out.state_dicts[{origin.index}]{trust})",
        ],
    )
    command = _code(
        "bash",
        [
            f"pdiff generate {place}{f' --revision {origin.revision}' if origin.pipeline else ''} --seed {origin.seed} "
            f"--num-models {origin.num_models} --num-inference-steps {origin.num_inference_steps} --output-dir networks"
        ],
    )
    rows = [
        ("pipeline", f"`{origin.pipeline}`" if origin.pipeline else "local, not on the Hub"),
        *([("revision", f"`{origin.revision}`")] if origin.pipeline else []),
        *((f"sha256 of `{file}`", f"`{digest}`") for file, digest in origin.weights.items()),
        ("seed", origin.seed),
        ("index", origin.index),
        ("num_models", origin.num_models),
        ("num_inference_steps", origin.num_inference_steps),
        ("scheduler", f"`{origin.scheduler}`"),
        ("device", origin.device),
        (
            "versions",
            ", ".join(f"{name} {origin.environment[name]}" for name in ("pdiff-hub", "torch", "diffusers", "python")),
        ),
    ]
    table = "\n".join(["| what | value |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows)])
    return (
        f"{code}\n\nor, as `networks/model-{origin.index:05d}.safetensors`:\n\n{command}\n\n{table}\n\n"
        "The same numbers to the last bit need the same versions on the same kind of machine. `generated.json` "
        "says all this for programs."
    )


def _accuracy(accuracy: float | None, images: Images | None) -> str:
    if accuracy is None:
        return "It was not measured for this network."
    split = "its task" if images is None else f"`{images.dataset}` ({images.num_test:,} images)"
    return (
        f"{100 * accuracy:.2f} % of the test split of {split}, as measured by whoever published it; "
        "pdiff-hub trains and chooses on the other splits only."
    )


def _verdict(results: Mapping[str, Any] | None) -> str:
    own = "Whether this one network is a copy was not measured."
    if results is None:
        return f"Nothing is known of its pipeline's networks either: no results came with it. {own}"
    said = " ".join(verdict(results).split())
    return f"Its pipeline was judged by {results['num_generated']} of its networks: **{said}** {own}"


def _is_dotted(spec: Mapping[str, Any]) -> bool:
    return "." in spec["name"] or ":" in spec["name"]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _code(language: str, lines: list[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
