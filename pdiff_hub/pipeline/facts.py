"""What is known of a pipeline without measuring it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pdiff_hub.networks import base_model
from pdiff_hub.records import Checkpoints, Facts
from pdiff_hub.tasks import hub_id_of
from pdiff_hub.tasks.normalization import shown
from pdiff_hub.travelling.pipeline_pdiff import PDiffPipeline


def facts_of(
    pipe: PDiffPipeline,
    *,
    name: str,
    recipe: dict[str, Any] | None,
    checkpoints: Checkpoints | None,
    network: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    figures: Sequence[str] = (),
    num_inference_steps: int | None = None,
) -> Facts:
    """The part of `results.json` that is known without measuring.

    Args:
        network, task: complete specs. None takes those that the pipeline holds, if it holds any.
        others: as in `Facts`. None for num_inference_steps takes the pipeline's own.
    """
    network, task = network or pipe.autoencoder.config.network, task or pipe.autoencoder.config.task
    return Facts(
        name=name,
        task=None if task is None else task["dataset"],
        task_dataset=None if task is None else hub_id_of(task),
        network=None if network is None else network["name"],
        base_model=None if network is None else base_model(network),
        select=pipe.autoencoder.layout.select,
        num_params=pipe.autoencoder.layout.num_params,
        num_inference_steps=num_inference_steps or pipe.config.default_num_inference_steps,
        recipe=recipe,
        figures=list(figures),
        checkpoints=checkpoints,
        normalize=None if task is None else shown(task),
        conditions=None if pipe.conditions is None else pipe.conditions.to_dict(),
    )
