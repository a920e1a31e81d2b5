"""`PDiffPipeline`: noise -> latents -> parameters -> networks that load with `strict=True`.

This file travels to the Hub beside the weights, so it imports only the standard library, torch and diffusers.
Shapes: N networks, B of them at once, P parameters, C latent channels, L latent length, T sampling steps.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet1DModel
from diffusers.utils import BaseOutput
from torch import Tensor, nn

_MEMORY_BYTES = 512 * 2**20  # memory limit for one batch of networks; it does not change the results
_FORMAT_VERSION = 1
_NEEDS_PACKAGE = (
    "{} needs the package: pip install pdiff-hub, then open this pipeline with pdiff_hub.PDiffPipeline.from_pretrained."
)
INDEX = "model_index.json"
COMPONENTS = ("autoencoder", "unet", "scheduler")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*-of-*.safetensors")
# Paths in the folder of the code that travels with the weights.
PIPELINE_CODE, AUTOENCODER_CODE = "pipeline_pdiff.py", "autoencoder/param_autoencoder.py"


class SamplingError(ValueError):
    """An argument or a file is wrong; the message is a sentence that says what to do."""


@dataclass
class PDiffPipelineOutput(BaseOutput):  # type: ignore[misc]
    """The result of a call; fields that `output_type` leaves out are None.

    Attributes:
        params: float32 [N,P], raw weight units, on the CPU.
        state_dicts: N dicts of generated tensors and the (shared) frozen rest, for `load_state_dict(strict=True)`.
        latents: float32 [N,C,L], scaled latents at the end of the reverse process, on the CPU.
        trajectory: float32 [T+1,N,C,L], latents from the noise to the end; only with `return_trajectory=True`.
    """

    params: Tensor | None = None
    state_dicts: list[dict[str, Tensor]] | None = None
    latents: Tensor | None = None
    trajectory: Tensor | None = None


class PDiffPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Generates networks (Neural Network Diffusion, arXiv 2402.13144): a latent DDPM over trained parameters.

    `pdiff_hub.PDiffPipeline` adds what needs the package: opening, building networks, the Hub.

    Args:
        autoencoder: `ParamAutoencoder`; holds the layout, the frozen rest of the network and the network's spec.
        unet: the denoiser, epsilon prediction.
        scheduler: any diffusers scheduler that needs one model call (its epsilon) per step.
        default_num_inference_steps: the number of sampling steps that this pipeline was judged with.
        format_version: the format of its folder. ValueError if this code does not read it.
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
            generator: one generator for all networks, or a list of N. The same seed gives the same networks for any
                `batch_size`, to float tolerance.
            output_type: "state_dict" (also params and latents), "params" (also latents) or "latent".
            latents: float [N,C,L], noise to start from instead of drawn noise; sets N.
            return_trajectory: keep the latents after every step.
            callback_on_step_end: called after each step of each batch as
                `callback(pipe, step_index, timestep, {"latents": ...})`; may return a dict with changed "latents".
            return_dict: False gives the tuple of the fields that are not None.
            batch_size: networks made at once; None chooses a number that keeps memory bounded.

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
        """The first latents [N,C,L], and one generator per network for the noise of stochastic steps.

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
        # The scheduler looks its numbers up on the CPU, so its timesteps stay there. The U-Net gets a copy on the
        # device. So no step has to wait for a number to come back from the device.
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
        """How many networks a call makes at once by default; this bounds memory."""
        # The U-Net keeps about 16 activations of its widest level; a decoded network costs two copies of P numbers.
        config = self.autoencoder.config
        numbers = 16 * max(self.unet.config.block_out_channels) * config.latent_length
        if output_type != "latent":
            numbers += 2 * self.autoencoder.layout.num_params
        return max(1, min(256, _MEMORY_BYTES // (4 * numbers)))

    def decode_latents(self, latents_BCL: Tensor) -> Tensor:
        """Scaled latents [B,C,L] (e.g. one step of a trajectory) -> raw parameters float32 [B,P]."""
        with torch.no_grad():
            return self.autoencoder.decode(latents_BCL.to(self.autoencoder.device)).float().cpu()

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the pipeline and its code into a folder with the same files as its Hub repository.

        The index names the two code files, so that `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`
        opens the folder without the package. No path of this machine is written.
        """
        folder = Path(save_directory).resolve()
        super().save_pretrained(folder)
        for path in [folder / INDEX, *folder.glob("*/*config.json")]:
            config = json.loads(path.read_text())
            config.pop("_name_or_path", None)
            if path.name == INDEX:
                config["_class_name"] = ["pipeline_pdiff", "PDiffPipeline"]
                config["autoencoder"] = ["param_autoencoder", "ParamAutoencoder"]
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        code = {__file__: PIPELINE_CODE, inspect.getsourcefile(type(self.autoencoder)): AUTOENCODER_CODE}
        for source, target in code.items():
            if source is not None and Path(source).resolve() != folder / target:
                shutil.copyfile(source, folder / target)

    def build_network(self, *_: Any, **__: Any) -> nn.Module:
        """Build the target network; needs the package."""
        raise ImportError(_NEEDS_PACKAGE.format("Building a network"))

    def push_to_hub(self, *_: Any, **__: Any) -> str:
        """Push the pipeline and a card in one commit; needs the package."""
        raise ImportError(_NEEDS_PACKAGE.format("Pushing a pipeline"))


def require_known_format(version: object, what: str) -> None:
    """Raise ValueError if `what` has a format version that this code does not read."""
    if type(version) is not int or version < 1:
        raise SamplingError(f"{what} has format version {version!r}, expected a number from 1 to {_FORMAT_VERSION}.")
    if version > _FORMAT_VERSION:
        raise SamplingError(
            f"{what} has format version {version}, and this pdiff-hub reads up to {_FORMAT_VERSION}; "
            "upgrade with: pip install -U pdiff-hub."
        )
