"""The network of an ensemble's files, once it is known that the weights beside fit it; and what they say of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from pdiff_hub.ensembles.description import CONFIG, KIND, WEIGHTS, Description
from pdiff_hub.errors import PdiffError, printable
from pdiff_hub.networks import NETWORK_NAMES, build_network
from pdiff_hub.networks.beside import require_bounded, sketch
from pdiff_hub.safe_files import read_json
from pdiff_hub.safe_files.tensors import Stored, read_header, require_weights
from pdiff_hub.transfer import folder_of_model


def network_beside(file: Path, description: Description, name: str, *, trust_remote_code: bool) -> nn.Module:
    """The network, not loaded; ValueError unless `file` holds its tensors, stacked. Sizes are compared before anything
    is built, and no number is read."""
    require_weights(file, name)
    stored, spec, where = read_header(file), description.network, f"{name}: its {CONFIG}"
    if spec["name"] in NETWORK_NAMES:
        # Whether a tensor is of one network or of all is not known before the network is, so either may be meant.
        shapes = {key: each.shape for key, each in stored.items()}
        shapes |= {f"one of {key}": shape[1:] for key, shape in shapes.items() if len(shape) > 1}
        require_bounded(spec, shapes, where)
        _require_fit(sketch(spec, where, len(stored)), stored, description.num_networks, name)
    network = build_network(spec, pretrained=False, allow_factory=trust_remote_code)
    _require_fit(network, stored, description.num_networks, name)
    return network


def is_ensemble(folder: Path) -> bool:
    """Whether there is an ensemble in a folder, by what its configuration says of itself."""
    try:
        return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("kind") == KIND
    except PdiffError:
        return False


def describe_ensemble(path_or_id: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> str:
    """A few lines about the ensemble in a folder or on the Hub; its weights are not read, and nothing is built.

    Raises:
        ValueError, FileNotFoundError: it is no ensemble, or its configuration is damaged.
    """
    name = str(path_or_id)
    folder = folder_of_model(name, KIND, [CONFIG], revision=revision, token=token)
    known = Description.read(folder / CONFIG, name)
    task = "" if known.task is None else f" for {known.task}"
    lines = [
        f"ensemble: {known.num_networks} {known.network['name']} networks{task}, temperature {known.temperature:.3g}"
    ]
    if (origin := known.origin) is not None:
        how = "as they came" if origin.select is None else f"chosen by {origin.select}"
        lines.append(
            f"{how}, out of {origin.num_candidates} that {origin.pipeline or 'a local pipeline'} generated"
            + ("" if origin.seed is None else f" from seed {origin.seed}")
        )
    lines = [printable(line) for line in lines]
    if known.report is not None:
        lines += ["", *(printable(line) for line in str(known.report).split("\n"))]
    return "\n".join(lines)


def _require_fit(network: nn.Module, stored: Mapping[str, Stored], number: int, name: str) -> None:
    expected = network.state_dict()
    for tensor in sorted({*expected, *stored}):
        found = "none" if tensor not in stored else str(stored[tensor])
        one = None if tensor not in expected else Stored(expected[tensor].dtype, tuple(expected[tensor].shape))
        allowed = ["none"] if one is None else [str(one), str(Stored(one.dtype, (number, *one.shape)))]
        if found not in allowed:
            raise PdiffError(
                f"{name}: its {WEIGHTS} does not fit the network in its {CONFIG}: tensor {tensor!r} is {found}, "
                f"expected {' or '.join(allowed)}."
            )
