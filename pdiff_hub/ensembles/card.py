"""The card of an ensemble: what it brings first, then how it is used, where it comes from, and the table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from torch import Tensor

from pdiff_hub.ensembles.description import Description, Origin
from pdiff_hub.ensembles.figures import COLUMNS, NOTE
from pdiff_hub.networks import base_model
from pdiff_hub.networks.factory import is_dotted
from pdiff_hub.transfer.cards import accuracy_result, markdown_table, render_card

_TEMPLATE = Path(__file__).with_name("card_template.md")
_TAGS = ["neural-network-diffusion", "generated-network", "ensemble", "pdiff-hub"]
_MOST_CLASSES = 100  # that a card lists


def render_ensemble_card(known: Description, stacked: Mapping[str, Tensor], repo_id: str) -> str:
    """README.md of an ensemble. stacked: its weights, as saved. repo_id: its Hub id, or the name of its folder."""
    name, spec, report = repo_id.split("/")[-1], known.network, known.report
    listed = known.classes is not None and len(known.classes) <= _MOST_CLASSES
    return render_card(
        _TEMPLATE,
        _metadata(known, name),
        name=name,
        repo_id=repo_id,
        known=known,
        spec=spec,
        num_params=f"{sum(tensor.numel() for tensor in stacked.values()):,}",
        trust=", trust_remote_code=True" if is_dotted(str(spec["name"])) else "",
        mean=known.mean and ", ".join(f"{value:.6g}" for value in known.mean),
        std=known.std and ", ".join(f"{value:.6g}" for value in known.std),
        classes=json.dumps(known.classes, ensure_ascii=False) if listed else None,
        report=report,
        table=None if report is None else markdown_table(COLUMNS, report.rows()),
        note=NOTE,
        again=None if known.origin is None else _again(known.num_networks, known.origin),
        provenance=None if known.origin is None else markdown_table(("what", "value"), _provenance(known.origin)),
    )


def _again(number: int, origin: Origin) -> str | None:
    """The Python lines that make it again; None if they cannot, because nobody knows the seed."""
    if origin.seed is None:
        return None
    place = json.dumps(origin.pipeline or "path/to/pipeline")
    revision = "" if origin.revision is None else f", revision={json.dumps(origin.revision)}"
    asked = "" if origin.condition is None else f", condition={json.dumps(origin.condition, ensure_ascii=False)}"
    calibrate = "" if origin.calibrate else ", calibrate=False"
    return (
        f"pipe = PDiffPipeline.from_pretrained({place}{revision})\n"
        f"ensemble = pipe.ensemble({number}, select={origin.select!r}, "
        f"candidates={origin.num_candidates}{asked}{calibrate}, generator=torch.Generator().manual_seed({origin.seed}))"
    )


def _metadata(known: Description, name: str) -> ModelCardData:
    more: dict[str, Any] = {}
    if (base := base_model(known.network)) is not None:
        more |= {"base_model": base, "base_model_relation": "finetune"}
    if known.task_hub_id is not None:
        more["datasets"] = [known.task_hub_id]
    if known.task is not None and known.report is not None:
        result = accuracy_result("accuracy", known.report.test.accuracy, known.task, known.task_hub_id)
        more |= {"model_name": name, "eval_results": [result]}
    return ModelCardData(library_name="pdiff-hub", pipeline_tag="image-classification", tags=_TAGS, **more)


def _provenance(origin: Origin) -> list[tuple[str, str]]:
    rows = [("pipeline", f"`{origin.pipeline}`" if origin.pipeline else "local, not on the Hub")]
    if origin.revision:
        rows.append(("revision", f"`{origin.revision}`"))
    rows += [(f"sha256 of `{file}`", f"`{digest}`") for file, digest in origin.weights.items()]
    rows += [("seed", "unknown" if origin.seed is None else str(origin.seed))]
    rows += [("steps", str(origin.num_inference_steps)), ("candidates", str(origin.num_candidates))]
    rows += [("chosen by", origin.select or "nothing: the first ones"), ("chosen", ", ".join(map(str, origin.chosen)))]
    if origin.condition is not None:
        rows += [(f"asked for {name}", value) for name, value in origin.condition.items()]
    versions = [f"{name} {origin.environment.get(name)}" for name in ("pdiff-hub", "torch", "diffusers", "python")]
    return [*rows, ("versions", ", ".join(versions))]
