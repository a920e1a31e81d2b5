"""A pipeline to the Hub: weights, configuration, code, what was measured and a card, in one commit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.evaluate import FIGURES
from pdiff_hub.evaluation.results_page import write_results_page
from pdiff_hub.hub.pipeline_card import render_card
from pdiff_hub.hub.public import public
from pdiff_hub.pipeline.facts import RESULTS_FILE, about, read_results, recipe_of
from pdiff_hub.pipeline.opening import weight_files
from pdiff_hub.recipes import RECIPE_FILE
from pdiff_hub.runs import CHECKPOINTS
from pdiff_hub.safe_files import write_json
from pdiff_hub.transfer import push_files
from pdiff_hub.travelling import param_autoencoder, pipeline_pdiff
from pdiff_hub.travelling.pipeline_pdiff import COMPONENTS, INDEX, PDiffPipeline

_CARD, _REPORT, _NETWORKS = "README.md", "report.html", "networks.json"
_PICTURES = tuple(f"{stem}.{suffix}" for stem in FIGURES for suffix in ("png", "svg"))
_CODE = {"pipeline_pdiff.py": pipeline_pdiff.__file__, "autoencoder/param_autoencoder.py": param_autoencoder.__file__}
# What an earlier pipeline of the same repository may have had and this one has not.
_REPLACES = (*(f"{name}/*" for name in COMPONENTS), RECIPE_FILE, RESULTS_FILE, _NETWORKS, _REPORT, *_PICTURES)


def push_pipeline(
    pipe: PDiffPipeline,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload pipeline",
    create_pr: bool = False,
    token: str | bool | None = None,
) -> str:
    """`PDiffPipeline.push_to_hub`, which see."""
    with TemporaryDirectory(prefix="pdiff-pipeline-") as name:
        pipe.save_pretrained(name)
        url, commit = _push(
            pipe,
            Path(name),
            repo_id,
            None,
            private=private,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            token=token,
        )
    pipe.hub_id, pipe.hub_revision = repo_id, commit
    return url


def push_pipeline_folder(
    folder: str | Path,
    repo_id: str,
    *,
    checkpoints_id: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload pipeline",
    create_pr: bool = False,
    token: str | bool | None = None,
) -> str:
    """Push the pipeline in `folder` as `PDiffPipeline.push_to_hub` does; the folder stays as it is.

    `training/`, `generated/` and `checkpoints/`, which no one needs who uses the pipeline, stay at home.

    Args:
        checkpoints_id: push `checkpoints/` to this data set repository first (to its branch main); the pipeline's
            results and card then name it. None: they name the one that the results name already, if any.
        Others as in `PDiffPipeline.push_to_hub`.

    Raises:
        FileNotFoundError, ValueError: the folder holds no pipeline, or one that is damaged; or no checkpoints.
        Others as `pdiff_hub.push_files` raises them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give the folder of a pipeline, with {INDEX}.")
    pipe = PDiffPipeline.from_pretrained(folder)  # what does not open here would not open there
    checkpoints = None
    if checkpoints_id is not None:
        if not (folder / CHECKPOINTS).is_dir():
            raise FileNotFoundError(
                f"{folder} has no {CHECKPOINTS}/, which were to become the data set {checkpoints_id!r}."
            )
        dataset = CheckpointDataset.from_pretrained(folder / CHECKPOINTS)
        dataset.push_to_hub(checkpoints_id, private=private, token=token)
        checkpoints = {"repo_id": checkpoints_id, "revision": dataset.hub_revision}
    url, _ = _push(
        pipe,
        folder,
        repo_id,
        checkpoints,
        private=private,
        revision=revision,
        commit_message=commit_message,
        create_pr=create_pr,
        token=token,
    )
    return url


def _push(
    pipe: PDiffPipeline, folder: Path, repo_id: str, checkpoints: dict[str, str | None] | None, **options: Any
) -> tuple[str, str]:
    """Pushes the pipeline in `folder`; -> the URL and the commit."""
    with TemporaryDirectory(prefix="pdiff-push-") as name:
        files = _described(pipe, folder, repo_id, checkpoints, Path(name))
        pushed = push_files(files, repo_id, repo_type="model", replaces=_REPLACES, **options)
    return pushed.url, pushed.commit


def _described(
    pipe: PDiffPipeline, folder: Path, repo_id: str, checkpoints: dict[str, str | None] | None, made: Path
) -> dict[str, Path]:
    """Path in the repository -> file, those of `folder` where they may be seen by everyone, else written in `made`."""
    paths = [
        INDEX,
        *(f"{name}/config.json" for name in COMPONENTS[:2]),
        "scheduler/scheduler_config.json",
        RECIPE_FILE,
        RESULTS_FILE,
        _NETWORKS,
        _REPORT,
        *_PICTURES,
    ]
    for name in COMPONENTS[:2]:
        paths += [f"{name}/{file.name}" for file in weight_files(folder / name)]
        paths.append(f"{name}/diffusion_pytorch_model.safetensors.index.json")
    files = {path: folder / path for path in paths if (folder / path).is_file()}
    known = read_results(folder)
    results = known or about(
        pipe,
        pipe.autoencoder.config.network,
        pipe.autoencoder.config.task,
        name=repo_id.split("/")[-1],
        recipe=recipe_of(folder),
        checkpoints=checkpoints,
        figures=[],
    )
    results = public(results)
    changed = False
    for path, file in list(files.items()):
        if path.endswith((".json", ".yaml")):
            found = _read_yaml(file) if path.endswith(".yaml") else json.loads(file.read_text(encoding="utf-8"))
            if (shown := public(found)) != found:
                changed = True
                files[path] = made / path.replace("/", "-")
                text = yaml.safe_dump(shown, sort_keys=False) if path.endswith(".yaml") else json.dumps(shown, indent=2)
                files[path].write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    if changed and _REPORT in files:  # it tells the same; drawn from what is public, and from the pictures
        del files[_REPORT]
        if known.get("environment"):
            for path in set(_PICTURES) & files.keys():
                shutil.copyfile(files[path], made / path)
            files[_REPORT] = write_results_page(results, made, results["name"], results["recipe"])
    if known and checkpoints is not None:
        results["checkpoints"] = checkpoints
        files[RESULTS_FILE] = made / RESULTS_FILE
        write_json(files[RESULTS_FILE], results)
    files[_CARD] = made / _CARD
    files[_CARD].write_text(render_card(results, repo_id=repo_id), encoding="utf-8")
    return {**files, **{path: Path(source) for path, source in _CODE.items()}}


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PdiffError(f"{file} is no valid YAML: {error}") from error
