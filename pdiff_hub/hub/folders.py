"""What `pdiff push`, `pull` and `info` do: they tell pipelines from data sets, and push, download or describe them."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from pdiff_hub import transfer
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.index import INDEX_NAME as DATASET_INDEX
from pdiff_hub.checkpoints.index import read_index
from pdiff_hub.errors import PdiffError, printable
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.pipeline.opening import download
from pdiff_hub.pipeline.pushing import push_saved_pipeline
from pdiff_hub.recipes import recipe_of
from pdiff_hub.records import Checkpoints, Results, RunFolder
from pdiff_hub.tasks.normalization import shown
from pdiff_hub.transfer import PushOptions, require_own, staging
from pdiff_hub.travelling.conditioner import ConditionSpec
from pdiff_hub.travelling.param_autoencoder import ParamLayout
from pdiff_hub.travelling.pipeline_pdiff import INDEX

Kind = Literal["pipeline", "data set"]


def kind_of(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Kind:
    """Whether a repository on the Hub is a pipeline or a data set. If both have this name: the pipeline.

    ValueError if it is neither. If there is no such repository, errors as in `pdiff_hub.transfer.list_files`.
    """
    found: list[str] = []
    failure: Exception | None = None
    kinds: tuple[tuple[Kind, Literal["model", "dataset"], str], ...] = (
        ("pipeline", "model", INDEX),
        ("data set", "dataset", DATASET_INDEX),
    )
    for kind, repo_type, index in kinds:
        try:
            _, files = transfer.list_files(repo_id, repo_type=repo_type, revision=revision, token=token)
        except (FileNotFoundError, PermissionError) as error:
            failure = failure or error
            continue
        if index in files:
            return kind
        found.append(f"{'model repository' if repo_type == 'model' else 'data set'} without {index}")
    if not found and failure is not None:
        raise failure
    raise PdiffError(
        f"{repo_id!r} is neither a pipeline nor a checkpoint data set of this package: it is a {' and a '.join(found)}."
    )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    checkpoints_id: str | None = None,
    append: bool = False,
    **options: Unpack[PushOptions],
) -> str:
    """Push the pipeline or checkpoint data set in `folder`; -> the commit's URL.

    Args:
        checkpoints_id: as in `push_pipeline_folder`; for a pipeline only.
        append: as in `CheckpointDataset.push_to_hub`; for a data set only.
        options: private, revision, commit_message, create_pr and token, as in these two.
    """
    folder = Path(folder)
    if RunFolder(folder).index.is_file():
        if append:
            raise PdiffError(f"{folder} is a pipeline, which cannot be appended to another; append is for data sets.")
        return push_pipeline_folder(folder, repo_id, checkpoints_id=checkpoints_id, **options)
    if not (folder / DATASET_INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} is neither a pipeline (it has no {INDEX}) nor a checkpoint data set (no {DATASET_INDEX})."
        )
    if checkpoints_id is not None:
        raise PdiffError(f"{folder} is a data set itself: push it to one name, without checkpoints_id.")
    return CheckpointDataset.from_pretrained(folder).push_to_hub(repo_id, append=append, **options)


def push_pipeline_folder(
    folder: str | Path, repo_id: str, *, checkpoints_id: str | None = None, **options: Unpack[PushOptions]
) -> str:
    """Push the pipeline in `folder` as `PDiffPipeline.push_to_hub` does; the folder is not changed.

    What a run keeps for itself (checkpoints, generated networks, the state of training) is not pushed.

    Args:
        checkpoints_id: push the folder's checkpoints to this data set repository first (to its branch main); the
            pipeline's results and card then name it. None: they keep the data set that the results name, if any.
        options: private, revision, commit_message, create_pr and token, as in `PDiffPipeline.push_to_hub`.

    Raises:
        FileNotFoundError, ValueError: the folder holds no pipeline, or one that is damaged; or no checkpoints.

    Others as `pdiff_hub.transfer.push_files` raises them.
    """
    place = RunFolder(Path(folder))
    if not place.path.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give the folder of a pipeline, with {INDEX}.")
    pipe = PDiffPipeline.from_pretrained(place.path)  # a pipeline that does not open here would not open from the Hub
    checkpoints = None
    if checkpoints_id is not None:
        if not place.checkpoints.is_dir():
            raise FileNotFoundError(
                f"{folder} has no {place.checkpoints.name}/, which were to become the data set {checkpoints_id!r}."
            )
        require_own(place.checkpoints / DATASET_INDEX, place.path)
        dataset = CheckpointDataset.from_pretrained(place.checkpoints)
        dataset.push_to_hub(checkpoints_id, private=options.get("private"), token=options.get("token"))
        checkpoints = Checkpoints(checkpoints_id, dataset.hub_revision)
    pushed = push_saved_pipeline(pipe, place, repo_id, checkpoints=checkpoints, recipe=recipe_of(place), **options)
    return pushed.url


def describe(
    path_or_id: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> tuple[str, Results | None]:
    """One line about the pipeline or data set in a folder or on the Hub, and the pipeline's results, if it has any."""
    folder = Path(path_or_id)
    local = folder.is_dir()
    kind = kind_of(str(path_or_id), revision=revision, token=token) if not local else None
    if kind == "pipeline" or (local and (folder / INDEX).is_file()):
        pipe = PDiffPipeline.from_pretrained(path_or_id, revision=revision, token=token)
        config: Any = pipe.autoencoder.config
        assert pipe.folder is not None
        text = printable(
            f"pipeline: {pipe.autoencoder.layout}; {config.form} autoencoder, latents {config.latent_channels} x "
            f"{config.latent_length}; {type(pipe.scheduler).__name__}, {pipe.config.default_num_inference_steps} steps"
            f"{_normalized(config.task)}"
        )
        return text + _asked(pipe.conditions), RunFolder(pipe.folder).read_results()
    index = read_index(folder if local else _dataset_index(str(path_or_id), revision, token))
    layout = ParamLayout.from_dict(index["layout"])
    spec = None if index.get("conditions") is None else ConditionSpec.from_dict(index["conditions"])
    network = index["network"].get("name", "unknown")
    text = printable(
        f"data set: {index['num_checkpoints']} checkpoints, {layout}, network {network}{_normalized(index.get('task'))}"
    )
    return text + _asked(spec), None


