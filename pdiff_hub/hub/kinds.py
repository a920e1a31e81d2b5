"""Which kind of thing a folder or a Hub repository holds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pdiff_hub import transfer
from pdiff_hub.checkpoints.index import INDEX_NAME as DATASET_INDEX
from pdiff_hub.ensembles import is_ensemble
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub.networks.generated import CONFIG, WEIGHTS
from pdiff_hub.records import NetworksFolder, RunFolder
from pdiff_hub.records.shipped import hint
from pdiff_hub.travelling.pipeline_pdiff import INDEX

Kind = Literal["pipeline", "data set", "network", "ensemble"]

_NETWORK = NetworksFolder(Path()).origin.name
_CARD = RunFolder(Path()).card.name
_NETWORK_FILES = (
    *(_NETWORK, CONFIG, "model*.safetensors", "model.safetensors.index.json", "preprocessor_config.json"),
    *("model.pt2", "model.onnx"),
)


def kind_of(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Kind:
    """Whether a Hub repository is a pipeline, a data set, a generated network or an ensemble. If several: the model.

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
        except ConnectionError as error:
            raise ConnectionError(f"{error}{hint(repo_id)}") from None
        if index in files:
            return kind
        if repo_type == "model" and _NETWORK in files:
            return "network"
        if repo_type == "model" and CONFIG in files and is_ensemble(_part(repo_id, CONFIG, revision, token)):
            return "ensemble"
        found.append(f"{'model repository' if repo_type == 'model' else 'data set'} without {index}")
    if not found and failure is not None:
        raise type(failure)(f"{failure}{hint(repo_id)}") from None
    raise PdiffError(
        f"{repo_id!r} is neither a pipeline nor a checkpoint data set, network or ensemble of this package: it is a "
        f"{' and a '.join(found)}."
    )


def kind_of_folder(folder: Path) -> Kind:
    """Which kind a folder holds, as `kind_of` says of a repository; FileNotFoundError if it is none."""
    if (folder / INDEX).is_file():
        return "pipeline"
    if (folder / DATASET_INDEX).is_file():
        return "data set"
    if is_ensemble(folder):
        return "ensemble"
    if (folder / _NETWORK).is_file() or next(NetworksFolder(folder).networks(), None) is not None:
        return "network"
    raise FileNotFoundError(
        f"{folder} holds no pipeline (it has no {INDEX}), no checkpoint data set (no {DATASET_INDEX}), no generated "
        f"networks (no {_NETWORK}) and no ensemble (no {CONFIG} of one)."
    )


def dataset_index(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
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


def network_files(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    """The folder, in the client's cache, of a generated network on the Hub; it has no code."""
    return _pulled(repo_id, "generated network", _NETWORK, revision, token, [*_NETWORK_FILES, _CARD])


def ensemble_files(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    """The folder, in the client's cache, of an ensemble on the Hub; it has no code."""
    return _pulled(repo_id, "ensemble", CONFIG, revision, token, [CONFIG, WEIGHTS, _CARD])


def _part(repo_id: str, file: str, revision: str | None, token: str | bool | None) -> Path:
    """A folder with one file of a model repository."""
    return _pulled(repo_id, "model", file, revision, token, [file])


def _pulled(
    repo_id: str, what: str, required: str, revision: str | None, token: str | bool | None, files: list[str]
) -> Path:
    return transfer.pull(
        repo_id,
        repo_type="model",
        what=what,
        required=required,
        revision=revision,
        token=token,
        allow_patterns=files,
    )
