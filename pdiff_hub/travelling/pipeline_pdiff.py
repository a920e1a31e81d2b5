"""`PDiffPipeline`: noise -> latents -> parameters -> networks that load with `strict=True`.

This file travels to the Hub beside the weights, so it imports only the standard library, torch and diffusers.
Shapes: N networks, B of them at once, P parameters, C latent channels, L latent length, T sampling steps.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet1DModel
from diffusers.utils import BaseOutput
from torch import Tensor, nn

_MEMORY_BYTES = 512 * 2**20  # what one batch of networks may take; bounds memory, not results
_FORMAT_VERSION = 1
INDEX = "model_index.json"
COMPONENTS = ("autoencoder", "unet", "scheduler")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*-of-*.safetensors")
# What was measured and drawn, and how it was made: true of these weights only.
RECIPE = "recipe.yaml"
COMPANIONS = ("README.md", RECIPE, "results.json", "networks.json", "report.html", "*.png", "*.svg")


class SamplingError(ValueError):
    """An argument or a file is not what it must be; the message is a sentence that says what to do."""


@dataclass
class PDiffPipelineOutput(BaseOutput):  # type: ignore[misc]
    """What a call gives; fields that `output_type` leaves out are None.

    Attributes:
        params: float32 [N,P], raw weight units, on the CPU.
        state_dicts: N dicts, generated tensors and the frozen rest (shared), for `load_state_dict(strict=True)`.
        latents: float32 [N,C,L], scaled latents at the end of the reverse process, on the CPU.
        trajectory: float32 [T+1,N,C,L], latents from the noise to the end; with `return_trajectory=True`.
    """

    params: Tensor | None = None
    state_dicts: list[dict[str, Tensor]] | None = None
    latents: Tensor | None = None
    trajectory: Tensor | None = None


class PDiffPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Generates networks (Neural Network Diffusion, arXiv 2402.13144): a latent DDPM over trained parameters.

    Args:
        autoencoder: `ParamAutoencoder`; holds the layout, the frozen rest of the network and the network's spec.
        unet: the denoiser, epsilon prediction.
        scheduler: any diffusers scheduler that takes its epsilon from one model call a step.
        default_num_inference_steps: the steps that this pipeline was judged with.
        format_version: of its folder. ValueError for one that is newer than this code.

    Attributes:
        folder: where it was opened from (a copy in the cache, if that was the Hub), or None.
        hub_id, hub_revision: where on the Hub it was opened or pushed, and the commit (40 hexadecimal digits), or None.
    """

    model_cpu_offload_seq = "unet->autoencoder"

    def __init__(
        self,
        autoencoder: nn.Module,
        unet: UNet1DModel,
        scheduler: SchedulerMixin,
        default_num_inference_steps: int = 50,
        format_version: int = _FORMAT_VERSION,
    ):
        super().__init__()
        require_known_format(format_version, "this pipeline")
        self.folder: Path | None = None
        self.hub_id: str | None = None
        self.hub_revision: str | None = None
        self.register_modules(autoencoder=autoencoder, unet=unet, scheduler=scheduler)
        self.register_to_config(default_num_inference_steps=default_num_inference_steps, format_version=format_version)

    @torch.no_grad()
    def __call__(
        self,
        num_models: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "state_dict",
        latents: Tensor | None = None,
        return_trajectory: bool = False,
        callback_on_step_end: Callable[[PDiffPipeline, int, int, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        return_dict: bool = True,
        batch_size: int | None = None,
    ) -> PDiffPipelineOutput | tuple[Any, ...]:
        """Sample `num_models` networks.

        Args:
            num_models: N >= 1.
            num_inference_steps: >= 1 and at most the training steps; None means `default_num_inference_steps`.
            generator: one generator for all, or N of them. The same seed gives the same networks whatever
                `batch_size` is, to float tolerance.
            output_type: "state_dict" (also params and latents), "params" (also latents) or "latent".
            latents: float [N,C,L] noise to begin with, instead of drawing it; sets N.
            return_trajectory: keep the latents after every step.
            callback_on_step_end: called as `callback(pipe, step_index, timestep, {"latents": ...})` in every batch;
                may return a dict with changed "latents".
            return_dict: False gives the tuple of the fields that are not None.
            batch_size: networks at once; None chooses it so that memory stays bounded.

        Raises:
            ValueError: for any argument out of range, before work begins.
        """
        steps = self.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        shape = (self.autoencoder.config.latent_channels, self.autoencoder.config.latent_length)
        num_models = self._check(num_models, steps, generator, output_type, latents, batch_size, shape)
        device = self._execution_device
        noise, step_generators = self._noise(num_models, shape, generator, latents)
        batch = batch_size or self.default_batch_size(output_type)
        ends, paths = [], []
        wanted = output_type != "latent"
        params_NP = torch.empty(num_models, self.autoencoder.layout.num_params) if wanted else None
        with self.progress_bar(total=steps * -(-num_models // batch)) as bar:
            for start in range(0, num_models, batch):
                one = slice(start, min(start + batch, num_models))
                path = self._denoise(
                    noise[one].to(device), steps, step_generators[one], callback_on_step_end, return_trajectory, bar
                )
                ends.append(path[-1].cpu())
                if return_trajectory:
                    paths.append(torch.stack(path).cpu())
                if params_NP is not None:
                    params_NP[one] = self.autoencoder.decode(path[-1].to(self.autoencoder.device))
        self.maybe_free_model_hooks()
        output = PDiffPipelineOutput(
            params=params_NP,
            latents=torch.cat(ends),
            trajectory=torch.cat(paths, dim=1) if paths else None,
        )
        if output_type == "state_dict":
            output.state_dicts = self.autoencoder.state_dicts(output.params)
        return output if return_dict else output.to_tuple()

    def _check(
        self,
        num_models: int,
        steps: int,
        generator: Any,
        output_type: str,
        latents: Tensor | None,
        batch_size: int | None,
        shape: tuple[int, int],
    ) -> int:
        if output_type not in ("state_dict", "params", "latent"):
            raise SamplingError(f"output_type is {output_type!r}, expected 'state_dict', 'params' or 'latent'.")
        for name, value in (("num_models", num_models), ("num_inference_steps", steps), ("batch_size", batch_size)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise SamplingError(f"{name} is {value!r}, expected an integer of at least 1.")
        most = self.scheduler.config.num_train_timesteps
        if steps > most:
            raise SamplingError(f"num_inference_steps is {steps}, expected at most the {most} steps trained with.")
        if latents is not None:
            if not isinstance(latents, Tensor) or latents.ndim != 3 or tuple(latents.shape[1:]) != shape:
                found = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
                raise SamplingError(f"latents have shape {found}, expected [num_models, {shape[0]}, {shape[1]}].")
            if num_models not in (1, len(latents)) or len(latents) == 0:
                raise SamplingError(f"latents are given for {len(latents)} models, but num_models is {num_models}.")
            num_models = len(latents)
        if isinstance(generator, Sequence) and len(generator) != num_models:
            raise SamplingError(f"generator is a list of {len(generator)}, expected one for each of {num_models}.")
        return num_models

    def _noise(
        self, num_models: int, shape: tuple[int, int], generator: Any, latents: Tensor | None
    ) -> tuple[Tensor, list[torch.Generator]]:
        """The first latents [N,C,L] and a generator a network for the noise of stochastic steps.

        Everything is drawn before the first batch, so that the batch size cannot change what a network gets.
        """
        if isinstance(generator, Sequence):
            each = list(generator)
            noise = [torch.randn(shape, generator=g, device=g.device).cpu() for g in each] if latents is None else []
            return (torch.stack(noise) if latents is None else latents), each
        device = generator.device if generator is not None else torch.device("cpu")
        if latents is None:
            latents = torch.randn((num_models, *shape), generator=generator, device=device).cpu()
        seeds = torch.randint(2**62, (num_models,), generator=generator, device=device).tolist()
        return latents, [torch.Generator().manual_seed(seed) for seed in seeds]

    def _denoise(
        self, sample: Tensor, steps: int, generators: list[torch.Generator], callback: Any, keep: bool, bar: Any
    ) -> list[Tensor]:
        # The scheduler's own numbers stay on the CPU, where it looks them up; the U-Net's are on the device: nothing
        # has to come back from it within a step.
        self.scheduler.set_timesteps(steps)
        timesteps = self.scheduler.timesteps
        on_device = timesteps.to(sample.device)
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {"generator": generators} if "generator" in accepted else {}
        sample = sample.to(self.unet.dtype) * self.scheduler.init_noise_sigma
        path = [sample]
        for index, timestep in enumerate(timesteps):
            model_input = self.scheduler.scale_model_input(sample, timestep)
            epsilon = self.unet(model_input, on_device[index].expand(len(sample))).sample
            sample = self.scheduler.step(epsilon, timestep, sample, **options).prev_sample
            if callback is not None:
                sample = (callback(self, index, int(timestep), {"latents": sample}) or {}).get("latents", sample)
            path = [*path, sample] if keep else [sample]
            bar.update()
        return path

    def default_batch_size(self, output_type: str = "state_dict") -> int:
        """Networks that a call makes at once, so that memory stays bounded."""
        # The U-Net keeps about 16 activations of its widest level; a decoded network costs two copies of P numbers.
        config = self.autoencoder.config
        numbers = 16 * max(self.unet.config.block_out_channels) * config.latent_length
        if output_type != "latent":
            numbers += 2 * self.autoencoder.layout.num_params
        return max(1, min(256, _MEMORY_BYTES // (4 * numbers)))

    def decode_latents(self, latents_BCL: Tensor) -> Tensor:
        """Scaled latents [B,C,L], e.g. a step of a trajectory -> raw parameters float32 [B,P]."""
        with torch.no_grad():
            return self.autoencoder.decode(latents_BCL.to(self.autoencoder.device)).float().cpu()

    def build_network(self, state_dict: dict[str, Tensor] | None = None, trust_remote_code: bool = False) -> nn.Module:
        """The target network in eval mode, holding `state_dict` if given. Needs the pdiff_hub package.

        Only networks that the package knows by name are built, so that a pipeline from somewhere else cannot make this
        call import and run anything; `trust_remote_code=True` also calls the function that the pipeline names.
        """
        spec = self.autoencoder.config.network
        if spec is None:
            raise SamplingError(
                "this pipeline does not say which network it generates; build it yourself and load "
                "out.state_dicts[0] into it."
            )
        network: nn.Module = _room("networks").build_network(
            dict(spec), pretrained=False, allow_factory=trust_remote_code
        )
        if state_dict is not None:
            network.load_state_dict(state_dict, strict=True)
        return network.eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the pipeline as a folder that is shaped as its Hub repository, code included.

        The index names the two code files, so that `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`
        opens it without this package; no path of this machine is written. Recipe, results, report, pictures and card
        come along from the folder that the pipeline was opened from, unless it was changed since. Those of another
        pipeline in `save_directory` are removed, all but its recipe.
        """
        folder = Path(save_directory).resolve()
        there = companions_in(folder) if (folder / INDEX).is_file() else []
        before = fingerprint(folder) if there else None
        super().save_pretrained(save_directory)
        for path in [folder / INDEX, *folder.glob("*/*config.json")]:
            config = json.loads(path.read_text())
            config.pop("_name_or_path", None)
            if path.name == INDEX:
                config["_class_name"] = ["pipeline_pdiff", "PDiffPipeline"]
                config["autoencoder"] = ["param_autoencoder", "ParamAutoencoder"]
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        code = inspect.getsourcefile(type(self.autoencoder))
        for source, target in (
            (__file__, folder / "pipeline_pdiff.py"),
            (code, folder / "autoencoder" / "param_autoencoder.py"),
        ):
            if source is not None and Path(source).resolve() != target.resolve():
                shutil.copyfile(source, target)
        if before is not None and before != fingerprint(folder):
            stale = [file for file in there if file.name != RECIPE]
            for file in stale:
                file.unlink()
            if stale:
                warnings.warn(
                    f"{folder} held another pipeline: {stale[0].name} and others, which told of that one, "
                    "were removed.",
                    stacklevel=2,
                )
        if self.folder is None or self.folder == folder or not (companions := companions_in(self.folder)):
            return
        if fingerprint(self.folder) != fingerprint(folder):
            warnings.warn(
                f"the pipeline is not the one in {self.folder} any more, so {companions[0].name} and others "
                "there, which are of that one, were left out.",
                stacklevel=2,
            )
            return
        for file in companions:
            shutil.copyfile(file, folder / file.name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload pipeline",
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> str:
        """Put the pipeline into the Hub's repository `repo_id` in one commit; -> the commit's URL. Needs pdiff_hub.

        Weights, configuration, code, a card, and what `save_pretrained` takes along. What is there already is not
        uploaded. Makes the repository if needed.

        Args:
            private: whether a new repository is private (None: what the account does by default).
            revision: a branch, by default main.
            create_pr: open a pull request instead; -> its URL.

        Errors as `pdiff_hub.transfer.push_files` raises them.
        """
        url: str = _room("hub").push_pipeline(
            self,
            repo_id,
            private=private,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            token=token,
        )
        return url

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        torch_dtype: torch.dtype | None = None,
        **components: Any,
    ) -> PDiffPipeline:
        """Open a pipeline folder or Hub repository with this package's classes; downloaded code is never run.

        Args:
            revision, token, cache_dir, local_files_only: of a Hub repository, as in diffusers.
            components: by name, instead of those that are there (`scheduler=...`).

        Raises:
            FileNotFoundError: no such folder or repository, or a folder that is no pipeline.
            ValueError: a repository that is no pipeline, a newer format, a file that is damaged or does not fit the
                rest; it names the file.
            Others as `pdiff_hub.transfer.pull` raises them.
        """
        files = _room("pipeline.opening")  # nothing of it is needed where diffusers opens the pipeline
        folder = Path(pretrained_model_name_or_path)
        hub_id = None if folder.is_dir() else str(pretrained_model_name_or_path)
        if hub_id is not None:
            folder = files.download(
                hub_id, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
            )
        elif revision is not None:
            raise SamplingError(f"{folder} is a local folder, which has no revision {revision!r}.")
        pipe = cls(**files.load_arguments(folder, components, _room("travelling.param_autoencoder").ParamAutoencoder))
        pipe.folder = folder.resolve()
        if hub_id is not None:
            pipe.hub_id, pipe.hub_revision = hub_id, files.commit_of(folder)
        return pipe.to(dtype=torch_dtype) if torch_dtype is not None else pipe


def _room(name: str) -> Any:
    """A module of the package. This file may lie alone in a repository; there is none then."""
    try:
        return importlib.import_module(f"pdiff_hub.{name}")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("pdiff_hub"):
            raise
        raise ImportError("this needs the package: pip install pdiff-hub.") from error


def require_known_format(version: object, what: str) -> None:
    """ValueError if `what` is of a format that this code does not read."""
    if type(version) is not int or version < 1:
        raise SamplingError(f"{what} has format version {version!r}, expected a number from 1 to {_FORMAT_VERSION}.")
    if version > _FORMAT_VERSION:
        raise SamplingError(
            f"{what} has format version {version}, and this pdiff-hub reads up to {_FORMAT_VERSION}; "
            "upgrade with: pip install -U pdiff-hub."
        )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError if there is none in it, FileNotFoundError if there is no file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} does not exist: the pipeline is not whole.") from None
    except (ValueError, RecursionError) as error:
        raise SamplingError(f"{file} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise SamplingError(f"{file} holds {type(content).__name__}, expected an object.")
    return content


def companions_in(folder: Path) -> list[Path]:
    """The files in a pipeline's folder that tell of it: `COMPANIONS`."""
    return [file for pattern in COMPANIONS for file in sorted(folder.glob(pattern)) if file.is_file()]


def fingerprint(folder: Path) -> dict[str, Any]:
    """What makes a pipeline's folder this pipeline, whoever wrote it: digests of its weights, and its configuration."""
    found: dict[str, Any] = {}
    for name in COMPONENTS[:2]:
        for file in sorted(file for pattern in WEIGHTS for file in (folder / name).glob(pattern)):
            with file.open("rb") as opened:
                found[f"{name}/{file.name}"] = hashlib.file_digest(opened, "sha256").hexdigest()
    for file in (
        folder / INDEX,
        folder / "autoencoder" / "config.json",
        folder / "unet" / "config.json",
        folder / "scheduler" / "scheduler_config.json",
    ):
        found[file.relative_to(folder).as_posix()] = _told(read_json(file)) if file.is_file() else None
    return found


def _told(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "format_version"}
