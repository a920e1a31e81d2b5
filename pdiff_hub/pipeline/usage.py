"""What a pipeline says of its networks to people who use them without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pdiff_hub.exporting import KEY, Usage
from pdiff_hub.pipeline.pipeline import PDiffPipeline
from pdiff_hub.pipeline.public import public
from pdiff_hub.tasks.normalization import recorded_statistics

_BITS = "bits"


def usage_of(pipe: PDiffPipeline, condition: Mapping[str, Any] | None = None) -> Usage:
    """How networks of the pipeline are used. condition: what they were asked to be, which names the two answers."""
    config = pipe.autoencoder.config
    task = public(_plain(config.task or {}))
    mean, std = recorded_statistics(task) or (None, None)
    network = None if config.network is None else public(_plain(config.network))
    return Usage(network, mean, std, _class_names(pipe, network, task, condition), task or None)


def yes_no(classes: Sequence[str]) -> tuple[str, str]:
    """The names of the two answers of a network that says whether an image is of one of these classes."""
    listed = ", ".join(classes)
    return f"none of {listed}", f"one of {listed}"


def described(
    pipe: PDiffPipeline, origin: Mapping[str, Any], usage: Usage, *, format: str, num_averaged: int = 1
) -> dict[str, Any]:
    """What is written beside and into files of networks: where they come from, and how they are used.

    origin: how to make them again. format, num_averaged: as in `Usage.to_dict`.
    """
    name = pipe.hub_id or (pipe.folder and pipe.folder.name)
    place = {"pipeline": name, "revision": pipe.hub_revision, "scheduler": type(pipe.scheduler).__name__}
    return {**origin, **place, **usage.to_dict(format, num_averaged)}


def origin_of(
    pipe: PDiffPipeline,
    num_models: int,
    seed: int,
    num_inference_steps: int | None,
    condition: Mapping[str, Any] | None,
    guidance_scale: float,
) -> dict[str, Any]:
    """How the networks of a seed are made again: the arguments of `sample`, with the steps that None stands for."""
    steps = num_inference_steps or pipe.config.default_num_inference_steps
    origin: dict[str, Any] = {"seed": seed, "num_models": num_models, "num_inference_steps": steps}
    if condition is not None:
        origin |= {"condition": dict(condition), "guidance_scale": guidance_scale}
    return origin


def header_of(facts: Mapping[str, Any], index: int) -> dict[str, str]:
    """The metadata of a safetensors file of network `index`: what transformers looks for, and the facts as JSON."""
    return {"format": "pt", KEY: json.dumps({**facts, "index": index})}


def _class_names(
    pipe: PDiffPipeline, network: Mapping[str, Any] | None, task: Mapping[str, Any], condition: Mapping[str, Any] | None
) -> tuple[str, ...] | None:
    classes = tuple(map(str, task.get("resolved", {}).get("classes") or ()))
    number = (network or {}).get("num_classes")
    if classes and len(classes) == number:
        return classes
    spec = pipe.conditions
    # A family of questions "is it one of these classes?" is asked by a bit for each.
    if spec is None or number != 2 or spec.kind != _BITS or spec.names != classes or spec.name not in (condition or {}):
        return None
    assert condition is not None
    chosen = spec.encode(condition[spec.name]).bool().tolist()
    return yes_no([name for name, is_one in zip(classes, chosen, strict=True) if is_one])


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of diffusers' configuration as a plain dict."""
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in config.items()}
