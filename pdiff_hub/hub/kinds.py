"""Which kind of thing a folder or a Hub repository holds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pdiff_hub import transfer
from pdiff_hub.checkpoints.index import INDEX_NAME as DATASET_INDEX
from pdiff_hub.errors import PdiffError
from pdiff_hub.hub.networks.generated import CONFIG
from pdiff_hub.records import NetworksFolder, RunFolder
from pdiff_hub.records.shipped import hint
from pdiff_hub.travelling.pipeline_pdiff import INDEX

Kind = Literal["pipeline", "data set", "network"]


_NETWORK = NetworksFolder(Path()).origin.name
_NETWORK_FILES = (
    *(_NETWORK, CONFIG, "model*.safetensors", "model.safetensors.index.json", "preprocessor_config.json"),
    *("model.pt2", "model.onnx"),
)


def kind_of(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Kind:
    """Whether a repository on the Hub is a pipeline, a data set or one generated network. If several: the model.

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
        found.append(f"{'model repository' if repo_type == 'model' else 'data set'} without {index}")
    if not found and failure is not None:
        raise type(failure)(f"{failure}{hint(repo_id)}") from None
    raise PdiffError(
        f"{repo_id!r} is neither a pipeline nor a checkpoint data set of this package: it is a {' and a '.join(found)}."
    )


def kind_of_folder(folder: Path) -> Kind:
    """Which kind a folder holds, as `kind_of` says of a repository; FileNotFoundError if it is none."""
    if (folder / INDEX).is_file():
        return "pipeline"
    if (folder / DATASET_INDEX).is_file():
        return "data set"
    if (folder / _NETWORK).is_file() or next(NetworksFolder(folder).networks(), None) is not None:
        return "network"
    raise FileNotFoundError(
        f"{folder} holds no pipeline (it has no {INDEX}), no checkpoint data set (no {DATASET_INDEX}) and no generated "
        f"networks (no {_NETWORK})."
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
    return transfer.pull(
        repo_id,
        repo_type="model",
        what="generated network",
        required=_NETWORK,
        revision=revision,
        token=token,
        allow_patterns=[*_NETWORK_FILES, RunFolder(Path()).card.name],
    )
