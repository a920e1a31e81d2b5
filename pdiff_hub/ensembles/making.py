"""An ensemble out of what a pipeline generates: chosen and calibrated on validation, measured on test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.ensembles.candidates import Candidates, Selection
from pdiff_hub.ensembles.choosing import WAYS
from pdiff_hub.ensembles.description import Description, Origin
from pdiff_hub.ensembles.ensemble import Ensemble
from pdiff_hub.ensembles.figures import Report
from pdiff_hub.ensembles.views import Judging
from pdiff_hub.errors import PdiffError, require, require_known
from pdiff_hub.evaluation.environment import environment
from pdiff_hub.evaluation.known_rows import split_known
from pdiff_hub.networks.dry_run import build_to_judge
from pdiff_hub.records import RunFolder
from pdiff_hub.records.fingerprint import fingerprint
from pdiff_hub.records.made_here import is_trusted
from pdiff_hub.tasks import Task, hub_id_of
from pdiff_hub.travelling.pipeline_pdiff import PDiffPipeline

_LEAST, _PER_NETWORK = 50, 5


def make_ensemble(
    pipe: PDiffPipeline,
    num_models: int,
    *,
    select: str | None,
    calibrate: bool,
    task: Task | str | Mapping[str, Any] | None,
    candidates: int | None,
    condition: Mapping[str, Any] | None,
    generator: torch.Generator | None,
    trust_remote_code: bool,
    originals: CheckpointDataset | None,
    images: str | Path | None,
    place: tuple[Path | None, str | None, str | None],
    recipe: Mapping[str, Any] | None,
) -> Ensemble:
    """Arguments as in `PDiffPipeline.ensemble`. place: the pipeline's folder, Hub id and commit, each if known.
    recipe: the pipeline's, which says what a condition makes of the task."""
    require(type(num_models) is int and num_models >= 1, "num_models", num_models, "an integer of at least 1")
    if select is not None:
        require_known("way to select", [select], WAYS)
    if candidates is None:
        candidates = num_models if select is None else max(_LEAST, _PER_NETWORK * num_models)
    enough = type(candidates) is int and candidates >= num_models
    require(enough, "candidates", candidates, f"an integer of at least num_models, {num_models}")
    if generator is not None:
        require(isinstance(generator, torch.Generator), "generator", generator, "one torch.Generator, or None")
    if originals is not None:
        expected = "a CheckpointDataset, such as CheckpointDataset.from_pretrained(folder), or None"
        require(isinstance(originals, CheckpointDataset), "originals", originals, expected)
    folder, hub_id, revision = place
    spec = pipe.autoencoder.config.network
    if spec is None:
        raise PdiffError("this pipeline does not say which network it generates, so no ensemble can be built.")
    layout = pipe.autoencoder.layout
    network = build_to_judge(spec, layout, "the pipeline", allow_factory=is_trusted(spec, folder, trust_remote_code))
    judging = Judging.of(
        pipe, spec, task, condition, recipe, folder, images=images, trust_remote_code=trust_remote_code
    )  # before anything is generated
    seed = None if generator is None else _seed(generator)
    pipe.set_progress_bar_config(desc="generate", unit="step", delay=2, disable=None)
    (latents_BCL,) = pipe(candidates, None, generator, output_type="latent", return_dict=False, condition=condition)
    pool = Candidates.generated(pipe, network, spec["num_classes"], latents_BCL)
    chosen = Selection.of(pool, judging.validation, num_models, select, calibrate)
    known, note = _originals(pipe, originals, folder, judging)
    best = None
    if known is not None:
        kept = known.select_rows(torch.linspace(0, len(known) - 1, min(candidates, len(known))).round().int().tolist())
        of_originals = Candidates.of_dataset(kept, network, spec["num_classes"])
        best = Selection.of(of_originals, judging.validation, min(num_models, len(kept)), select, calibrate)
        if len(kept) < num_models:
            note = f"Only {len(kept)} originals are at hand."
    report = _measured(chosen, best, judging, note)
    recorded = hub_id is None and folder is not None
    digests = fingerprint(RunFolder(folder)) if recorded and folder is not None else {}
    origin = Origin(
        pipeline=hub_id,
        revision=revision,
        weights={path: digest for path, digest in digests.items() if path.endswith(".safetensors")},
        seed=seed,
        num_inference_steps=pipe.config.default_num_inference_steps,
        num_candidates=candidates,
        select=select,
        calibrate=calibrate,
        chosen=chosen.rows,
        condition=None if condition is None else {name: str(value) for name, value in condition.items()},
        environment=environment(),
    )
    loaded = judging.task
    description = Description(
        network=dict(spec),
        num_networks=num_models,
        temperature=chosen.temperature,
        mean=list(loaded.mean),
        std=list(loaded.std),
        classes=judging.classes,
        task=Path(str(loaded.spec["dataset"])).name if hub_id_of(loaded.spec) is None else str(loaded.spec["dataset"]),
        task_hub_id=hub_id_of(loaded.spec),
        origin=origin,
        report=report,
    )
    return Ensemble(network, pool.state_dicts(chosen.rows), description)


def _measured(chosen: Selection, originals: Selection | None, judging: Judging, note: str | None) -> Report:
    test = judging.test
    ensemble = chosen.ensemble(test)
    others = {
        "one generated (best on validation)": chosen.single_best(test),
        "one generated (mean)": chosen.single_mean(test),
    }
    if originals is not None:
        others |= {
            f"ensemble of {len(originals.rows)} originals": originals.ensemble(test),
            "one original (best on validation)": originals.single_best(test),
            "one original (mean)": originals.single_mean(test),
        }
    return Report(
        num_networks=len(chosen.rows),
        num_validation=len(judging.validation),
        num_test=len(test),
        validation=chosen.ensemble(judging.validation).figures,
        test=ensemble.figures,
        uncalibrated=chosen.ensemble(test, 1.0).figures,
        beside={name: ensemble.beside(other) for name, other in others.items()},
        notes=[] if note is None else [note],
    )


def _originals(
    pipe: PDiffPipeline, dataset: CheckpointDataset | None, folder: Path | None, judging: Judging
) -> tuple[CheckpointDataset | None, str | None]:
    """The checkpoints that the pipeline was trained on, of the task that was asked for; or why there are none."""
    if dataset is None:
        there = None if folder is None else RunFolder(folder).checkpoints
        if there is None or not there.is_dir():
            return None, "No originals are at hand: give the data set that the pipeline was trained on to compare."
        dataset = CheckpointDataset.from_pretrained(there)
    if dataset.layout != pipe.autoencoder.layout:
        raise PdiffError("the originals are of another layout than the pipeline's networks; give its own data set.")
    known, _ = split_known(dataset, pipe.autoencoder)
    if judging.condition_D is None or known.conditions_KD is None:
        return known, None
    rows = (known.conditions_KD == judging.condition_D).all(dim=1).nonzero().flatten().tolist()
    if not rows:
        return None, "No original was trained for what was asked for."
    return known.select_rows(rows), None


def _seed(generator: torch.Generator) -> int | None:
    """The seed that gives the same networks again; None if numbers were drawn since it was set."""
    seed = generator.initial_seed()
    fresh = torch.Generator(generator.device).manual_seed(seed)
    return seed if torch.equal(fresh.get_state(), generator.get_state()) else None
