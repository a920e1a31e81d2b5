"""Opens pipelines for the page, from folders beside it and from the Hub, without running code of a repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.index import INDEX_NAME
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.judging import Judge, Judged
from pdiff_hub.evaluation.known_rows import split_known
from pdiff_hub.networks.beside import build_beside
from pdiff_hub.networks.factory import search_too
from pdiff_hub.pipeline.opening import download
from pdiff_hub.records import Results, RunFolder
from pdiff_hub.records.made_here import is_trusted
from pdiff_hub.safe_files import read_json
from pdiff_hub.tasks import TASK_NAMES, load_recorded_task
from pdiff_hub.transfer import list_files

_HERE = Path(__file__).resolve().parent
# In a Space the folder of pipelines lies beside this file. In a source tree it lies at the root.
_FOLDERS = (_HERE / "pipelines", _HERE.parent.parent / "pipelines")
_INDEX = RunFolder(Path()).index.name
MOST_STEPS = 250
LEAST_ORIGINALS = 3
"""Fewer originals have no spread to compare with."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What a visitor's pipeline may take: of the disk (its files, and the images of its task each), and of time.
_MOST_BYTES, _MOST_SECONDS = 1 << 29, 120
_TRUSTED: set[Path] = set()  # folders of pipelines whose functions the owner of this page lets be called
_PULLS = ThreadPoolExecutor(4, thread_name_prefix="pull")


@dataclass(frozen=True, eq=False)
class Opened:
    """A pipeline, ready to sample from and to judge with.

    Attributes:
        name: the name to show. folder: where the pipeline lies.
        judge: judges networks of its architecture on its task.
        originals: the checkpoints that it was trained on. None where they are missing; `gone` is then a sentence that
            says what is missing.
        results: what was measured when the pipeline was made. None where nothing was measured, or where the file
            cannot be read; in the latter case `damage` is a sentence that says so.
        trusted: whether a function that the pipeline names may be called.
    """

    name: str
    folder: Path
    pipe: PDiffPipeline
    judge: Judge
    originals: CheckpointDataset | None
    gone: str
    results: Results | None
    damage: str
    trusted: bool

    @cached_property
    def judged_originals(self) -> Judged | None:
        """What the judge says of the originals, computed on first use. None where they are missing."""
        return None if self.originals is None else self.judge(self.originals.params_KP)

    @property
    def reads_digits(self) -> bool:
        """Whether its networks read 8 x 8 digits, so that they can read a drawing."""
        task = self.judge.task
        return task.spec["dataset"] == "digits" and (task.in_channels, task.image_size) == (1, 8)

    @property
    def most_steps(self) -> int:
        """The most sampling steps that the page offers."""
        return min(MOST_STEPS, int(self.pipe.scheduler.config.num_train_timesteps))

    @property
    def steps(self) -> int:
        """The number of sampling steps of a first sample."""
        return min(self.most_steps, int(self.pipe.config.default_num_inference_steps))

    @property
    def own_tasks(self) -> bool:
        """Whether each network has a task of its own on these images, so that none can be judged by their labels."""
        return self._num_answers != self.judge.task.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of its images."""
        task = self.judge.task
        return tuple(map(str, task.spec["resolved"].get("classes") or range(task.num_classes)))

    @property
    def answers(self) -> tuple[str, ...]:
        """The names of what its networks can answer."""
        if not self.own_tasks:
            return self.classes
        return ("no", "yes") if self._num_answers == 2 else tuple(map(str, range(self._num_answers)))

    @property
    def _num_answers(self) -> int:
        return int(self.pipe.autoencoder.config.network.get("num_classes", self.judge.task.num_classes))


def local_pipelines() -> dict[str, Path]:
    """Name -> folder, for the pipelines here that hold weights and not only a recipe."""
    folders = next((each for each in _FOLDERS if each.is_dir()), _FOLDERS[0])
    return {
        index.parent.name: index.parent
        for index in sorted(folders.glob(f"*/{_INDEX}"))
        if any(index.parent.glob("unet/*.safetensors"))
    }


def find_pipeline(text: str, trusted: bool = False) -> tuple[str, str]:
    """The folder and name of a pipeline that the owner of this page gives: a folder, a name, or a Hub id.

    trusted: whether a function that it names may be called.

    FileNotFoundError if it is none, and the errors of the Hub.
    """
    folder, shown = Path(text).expanduser(), Path(text).name
    if not folder.exists() and folder.parent in (Path("."), Path("pipelines")):  # as `pdiff run` finds a recipe
        folder = next((each / folder.name for each in _FOLDERS if (each / folder.name).is_dir()), folder)
    if folder.exists():
        _require_pipeline(folder)
        folder = folder.resolve()
        shown = folder.name
    else:
        folder, shown = download(text), text
    if trusted:
        _TRUSTED.add(folder.resolve())
        search_too(Path.cwd())
    return str(folder), shown


def _require_pipeline(folder: Path) -> None:
    place = RunFolder(folder)
    if place.index.is_file():
        return
    if place.recipe.is_file():
        why = f"it has a recipe and no weights; `pdiff run {folder} --output-dir DIR` makes a pipeline in DIR"
    elif (folder / INDEX_NAME).is_file():
        why = "it is a data set of checkpoints; give the folder of a pipeline that was trained on it"
    else:
        why = f"it has no {_INDEX}; give a folder that `pdiff run`, `train` or `pull` has written"
    raise FileNotFoundError(f"{folder} is no pipeline: {why}.")


def pull_pipeline(hub_id: str) -> Path:
    """Downloads the pipeline `hub_id` ("owner/name"), without its code, tries to open it, and returns the folder.

    One visitor's pipeline must not stop the page for the others. So only the files of a pipeline are downloaded, in
    another thread, and it is opened in another process first, which is ended if it takes too much memory or time.

    Raises:
        ValueError: a text that is no Hub id, because a visitor's text must never name a folder of this machine; a
            pipeline that is too large, takes too long, or cannot be opened.
        Others as `pdiff_hub.transfer.pull` raises them.
    """
    hub_id = hub_id.strip()
    if not _HUB_ID.fullmatch(hub_id) or ".." in hub_id:
        raise ValueError(f"{hub_id!r} is no Hub id; expected owner/name, such as 'user/digits-mlp3'.")
    pulled = _PULLS.submit(download, hub_id, most_bytes=_MOST_BYTES)
    try:
        folder = pulled.result(timeout=_MOST_SECONDS)
    except TimeoutError:
        if pulled.done():  # the client's own
            raise
        pulled.cancel()
        raise ValueError(f"{hub_id} was not here after {_MOST_SECONDS} seconds; try it again later.") from None
    _try_out(folder, hub_id)
    return folder


@lru_cache(maxsize=1000)
def _try_out(folder: Path, name: str) -> None:
    """Opens a pipeline, and makes a sample, in another process. Raises ValueError if that fails, for any reason."""
    _require_small_data(folder, name)
    # A Space has the package beside this file; elsewhere the process finds it where this one did.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(_HERE / "trying.py"), str(folder), name]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_MOST_SECONDS,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{name} was not open after {_MOST_SECONDS} seconds, so it is not opened here.") from None
    if done.returncode:
        said = done.stdout.strip().splitlines()[-1:]
        raise ValueError(said[0] if said else f"{name} needs more memory than there is here, or it is damaged.")


def _require_small_data(folder: Path, name: str) -> None:
    """Raises ValueError if the data of a pipeline's task lie on this machine, or are too large to be downloaded."""
    task = read_json(folder / "autoencoder" / "config.json").get("task")
    dataset = task.get("dataset") if isinstance(task, dict) else None
    if not isinstance(dataset, str) or dataset in TASK_NAMES:
        return  # known, or opening it will say what is wrong
    if not _HUB_ID.fullmatch(dataset) or ".." in dataset or Path(dataset).exists():
        raise ValueError(f"{name} is of images in {dataset!r}, which is no data set of the Hub, so it is not opened.")
    _, sizes = list_files(dataset, repo_type="dataset")
    if sum(sizes.values()) > _MOST_BYTES:
        raise ValueError(
            f"{name} is of the images of {dataset}, which have {sum(sizes.values()):,} bytes, expected at most "
            f"{_MOST_BYTES:,}; open a pipeline of smaller data here."
        )


