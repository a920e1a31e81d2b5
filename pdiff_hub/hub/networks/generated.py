"""`GeneratedNetwork` opens a published network that is no transformers architecture. Its files are written here, too.

    config.json          `network`, the spec that `build_network` takes, and `format_version`
    model.safetensors    the network's state dict, under its own names

Safetensors only: weights in a pickle could run code when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import NETWORK_NAMES, build_network, logits
from pdiff_hub.networks.beside import require_bounded, sketch
from pdiff_hub.safe_files import read_json, write_json, write_safetensors
from pdiff_hub.safe_files.checking import require_version
from pdiff_hub.safe_files.tensors import read_metadata, read_tensors, require_finite, require_weights
from pdiff_hub.transfer import folder_of_model

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT_VERSION = 1
_HEADER = {"format": "pt"}


class GeneratedNetwork(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="pdiff-hub",
    pipeline_tag="image-classification",
    tags=["generated-network", "pdiff-hub"],
):
    """A published network; a call gives logits [B, num_classes] for images [B, in_channels, image_size, image_size].

    Attributes:
        spec: the spec that `build_network` takes.
        network: the plain network. `model.safetensors` holds its state dict, so that
            `build_network(spec).load_state_dict(load_file("model.safetensors"), strict=True)` works as well.
        header: the metadata of `model.safetensors`, kept as it is when the network is saved.
    """

    def __init__(self, spec: dict[str, Any], network: nn.Module, header: Mapping[str, str] = _HEADER):
        super().__init__()
        self.spec, self.network, self.header = spec, network, dict(header)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return logits(self.network(images_BCHW))

    def _save_pretrained(self, save_directory: Path) -> None:
        write_generated_network(save_directory, self.spec, self.network.state_dict(), self.header)

    # Replaces the mixin's method, which takes any constructor argument from config.json and falls back to a pickle.
    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> GeneratedNetwork:
        """Open a published network (a Hub id or a folder) in eval mode, on the CPU.

        Args:
            revision, token, cache_dir, local_files_only: as in `PDiffPipeline.from_pretrained`.
            trust_remote_code: whether a function that the repository names may be imported and called to build the
                network. Networks that the package knows by name never need it.

        Raises:
            ValueError: no generated network, a newer format, a function that is not trusted, weights that are not
                safetensors or do not fit the network.

        Others as `pdiff_hub.transfer.pull` raises them.
        """
        name = str(pretrained_model_name_or_path)
        folder = folder_of_model(
            name,
            "generated network",
            [CONFIG, WEIGHTS],
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        spec = _read_spec(folder / CONFIG, name)
        state = _read_weights(folder / WEIGHTS, name)
        if spec["name"] in NETWORK_NAMES:
            where = f"{name}: its {CONFIG}"
            require_bounded(spec, {key: tensor.shape for key, tensor in state.items()}, where)
            _require_fit(sketch(spec, where, len(state)), state, name)
        network = build_network(spec, pretrained=False, allow_factory=trust_remote_code)
        _require_fit(network, state, name)
        _require_numbers(folder / WEIGHTS, network, state)
        network.load_state_dict(state, strict=True)
        return cls(spec, network, read_metadata(folder / WEIGHTS)).eval()


def write_generated_network(
    directory: Path, spec: Mapping[str, Any], state: Mapping[str, Tensor], header: Mapping[str, str]
) -> None:
    """Write `config.json` and `model.safetensors` of a network with that spec and state dict into `directory`."""
    write_json(directory / CONFIG, {"format_version": FORMAT_VERSION, "network": dict(spec)})
    write_safetensors(directory / WEIGHTS, state, header)


def _read_spec(file: Path, name: str) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{name} is no generated network: it has no {CONFIG}. `push_network` publishes one.")
    try:
        config = read_json(file)
    except PdiffError as error:
        raise PdiffError(f"{name} is no generated network: {error}") from error
    if "model_type" in config:
        raise PdiffError(
            f"{name} is a network of transformers: open it with "
            "transformers.AutoModelForImageClassification.from_pretrained."
        )
    version, spec = config.get("format_version"), config.get("network")
    if type(version) is int:
        require_version(version, FORMAT_VERSION, name)
    if type(version) is not int or not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise PdiffError(
            f"{name} is no generated network: expected its {CONFIG} to hold a format_version and a network with a name."
        )
    return spec


def _read_weights(file: Path, name: str) -> dict[str, Tensor]:
    require_weights(file, name)
    return read_tensors(file)


def _require_numbers(file: Path, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """PdiffError if a number is NaN, or infinite in what is trained; a mask may hold infinities."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    require_finite(
        file,
        {
            name: tensor if name in trained else tensor.nan_to_num(nan=math.nan, posinf=0, neginf=0)
            for name, tensor in state.items()
        },
    )


def _require_fit(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    expected = network.state_dict()
    for tensor in sorted({*expected, *state}):
        what = [
            f"{each[tensor].dtype} {list(each[tensor].shape)}".removeprefix("torch.") if tensor in each else "none"
            for each in (state, expected)
        ]
        if what[0] != what[1]:
            raise PdiffError(
                f"{name}: its {WEIGHTS} does not fit the network in its {CONFIG}: tensor {tensor!r} is "
                f"{what[0]}, expected {what[1]}."
            )
