"""`Ensemble`: several networks as one module, saved, opened and published as one.

    config.json          `Description`: network, temperature, normalisation, classes, origin, what was measured
    model.safetensors    the stacked weights, under the network's own names: [M, *shape], or [*shape] if all share it
    README.md            the card

Shapes: M networks, N images, c classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pdiff_hub.checkpoints.index import INDEX_NAME
from pdiff_hub.ensembles.card import render_ensemble_card
from pdiff_hub.ensembles.choosing import temperature_of, tempered
from pdiff_hub.ensembles.description import CONFIG, KIND, WEIGHTS, Description
from pdiff_hub.ensembles.figures import Report
from pdiff_hub.ensembles.opening import is_ensemble, network_beside
from pdiff_hub.errors import PdiffError, require, require_known
from pdiff_hub.exporting import ONNX, TORCH_EXPORT, Usage, format_of, write_program
from pdiff_hub.networks import build_network
from pdiff_hub.networks.stacked import StackedNetworks, mean_log
from pdiff_hub.records import NetworksFolder, RunFolder
from pdiff_hub.safe_files import replacing, write_safetensors
from pdiff_hub.safe_files.tensors import read_tensors, require_finite
from pdiff_hub.tasks import Task
from pdiff_hub.transfer import PushOptions, folder_of_model, is_repo_id, list_files, push_files, temporary_folder
from pdiff_hub.travelling.pipeline_pdiff import INDEX

_CARD = RunFolder(Path()).card.name
_IMAGES = 256
# Files that an earlier network of another kind may have left in the same repository.
_NETWORK = NetworksFolder(Path()).origin.name
_REPLACES = (CONFIG, "preprocessor_config.json", _NETWORK, "model*.safetensors", "model.safetensors.index.json")


class Ensemble(nn.Module):
    """Several networks that answer with the mean of their probabilities: made by `PDiffPipeline.ensemble`.

    A call takes float images [N, C, H, W], normalised (`ensemble.inputs` makes them of pixels), and gives float32
    [N, c]: logarithms of probabilities, so that `argmax` gives the class and `softmax` or `exp` the probabilities.

    Attributes:
        networks: the `StackedNetworks`; `networks.state_dicts()` gives the single networks.
        description: a `Description`: network, temperature, normalisation, classes, origin.
    """

    def __init__(self, network: nn.Module, states: Any, description: Description):
        """network, states: as in `StackedNetworks`."""
        super().__init__()
        side = description.network["image_size"]
        self.description = description
        self.networks = StackedNetworks(network, states, (description.network["in_channels"], side, side))
        self._dtypes = {name: tensor.dtype for name, tensor in self.networks.stacked_state().items()}
        require(
            self.networks.num_networks == description.num_networks,
            "the number of networks",
            self.networks.num_networks,
            f"{description.num_networks}, as described",
        )
        self.eval()

    @classmethod
    def from_networks(
        cls,
        network: Mapping[str, Any],
        state_dicts: Iterable[Mapping[str, Tensor]],
        *,
        task: Task | None = None,
        calibrate: bool = True,
        trust_remote_code: bool = False,
    ) -> Ensemble:
        """An ensemble of networks that you have, such as `out.state_dicts` of a call or a fit. All of them are taken.

        Args:
            network: the complete spec, such as `pipe.autoencoder.config.network`.
            task: whose normalisation and classes are kept with the ensemble; None: they are unknown.
            calibrate: set the temperature by the task's validation split. Without a task it is 1.
            trust_remote_code: whether a function that the spec names may be called.

        Raises:
            ValueError: no networks, or tensors that do not fit the network; a task of other classes.
        """
        require(isinstance(network, Mapping), "network", network, "a spec, such as pipe.autoencoder.config.network")
        require(task is None or isinstance(task, Task), "task", task, "what load_task gives")
        spec, state_dicts = dict(network), list(state_dicts)
        for state in state_dicts:
            for name, tensor in state.items():
                require(bool(tensor.isfinite().all()), f"tensor {name!r}", "not finite", "finite numbers")
        built = build_network(spec, pretrained=False, allow_factory=trust_remote_code)
        if task is None:
            return cls(built, state_dicts, Description(spec, len(state_dicts)))
        require(task.num_classes == spec["num_classes"], "the task's classes", task.num_classes, spec["num_classes"])
        names = task.spec.get("resolved", {}).get("classes")
        known: dict[str, Any] = {
            "mean": list(task.mean),
            "std": list(task.std),
            "classes": names if names and len(names) == task.num_classes else None,
            "task": Path(str(task.spec["dataset"])).name,
        }
        raw = cls(built, state_dicts, Description(spec, len(state_dicts), **known))
        if not calibrate or len(task.validation) == 0:
            return raw
        split = task.validation
        with torch.no_grad():
            parts = [raw(task.inputs(split, slice(n, n + _IMAGES))) for n in range(0, len(split), _IMAGES)]
        temperature = temperature_of(torch.cat(parts)[None], split.labels_N)
        return cls(built, state_dicts, Description(spec, len(state_dicts), temperature, **known))

    @property
    def report(self) -> Report | None:
        """What was measured; None if nothing was. `print(ensemble.report)` begins with the verdict."""
        return self.description.report

    @property
    def temperature(self) -> float:
        return self.description.temperature

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return tempered(mean_log(self.networks(images_NCHW).log_softmax(dim=-1)), self.temperature)

    def inputs(self, pixels_NCHW: Tensor) -> Tensor:
        """Pixels from 0 to 255, [N, C, H, W] -> the normalised images that a call takes. ValueError if unknown how."""
        mean, std = self.description.mean, self.description.std
        if mean is None or std is None:
            raise PdiffError("how images are normalised for this ensemble is not known: normalise them yourself.")
        shape = (-1, 1, 1)
        scaled = pixels_NCHW.to(torch.float32) / 255
        mean_C11, std_C11 = (torch.tensor(each, device=scaled.device).view(shape) for each in (mean, std))
        return (scaled - mean_C11) / std_C11

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, repo_id: str | None = None) -> None:
        """Write the ensemble, with its card, into a folder. repo_id: the card's name of it.

        Numbers are of the network's own types, also after `half()` or `double()`: others could not be opened.
        """
        directory = Path(save_directory)
        if directory.exists() and not directory.is_dir():
            raise PdiffError(f"{directory} is a file; give a folder to save the ensemble in.")
        if (directory / INDEX).is_file():
            raise PdiffError(f"{directory} holds a pipeline; give the ensemble a folder of its own.")
        if (directory / INDEX_NAME).is_file():
            raise PdiffError(f"{directory} holds a data set of checkpoints; give the ensemble a folder of its own.")
        if (directory / CONFIG).is_file() and not is_ensemble(directory):
            raise PdiffError(
                f"{directory / CONFIG} is of something else than an ensemble, which would be overwritten with its "
                "weights; give the ensemble a folder of its own."
            )
        if (directory / _CARD).is_file() and not (directory / CONFIG).is_file():
            raise PdiffError(
                f"{directory} has a {_CARD} and no ensemble, so its card would be written over it; give the ensemble a "
                "folder of its own."
            )
        directory.mkdir(parents=True, exist_ok=True)
        stacked = {name: tensor.to(self._dtypes[name]) for name, tensor in self.networks.stacked_state().items()}
        card = render_ensemble_card(self.description, stacked, repo_id or directory.name)
        (directory / CONFIG).unlink(missing_ok=True)  # of an earlier ensemble, whose weights are replaced first
        write_safetensors(directory / WEIGHTS, stacked, {"format": "pt"})
        with replacing(directory / _CARD) as temporary:
            temporary.write_text(card, encoding="utf-8")
        self.description.write(directory / CONFIG)

    def export(self, file: str | os.PathLike[str], format: str | None = None) -> Path:
        """Write the ensemble as a program for torch alone, or for an ONNX runtime; -> the file.

        The program takes pixels, uint8 [N, C, H, W] of 0 to 255, normalises them itself and gives what a call gives.

        Args:
            file: is replaced; nothing is written if the exporter refuses.
            format: "torch-export" or "onnx" (needs the extra `export`); None goes by the suffix, .pt2 or .onnx.

        Raises:
            ValueError: for another format or suffix, a missing package, a network whose computation no file can hold,
                an ensemble whose normalisation is not known.
        """
        file, known = Path(file), self.description
        format = format or format_of(file)
        require_known("format of a program", [format], [TORCH_EXPORT, ONNX])
        usage = Usage(
            known.network,
            None if known.mean is None else tuple(known.mean),
            None if known.std is None else tuple(known.std),
            None if known.classes is None else tuple(known.classes),
            None,
        )
        facts = usage.to_dict(format, known.num_networks) | {
            "temperature": known.temperature,
            "origin": None if known.origin is None else asdict(known.origin),
        }
        write_program(self, usage, file, facts, format=format)
        return file

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> Ensemble:
        """Open an ensemble (a Hub id or a folder) in eval mode, on the CPU.

        Args:
            revision, token, cache_dir, local_files_only: as in `PDiffPipeline.from_pretrained`.
            trust_remote_code: whether a function that the repository names may be imported and called to build the
                network. Networks that the package knows by name never need it.

        Raises:
            ValueError: no ensemble, a newer format, a function that is not trusted, weights that are not safetensors,
                not finite or do not fit the network.
            PermissionError, FileNotFoundError, ConnectionError: as `pdiff_hub.transfer.pull` raises them.
        """
        name = os.fspath(pretrained_model_name_or_path)
        folder = folder_of_model(
            name,
            KIND,
            [CONFIG, WEIGHTS],
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        description = Description.read(folder / CONFIG, name)
        network = network_beside(folder / WEIGHTS, description, name, trust_remote_code=trust_remote_code)
        states = read_tensors(folder / WEIGHTS)
        require_finite(folder / WEIGHTS, states)
        return cls(network, states, description)

    def push_to_hub(self, repo_id: str, **options: Unpack[PushOptions]) -> str:
        """Publish the ensemble in one commit; -> the commit's URL.

        Args:
            repo_id: "owner/name"; made if it does not exist. It must not hold a pipeline.
            options: private, revision, commit_message, create_pr, token, as in `PDiffPipeline.push_to_hub`.

        Errors as `pdiff_hub.transfer.push_files` raises them.
        """
        if "/" not in repo_id or not is_repo_id(repo_id):
            raise PdiffError(f"cannot publish an ensemble as {repo_id!r}; expected owner/name.")
        with suppress(FileNotFoundError):  # usually it does not exist yet
            revision, token = options.get("revision"), options.get("token")
            if INDEX in list_files(repo_id, repo_type="model", revision=revision, token=token)[1]:
                raise PdiffError(f"{repo_id} holds a pipeline; give the ensemble a repository of its own.")
        options.setdefault("commit_message", "Upload ensemble")
        with temporary_folder("pdiff-ensemble") as directory:
            self.save_pretrained(directory, repo_id=repo_id)
            files = {file.name: file for file in directory.iterdir() if file.is_file()}
            pushed = push_files(files, repo_id, repo_type="model", replaces=_REPLACES, **options)
        return pushed.url

    def extra_repr(self) -> str:
        spec = self.description.network
        return f"{self.description.num_networks} x {spec['name']}, temperature={self.temperature:.3g}"
