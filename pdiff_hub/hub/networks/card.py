"""The card of one generated network: where it came from, how to make it again, how to use it, what is known of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCardData

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.table import verdict
from pdiff_hub.exporting import Usage
from pdiff_hub.networks import base_model
from pdiff_hub.networks.factory import is_dotted
from pdiff_hub.records import NetworksFolder, Results
from pdiff_hub.safe_files.checking import checked
from pdiff_hub.tasks import TASK_NAMES, described_pixels, hub_id_of
from pdiff_hub.transfer.cards import accuracy_result, markdown_table, render_card
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_TEMPLATE = Path(__file__).with_name("card_template.md")
_TAGS = ["neural-network-diffusion", "generated-network", "pdiff-hub"]
_MIXIN_TAGS = ["model_hub_mixin", "pytorch_model_hub_mixin"]  # the tags of the mixin's own cards; people filter by them
_MOST_CLASSES = 100  # that a card lists


@dataclass(frozen=True)
class Origin:
    """Where a generated network comes from: enough to make it again. Stored as `generated.json`.

    Attributes:
        pipeline, revision: the pipeline's Hub id and commit; None if it is not on the Hub.
        weights: if it is not on the Hub, the sha256 (hex) of each of its weight files, by path; else empty.
        seed, index, num_models, num_inference_steps: network `index` of the `num_models` that `seed` gives.
        scheduler, device: the sampler's class, and the kind of device ("cpu", "cuda") that it ran on.
        environment: versions and machine, as in `results.json`.
        condition, guidance_scale: what it was asked to be; None and 1 if nothing.
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
    condition: dict[str, Any] | None = None
    guidance_scale: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """As it is stored: JSON-able, and without a condition if there is none."""
        whole = asdict(self)
        if self.condition is None:
            del whole["condition"], whole["guidance_scale"]
        return whole


@dataclass(frozen=True)
class _Resolved:
    """The parts of a complete task spec that are read here."""

    classes: list[str]
    sizes: dict[str, int]
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Images:
    """Describes a network's images and classes, and says nothing about the machine that it was made on.

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
        """Reads a complete task spec; None if it lacks a part, or if its classes are not `num_classes`."""
        try:
            dataset, resolved = task.get("dataset"), checked(_Resolved, task.get("resolved") or {}, "the task", "")
        except PdiffError:
            return None
        classes = resolved.classes
        # label2id of transformers needs one name per class, all different.
        if not isinstance(dataset, str) or len(set(classes)) != num_classes or len(classes) != num_classes:
            return None
        return cls(
            str(_dataset(task)), hub_id_of(task), classes, resolved.mean, resolved.std, resolved.sizes.get("test", 0)
        )


def _dataset(task: Mapping[str, Any] | None) -> str | None:
    """The name of a data set that may be published; None if the task's spec names none."""
    dataset = None if task is None else task.get("dataset")
    if task is None or not isinstance(dataset, str):
        return None
    return dataset if hub_id_of(task) or dataset in TASK_NAMES else last_part(dataset)


def last_part(path: str) -> str:
    """The last part of a path of any system. Nothing else of a local folder may be published."""
    return PurePath(path.replace("\\", "/")).name


def render_network_card(
    repo_id: str,
    origin: Origin,
    spec: Mapping[str, Any],
    images: Images | None,
    usage: Usage,
    *,
    program: str | None,
    transformers: bool,
    layout: ParamLayout,
    licence: str | None,
    accuracy: float | None,
    results: Results | None,
) -> str:
    """README.md of a generated network.

    Args:
        spec: the network's, as published. usage: how it is used.
        program: the format of the program that is published, too. transformers: whether transformers opens the
            repository.
        layout: which of its numbers were generated.
        accuracy: a fraction on the task's test split. results: the pipeline's.
    """
    name = repo_id.split("/")[-1]
    measured = None if results is None else results.measured
    names = usage.class_names
    listed = names is not None and len(names) <= _MOST_CLASSES
    dataset = _dataset(usage.task)
    return render_card(
        _TEMPLATE,
        _metadata(name, spec, images, transformers, licence, accuracy),
        name=name,
        repo_id=repo_id,
        origin=origin,
        spec=spec,
        images=images,
        usage=usage,
        program=program,
        torch_code=usage.torch_code(),
        transformers=transformers,
        task="a task that its pipeline does not name" if dataset is None else dataset,
        pipeline=_pipeline(origin),
        num_params=f"{layout.num_params:,}",
        select=layout.select,
        trust=", trust_remote_code=True" if is_dotted(str(spec["name"])) else "",
        mean=usage.mean and _numbers(usage.mean),
        std=usage.std and _numbers(usage.std),
        pixels=None if usage.task is None else described_pixels(usage.task),
        classes=json.dumps(list(names)) if names is not None and listed else None,
        asked=_asked(origin),
        place=origin.pipeline or "path/to/pipeline",
        file=NetworksFolder(Path()).network(origin.index).name,
        provenance=markdown_table(("what", "value"), _provenance(origin)),
        accuracy=None if accuracy is None else f"{100 * accuracy:.2f}",
        split="its task" if images is None else f"`{images.dataset}` ({images.num_test:,} images)",
        judged=None if measured is None else measured.num_generated,
        verdict=None if results is None else " ".join(verdict(results).split()),
    )


def _metadata(
    name: str,
    spec: Mapping[str, Any],
    images: Images | None,
    transformers: bool,
    licence: str | None,
    accuracy: float | None,
) -> ModelCardData:
    more: dict[str, Any] = {}
    if transformers and (base := base_model(spec)) is not None:  # a user's own factory may have such an option, too
        more |= {"base_model": base, "base_model_relation": "finetune"}
    if images is not None and images.hub_id is not None:
        more["datasets"] = [images.hub_id]
    if images is not None and accuracy is not None:
        more |= {
            "model_name": name,
            "eval_results": [accuracy_result("accuracy", accuracy, images.dataset, images.hub_id)],
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


@dataclass(frozen=True)
class _Asked:
    """How a condition is written: in Python, and as options of the command."""

    arguments: str
    options: str
    words: str


def _asked(origin: Origin) -> _Asked | None:
    if origin.condition is None:
        return None
    ((name, value),) = origin.condition.items()
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return _Asked(
        f", condition={origin.condition!r}, guidance_scale={origin.guidance_scale!r}",
        f" --condition {shlex.quote(f'{name}={text}')} --guidance-scale {origin.guidance_scale!r}",
        f"{name}={text}",
    )


def _provenance(origin: Origin) -> list[tuple[str, str]]:
    rows = [("pipeline", f"`{origin.pipeline}`" if origin.pipeline else "local, not on the Hub")]
    if origin.pipeline:
        rows.append(("revision", f"`{origin.revision}`"))
    rows += [(f"sha256 of `{file}`", f"`{digest}`") for file, digest in origin.weights.items()]
    rows += [(key, str(getattr(origin, key))) for key in ("seed", "index", "num_models", "num_inference_steps")]
    if (asked := _asked(origin)) is not None:
        rows += [("condition", f"`{asked.words}`"), ("guidance_scale", str(origin.guidance_scale))]
    versions = (f"{name} {origin.environment[name]}" for name in ("pdiff-hub", "torch", "diffusers", "python"))
    return [
        *rows,
        ("scheduler", f"`{origin.scheduler}`"),
        ("device", origin.device),
        ("versions", ", ".join(versions)),
    ]


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