@lru_cache(maxsize=4)
def open_pipeline(folder: Path, name: str) -> Opened:
    """Opens a pipeline folder. ValueError if it does not say its network and task; other errors are the package's."""
    pipe = PDiffPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    spec, task = pipe.autoencoder.config.network, pipe.autoencoder.config.task
    if spec is None or task is None:
        raise ValueError(f"{name} does not say which network and task it is for, so its networks cannot be judged.")
    # A name in a downloaded file must not choose a function to call; the owner of this page may, or has made it here.
    trusted = is_trusted(spec, pipe.folder, folder.resolve() in _TRUSTED)
    network = build_beside(dict(spec), pipe.autoencoder.layout, f"the network spec of {name}", allow_factory=trusted)
    judge = Judge(network, load_recorded_task(dict(task)), pipe.autoencoder.layout, pipe.autoencoder.frozen_state())
    originals, gone = _originals(folder, pipe)
    results, damage = _results(folder)
    return Opened(name, folder, pipe, judge, originals, gone, results, damage, trusted)


def _originals(folder: Path, pipe: PDiffPipeline) -> tuple[CheckpointDataset | None, str]:
    place = RunFolder(folder).checkpoints
    if not place.is_dir():
        return None, (
            f"The checkpoints that it was trained on are not here (no {place.name}/ in the pipeline's folder), so "
            "nothing is compared with them."
        )
    try:
        originals = CheckpointDataset.from_pretrained(place)
    except (ValueError, OSError) as error:
        return None, f"The checkpoints that it was trained on cannot be read, so there is no similarity: {error}"
    if originals.layout != pipe.autoencoder.layout or len(originals) < LEAST_ORIGINALS:
        return None, (
            f"{place.name}/ in the pipeline's folder holds {len(originals)} checkpoints, too few or of "
            "another network than this pipeline makes. So there is no similarity to originals."
        )
    try:
        trained_on, _ = split_known(originals, pipe.autoencoder)
    except PdiffError as error:
        return None, f"There is no similarity to originals: {error}"
    return trained_on, ""


def _results(folder: Path) -> tuple[Results | None, str]:
    try:
        return RunFolder(folder).read_results(), ""
    except PdiffError:
        return None, "The results.json of this pipeline is damaged."
