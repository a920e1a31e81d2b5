"""Pushes a pipeline to the Hub: weights, configuration, code, measurements and a card, in one commit."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack

import yaml
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME

from pdiff_hub.evaluation.results_page import write_results_page
from pdiff_hub.pipeline.card import render_card
from pdiff_hub.pipeline.facts import facts_of
from pdiff_hub.pipeline.public import public
from pdiff_hub.records import Checkpoints, Results, RunFolder
from pdiff_hub.records.components import weight_files
from pdiff_hub.records.fingerprint import config_files
from pdiff_hub.records.run_folder import SOURCES
from pdiff_hub.records.yaml_files import read_yaml
from pdiff_hub.safe_files import read_json, write_json
from pdiff_hub.transfer import Pushed, PushOptions, push_files, require_own, temporary_folder
from pdiff_hub.travelling import conditioner, param_autoencoder, pipeline_pdiff
from pdiff_hub.travelling.pipeline_pdiff import (
    AUTOENCODER_CODE,
    COMPONENTS,
    CONDITIONER,
    CONDITIONER_CODE,
    PIPELINE_CODE,
    PDiffPipeline,
)

_CODE = {PIPELINE_CODE: pipeline_pdiff.__file__, AUTOENCODER_CODE: param_autoencoder.__file__}
_CONDITIONAL_CODE = {**_CODE, CONDITIONER_CODE: conditioner.__file__}


def push_pipeline(pipe: PDiffPipeline, repo_id: str, **options: Unpack[PushOptions]) -> Pushed:
    """Saves a pipeline and pushes it; options as in `PDiffPipeline.push_to_hub`."""
    with temporary_folder("pdiff-pipeline") as folder:
        pipe.save_pretrained(folder)
        return push_saved_pipeline(pipe, RunFolder(folder), repo_id, **options)


def push_saved_pipeline(
    pipe: PDiffPipeline,
    folder: RunFolder,
    repo_id: str,
    *,
    checkpoints: Checkpoints | None = None,
    recipe: dict[str, Any] | None = None,
    **options: Unpack[PushOptions],
) -> Pushed:
    """Pushes the pipeline in `folder`; `pipe` is this pipeline, opened. The folder is not changed.

    Args:
        checkpoints: the data set that results and card name as the training data. None keeps what the results name.
        recipe: the whole recipe, for the card of a pipeline without results. None takes its recipe.yaml.
        options: as in `PDiffPipeline.push_to_hub`.
    """
    ours = RunFolder(Path())
    # An earlier pipeline in the same repository may have files that this one has not.
    replaces = [f"{name}/*" for name in (*COMPONENTS, CONDITIONER)]
    replaces += [str(file) for file in (ours.recipe, ours.results, ours.networks, ours.report, *ours.pictures())]
    replaces.append(f"{SOURCES}/*")
    options.setdefault("commit_message", "Upload pipeline")
    with temporary_folder("pdiff-push") as made:
        files = _described(pipe, folder, repo_id, checkpoints, recipe, RunFolder(made))
        return push_files(files, repo_id, repo_type="model", replaces=replaces, **options)


def _described(
    pipe: PDiffPipeline,
    folder: RunFolder,
    repo_id: str,
    checkpoints: Checkpoints | None,
    recipe: dict[str, Any] | None,
    made: RunFolder,
) -> dict[str, Path]:
    """Path in the repository -> file. Files of `folder` that not everyone may see are written anew into `made`."""
    files = _shown(folder, made)
    hidden = any(file.parent == made.path for file in files.values())
    if folder.results.is_file():
        content = read_json(files[made.results.name])
        results = Results.from_dict(content, str(folder.results))
        if checkpoints is not None:
            results = replace(results, facts=replace(results.facts, checkpoints=checkpoints))
            write_json(made.results, {**content, "checkpoints": asdict(checkpoints)})
            files[made.results.name] = made.results
    else:
        name = repo_id.split("/")[-1]
        recipe = recipe or folder.read_recipe()
        facts = Results(facts_of(pipe, name=name, recipe=recipe, checkpoints=checkpoints))
        results = Results.from_dict(public(facts.to_dict()))
    if hidden and made.report.name in files:
        # The folder's report shows what was hidden, so it is written anew from the public results and the pictures.
        del files[made.report.name]
        if results.environment:
            for picture in {each.name for each in made.pictures()} & files.keys():
                shutil.copyfile(files[picture], made.path / picture)
            files[made.report.name] = write_results_page(results, made)
    made.card.write_text(render_card(results, repo_id=repo_id, files=files), encoding="utf-8")
    code = _CODE if pipe.conditions is None else _CONDITIONAL_CODE
    return {**files, made.card.name: made.card, **{path: Path(source) for path, source in code.items()}}


def _shown(folder: RunFolder, made: RunFolder) -> dict[str, Path]:
    """Path in the repository -> file. Files with paths of this machine are written anew into `made`, without them."""
    known = [folder.index, *config_files(folder.path), folder.recipe, folder.results, folder.networks, folder.report]
    known += [*folder.pictures(), *folder.sources()]
    for name in (*COMPONENTS[:2], *([CONDITIONER] if (folder.path / CONDITIONER).is_dir() else [])):
        known += [*weight_files(folder.path / name), folder.path / name / SAFE_WEIGHTS_INDEX_NAME]
    there = [require_own(file, folder.path) for file in known if file.exists()]
    files = {file.relative_to(folder.path).as_posix(): file for file in there}
    for path, file in list(files.items()):
        if file.suffix in (".json", ".yaml"):
            found = read_json(file) if file.suffix == ".json" else read_yaml(file)
            if (shown := public(found)) != found:
                text = json.dumps(shown, indent=2) if file.suffix == ".json" else yaml.safe_dump(shown, sort_keys=False)
                files[path] = made.path / path.replace("/", "-")
                files[path].write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return files