def _normalized(task: Any) -> str:
    """How the task's images are normalised; empty if by its training split, as usual."""
    text = shown(task) if isinstance(task, dict) else None
    return "" if text is None else f", images normalised by {text}"


def _asked(spec: ConditionSpec | None) -> str:
    """What can be asked for, with an example as the command takes it; empty if nothing can."""
    if spec is None:
        return ""
    if spec.kind in ("bits", "class"):
        what = f"{'some' if spec.kind == 'bits' else 'one'} of {', '.join(spec.names)}"
    elif spec.kind == "text":
        return "\n" + printable(f"ask for {spec.name}: the {spec.size} numbers that {spec.names[0]} gives for a text")
    else:
        spans = [f"{low:g} to {high:g}" for low, high in zip(spec.low, spec.high, strict=True)]
        names = spec.names or ("",) * len(spans)
        what = ", ".join(f"{name} {span}".strip() for name, span in zip(names, spans, strict=True))
    value = spec.example()[spec.name]
    example = ",".join(
        f"{each:g}" if isinstance(each, float) else each for each in ([value] if not isinstance(value, list) else value)
    )
    return "\n" + printable(f"ask for {spec.name}: {what} (--condition {spec.name}={example})")


def pull(
    repo_id: str,
    directory: str | Path,
    *,
    revision: str | None = None,
    rows: slice | Sequence[int] | None = None,
    token: str | bool | None = None,
) -> Kind:
    """Download a pipeline or a checkpoint data set into `directory`; -> which of the two it is.

    Afterwards `directory` is complete, or as it was before.

    Args:
        directory: a new folder, an empty one, or one that already holds exactly this.
        rows: only these checkpoints of a data set (0..K-1); the rest is not downloaded. None: everything, and if a
            pipeline and a data set have this name, the pipeline.

    Raises:
        FileExistsError: something else is in `directory`.
        ValueError: the repository is neither, a file of it is damaged, or a row does not exist.

    Others as `pdiff_hub.transfer.pull` raises them.
    """
    directory = Path(directory).absolute()
    kind: Kind = "data set" if rows is not None else kind_of(repo_id, revision=revision, token=token)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with staging(directory.parent, directory.name) as staged:
        if kind == "pipeline":
            folder = download(repo_id, revision=revision, token=token)
            PDiffPipeline.from_pretrained(folder)  # raises an error that says what is wrong with it
            _copy_files(folder, staged)
        else:
            _open_rows(repo_id, rows, revision, token).save_pretrained(staged)
        _put_in_place(staged, directory)
    return kind


def _copy_files(folder: Path, staged: Path) -> None:
    """Copies all files but code."""
    for file in folder.rglob("*"):
        if not file.is_dir() and file.suffix != ".py":
            target = staged / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(require_own(file, folder), target)


def _open_rows(
    repo_id: str, rows: slice | Sequence[int] | None, revision: str | None, token: str | bool | None
) -> CheckpointDataset:
    if not isinstance(rows, slice):
        return CheckpointDataset.from_pretrained(repo_id, revision=revision, token=token, rows=rows)
    index = _dataset_index(repo_id, revision, token)
    number = read_index(index)["num_checkpoints"]
    # One row beyond the end is enough to raise the error.
    stop = number if rows.stop is None else min(rows.stop, number + 1)
    return CheckpointDataset.from_pretrained(
        repo_id, revision=transfer.commit_of(index), token=token, rows=range(rows.start or 0, stop)
    )


def _dataset_index(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    """A folder with the index of a data set on the Hub, without its checkpoints."""
    return transfer.pull(
        repo_id,
        repo_type="dataset",
        what="checkpoint data set",
        required=DATASET_INDEX,
        revision=revision,
        token=token,
        allow_patterns=[DATASET_INDEX],
    )


def _put_in_place(staged: Path, directory: Path) -> None:
    if directory.exists():
        if not directory.is_dir() or (any(directory.iterdir()) and not _same_tree(staged, directory)):
            raise FileExistsError(f"{directory} holds something else, and was not changed: give a new folder.")
        if any(directory.iterdir()):
            return
        directory.rmdir()
    staged.rename(directory)


def _same_tree(one: Path, other: Path) -> bool:
    files = [{file.relative_to(folder) for file in folder.rglob("*") if file.is_file()} for folder in (one, other)]
    return files[0] == files[1] and all(filecmp.cmp(one / file, other / file, shallow=False) for file in files[0])
