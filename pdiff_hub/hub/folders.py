"""What `pdiff push` and `pull` do: they tell pipelines from data sets, and push or download them."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from pdiff_hub import transfer
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.index import INDEX_NAME as DATASET_INDEX
from pdiff_hub.checkpoints.index import read_index
from pdiff_hub.ensembles import describe_ensemble
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub.kinds import Kind, dataset_index, ensemble_files, kind_of, network_files
from pdiff_hub.pipeline import PDiffPipeline
from pdiff_hub.pipeline.opening import download
from pdiff_hub.pipeline.pushing import push_saved_pipeline
from pdiff_hub.recipes import recipe_of
from pdiff_hub.records import Checkpoints, RunFolder
from pdiff_hub.records.shipped import folder_or_shipped, hint
from pdiff_hub.transfer import PushOptions, require_own, staging
from pdiff_hub.travelling.pipeline_pdiff import INDEX


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
        folder: or the name of a pipeline that comes with the package.
        checkpoints_id: as in `push_pipeline_folder`; for a pipeline only.
        append: as in `CheckpointDataset.push_to_hub`; for a data set only.
        options: private, revision, commit_message, create_pr and token, as in these two.
    """
    name, folder = str(folder), folder_or_shipped(folder) or Path(folder)
    if RunFolder(folder).index.is_file():
        if append:
            raise PdiffError(f"{folder} is a pipeline, which cannot be appended to another; append is for data sets.")
        return push_pipeline_folder(folder, repo_id, checkpoints_id=checkpoints_id, **options)
    if not (folder / DATASET_INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} is neither a pipeline (it has no {INDEX}) nor a checkpoint data set (no {DATASET_INDEX})."
            f"{hint(name)}"
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


def pull(
    repo_id: str,
    directory: str | Path,
    *,
    revision: str | None = None,
    rows: slice | Sequence[int] | None = None,
    token: str | bool | None = None,
) -> Kind:
    """Download a pipeline, a checkpoint data set, a network or an ensemble into `directory`; -> which of them it is.

    Afterwards `directory` is complete, or as it was before.

    Args:
        directory: a new folder, an empty one, or one that already holds exactly this.
        rows: only these checkpoints of a data set (0..K-1); the rest is not downloaded. None: everything, and if a
            pipeline and a data set have this name, the pipeline. With all rows come those of held-out tasks.

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
        elif kind == "network":
            _copy_files(network_files(repo_id, revision, token), staged)
        elif kind == "ensemble":
            folder = ensemble_files(repo_id, revision, token)
            describe_ensemble(folder)  # raises an error that says what is wrong with it
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
    if isinstance(rows, slice) and rows in (slice(None), slice(0, None)):
        rows = None
    if not isinstance(rows, slice):
        return CheckpointDataset.from_pretrained(repo_id, revision=revision, token=token, rows=rows)
    index = dataset_index(repo_id, revision, token)
    number = read_index(index)["num_checkpoints"]
    # One row beyond the end is enough to raise the error.
    stop = number if rows.stop is None else min(rows.stop, number + 1)
    return CheckpointDataset.from_pretrained(
        repo_id, revision=transfer.commit_of(index), token=token, rows=range(rows.start or 0, stop)
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
