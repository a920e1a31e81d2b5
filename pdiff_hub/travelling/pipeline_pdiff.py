"""`PDiffPipeline`: noise, and what is asked for -> latents -> parameters -> networks that load with `strict=True`.

This file travels to the Hub beside the weights, so it imports only the standard library, torch and diffusers.
Shapes: N networks, B of them at once, P parameters, C latent channels, L latent length, T sampling steps, D numbers of
a condition, E = D + 1 channels for it.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet1DModel
from diffusers.utils import BaseOutput
from torch import Tensor, nn

_MEMORY_BYTES = 512 * 2**20  # memory limit for one batch of networks; it does not change the results
_FORMAT_VERSION, _UNCONDITIONAL_VERSION = 2, 1  # a pipeline without conditions is written as before there were any
_NEEDS_PACKAGE = (
    "{} needs the package pdiff-hub: pip install . in a copy of its source, "
    "then open this pipeline with pdiff_hub.PDiffPipeline.from_pretrained."
)
INDEX = "model_index.json"
COMPONENTS = ("autoencoder", "unet", "scheduler")
CONDITIONER = "conditioner"  # a further component, of pipelines that can be asked for something
MODELS = (*COMPONENTS[:2], CONDITIONER)  # components with weights
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*-of-*.safetensors")
# Paths in the folder of the code that travels with the weights.
PIPELINE_CODE, AUTOENCODER_CODE = "pipeline_pdiff.py", "autoencoder/param_autoencoder.py"
CONDITIONER_CODE = "conditioner/conditioner.py"


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
        unet: the denoiser. Its input has C channels, and E more if there are conditions.
        scheduler: any diffusers scheduler that needs one model call per step.
        default_num_inference_steps: the number of sampling steps that this pipeline was judged with.
        format_version: the format of its folder. ValueError if this code does not read it.
        conditioner: `Conditioner`, which knows what networks can be asked for; None if they cannot.
    """

    model_cpu_offload_seq = "unet->autoencoder"
    _optional_components: ClassVar[list[str]] = [CONDITIONER]  # diffusers reads it
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self,
        autoencoder: nn.Module,
        unet: UNet1DModel,
        scheduler: SchedulerMixin,
        default_num_inference_steps: int = 50,
        format_version: int | None = None,
        conditioner: Any = None,
    ):
        super().__init__()
        if format_version is None:
            format_version = _UNCONDITIONAL_VERSION if conditioner is None else _FORMAT_VERSION
        require_known_format(format_version, "this pipeline")
        self.register_modules(autoencoder=autoencoder, unet=unet, scheduler=scheduler, conditioner=conditioner)
        self.register_to_config(default_num_inference_steps=default_num_inference_steps, format_version=format_version)
        latent = self.autoencoder.config.latent_channels
        wanted = latent + (conditioner.spec.size + 1 if conditioner is not None else 0)
        if unet.config.in_channels != wanted:
            raise SamplingError(
                f"the U-Net has {unet.config.in_channels} input channels, expected {wanted}: those of a latent, "
                f"and {'no more' if conditioner is None else 'those of the condition'}."
            )
        if conditioner is not None:
            _check_conditioner(conditioner, (latent, self.autoencoder.config.latent_length))

    @property
    def conditions(self) -> Any:
        """`ConditionSpec` of what networks can be asked for; None if they cannot."""
        return None if self.conditioner is None else self.conditioner.spec

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
        condition: Mapping[str, Any] | Tensor | None = None,
        guidance_scale: float = 1.0,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> PDiffPipelineOutput | tuple[Any, ...]:
        """Sample `num_models` networks.

        Args:
            num_models: N >= 1.
            num_inference_steps: from 1 to the training steps; None means `default_num_inference_steps`.
            generator: one generator for all networks, or a list of N. The same seed gives the same networks for any
                `batch_size`, to float tolerance.
            output_type: "state_dict" (also params and latents), "params" (also latents) or "latent".
            latents: float [N,C,L], noise to start from instead of drawn noise; sets N.
            return_trajectory: keep the latents after every step.
            callback_on_step_end: called after each step of each batch as
                `callback(pipe, step_index, timestep, {"latents": ...})`; may return a dict with changed "latents".
            return_dict: False gives the tuple of the fields that are not None.
            batch_size: networks made at once; None chooses a number that keeps memory bounded.
            condition: what is asked for: `{name: value}` as `conditions` says, or its D numbers, float [D] or one row
                per network, [N,D] (sets N). None asks for nothing.
            guidance_scale: 0 or more. 1 asks once; above, what the condition changes is taken so many times
                (classifier-free guidance, arXiv 2207.12598, with the scale of diffusers).
            callback_on_step_end_tensor_inputs: what the callback gets: "latents", or nothing. A callback of diffusers
                (`PipelineCallback`) says it itself.

        Raises:
            ValueError: for any argument out of range, before work begins; for a scheduler that fails; for a network
                that comes out with NaN or infinity. A condition outside what was seen: a warning.
        """
        steps = self.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        shape = (self.autoencoder.config.latent_channels, self.autoencoder.config.latent_length)
        asked = self._asked(condition, guidance_scale)
        if asked is not None and len(asked) > 1 and num_models == 1:
            num_models = len(asked)
        num_models = self._check(num_models, steps, generator, output_type, latents, batch_size, shape)
        names = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        self._check_call(callback_on_step_end, names, return_dict)
        channels_NE = None if asked is None else self._channels(asked, num_models)
        device = self._execution_device
        noise, step_generators = self._noise(num_models, shape, generator, latents)
        batch = batch_size or self.default_batch_size(output_type)
        ends, paths = [], []
        params_NP = None if output_type == "latent" else torch.empty(num_models, self.autoencoder.layout.num_params)
        with self.progress_bar(total=steps * -(-num_models // batch)) as bar:
            options = (steps, callback_on_step_end, names, return_trajectory, bar)
            for start in range(0, num_models, batch):
                one = slice(start, min(start + batch, num_models))
                ask = self._ask(None if channels_NE is None else channels_NE[one].to(device), guidance_scale)
                path = self._denoise(noise[one].to(device), step_generators[one], ask, *options)
                ends.append(path[-1].cpu())
                if return_trajectory:
                    paths.append(torch.stack(path).cpu())
                if params_NP is not None:
                    params_NP[one] = self.autoencoder.decode(path[-1].to(self.autoencoder.device))
        self.maybe_free_model_hooks()
        latents_NCL = torch.cat(ends)
        require_finite(latents_NCL)
        if params_NP is not None:
            require_finite(params_NP)
        # All at once: an output of diffusers has as its items what it was made with.
        output = PDiffPipelineOutput(
            params=params_NP,
            state_dicts=self.autoencoder.state_dicts(params_NP) if output_type == "state_dict" else None,
            latents=latents_NCL,
            trajectory=torch.cat(paths, dim=1) if paths else None,
        )
        return output if return_dict else output.to_tuple()

    def _check_call(self, callback: Any, names: Any, return_dict: Any) -> None:
        _require(isinstance(return_dict, bool), "return_dict", return_dict, "True or False")
        _require(callback is None or callable(callback), "callback_on_step_end", callback, "a function")
        known = self._callback_tensor_inputs
        fits = isinstance(names, list | tuple) and all(name in known for name in names)
        _require(fits, "callback_on_step_end_tensor_inputs", names, f"a list of some of {known}")

    def _check(
        self, num_models: Any, steps: Any, generator: Any, output_type: Any, latents: Any, batch_size: Any, shape: Any
    ) -> int:
        fits = output_type in ("state_dict", "params", "latent")
        _require(fits, "output_type", output_type, "'state_dict', 'params' or 'latent'")
        for name, value in (("num_models", num_models), ("num_inference_steps", steps), ("batch_size", batch_size)):
            _require(value is None or (type(value) is int and value >= 1), name, value, "an integer of at least 1")
        require_one_call(self.scheduler)
        most = self.scheduler.config.num_train_timesteps
        _require(steps <= most, "num_inference_steps", steps, f"at most the {most} steps trained with")
        if latents is not None:
            if not isinstance(latents, Tensor) or latents.ndim != 3 or tuple(latents.shape[1:]) != shape:
                found = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
                raise SamplingError(f"latents have shape {found}, expected [num_models, {shape[0]}, {shape[1]}].")
            if num_models not in (1, len(latents)) or len(latents) == 0:
                raise SamplingError(f"latents are given for {len(latents)} models, but num_models is {num_models}.")
            if not bool(latents.isfinite().all()):
                raise SamplingError("latents hold NaN or infinity, expected finite numbers.")
            num_models = len(latents)
        require_generators(generator)
        if isinstance(generator, Sequence) and len(generator) != num_models:
            raise SamplingError(f"generator is a list of {len(generator)}, expected one for each of {num_models}.")
        return int(num_models)

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

    def _asked(self, condition: Mapping[str, Any] | Tensor | None, guidance_scale: float) -> Tensor | None:
        """The numbers that are asked for, [1,D] or [N,D]; NaN for nothing; None if the pipeline takes no condition."""
        fits = isinstance(guidance_scale, int | float) and 0 <= guidance_scale < math.inf
        _require(fits, "guidance_scale", guidance_scale, "a number of at least 0")
        spec = self.conditions
        if spec is None:
            if condition is not None or guidance_scale != 1:
                what = "the condition" if condition is not None else "guidance_scale"
                raise SamplingError(f"this pipeline takes no condition: its networks are of one kind. Omit {what}.")
            return None
        if condition is None:
            return torch.full((1, spec.size), math.nan)
        if isinstance(condition, Tensor):
            asked = condition.detach().to("cpu", torch.float32)
            asked = asked[None] if asked.ndim == 1 else asked
            if asked.ndim != 2 or asked.shape[1] != spec.size or not len(asked) or not bool(asked.isfinite().all()):
                raise SamplingError(
                    f"the condition is a tensor {list(condition.shape)}, expected finite numbers of shape "
                    f"[{spec.size}] or [num_models, {spec.size}], the numbers of {spec.name!r}."
                )
        else:
            if not isinstance(condition, Mapping) or list(condition) != [spec.name]:
                found = list(condition) if isinstance(condition, Mapping) else type(condition).__name__
                raise SamplingError(
                    f"the condition is {found!r}, expected {{{spec.name!r}: ...}}, which is all it knows."
                )
            asked = spec.encode(condition[spec.name])[None]
        if outside := spec.outside(asked):
            warnings.warn(outside, stacklevel=4)  # the caller of `__call__`, which torch.no_grad wraps
        return asked

    def _channels(self, asked: Tensor, num_models: int) -> Tensor:
        if len(asked) not in (1, num_models):
            raise SamplingError(f"conditions are given for {len(asked)} models, but num_models is {num_models}.")
        channels_NE: Tensor = self.conditions.channels(asked)
        return channels_NE.expand(num_models, -1).contiguous()

    def _ask(self, channels_BE: Tensor | None, guidance_scale: float) -> Callable[[Tensor, Tensor], Tensor]:
        """What the pipeline predicts for latents [B,C,L] at time steps [B], for these conditions."""
        if channels_BE is None:
            return lambda sample, times: self.unet(sample, times).sample
        asked_BEL = channels_BE.to(self.unet.dtype)[:, :, None].expand(-1, -1, self.autoencoder.config.latent_length)
        expected = self._expected(channels_BE)

        def guided(sample: Tensor, times: Tensor) -> Tensor:
            if guidance_scale == 1:
                return self.unet(torch.cat([sample, asked_BEL], dim=1), times).sample + expected(sample, times)
            both = torch.cat([torch.cat([sample, torch.zeros_like(asked_BEL)], 1), torch.cat([sample, asked_BEL], 1)])
            free, asked = self.unet(both, times.repeat(2)).sample.chunk(2)
            return free + guidance_scale * (asked + expected(sample, times) - free)

        return guided

    def _expected(self, channels_BE: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """What the conditioner's normal distribution adds to the U-Net's answer."""
        kind = self.scheduler.config.get("prediction_type", "epsilon")
        alphas = getattr(self.scheduler, "alphas_cumprod", None)
        if alphas is None or kind not in ("epsilon", "v_prediction"):
            raise SamplingError(
                f"the scheduler {type(self.scheduler).__name__} predicts {kind!r} and its alphas_cumprod is "
                f"{type(alphas).__name__}; with conditions, expected one of noise that predicts 'epsilon' or "
                "'v_prediction'."
            )
        mean_BCL, std_BCL = (
            each.to(channels_BE.device) for each in self.conditioner.gaussian(channels_BE.to(self.conditioner.device))
        )
        alphas = torch.as_tensor(alphas, dtype=torch.float32).to(channels_BE.device)

        def expected(sample: Tensor, times: Tensor) -> Tensor:
            before = times.long()  # some schedulers stop between two steps of training
            after = (before + 1).clamp_max(len(alphas) - 1)
            alpha_B11 = torch.lerp(alphas[before], alphas[after], (times - before).float())[:, None, None]
            return self.conditioner.prediction(sample.float(), alpha_B11, mean_BCL, std_BCL, kind).to(sample.dtype)

        return expected

    def _denoise(
        self, noise: Tensor, generators: Any, ask: Any, steps: int, callback: Any, names: Any, keep: bool, bar: Any
    ) -> list[Tensor]:
        path: list[Tensor] = []

        def after_step(index: int, timestep: Tensor, sample: Tensor) -> Tensor:
            if callback is not None:
                given = {"latents": sample} if names else {}
                sample = (callback(self, index, int(timestep), given) or {}).get("latents", sample)
            path[:] = [*path, sample] if keep else [sample]
            bar.update()
            return sample

        # A copy, because a scheduler holds the state of one call, and threads may call a pipeline at the same time.
        scheduler = copy.deepcopy(self.scheduler)
        noise = noise.to(self.unet.dtype)
        end = reverse_process(scheduler, noise, steps, generators, ask, after_step)
        first = noise * scheduler.init_noise_sigma
        return [first, *path] if keep else [end]

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
        for path in folder.glob("*/*.safetensors"):  # safetensors lets only the owner read its files
            path.chmod((folder / INDEX).stat().st_mode)
        for path in [folder / INDEX, *folder.glob("*/*config.json")]:
            config = json.loads(path.read_text())
            config.pop("_name_or_path", None)
            if path.name == INDEX:
                config["_class_name"] = ["pipeline_pdiff", "PDiffPipeline"]
                config["autoencoder"] = ["param_autoencoder", "ParamAutoencoder"]
                config.pop(CONDITIONER, None)  # so that an index without one is as before there were any
                if self.conditioner is not None:
                    config[CONDITIONER] = ["conditioner", "Conditioner"]
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        code = {__file__: PIPELINE_CODE, inspect.getsourcefile(type(self.autoencoder)): AUTOENCODER_CODE}
        if self.conditioner is not None:
            code[inspect.getsourcefile(type(self.conditioner))] = CONDITIONER_CODE
        for source, target in code.items():
            if source is not None and Path(source).resolve() != folder / target:
                shutil.copyfile(source, folder / target)

    def fit(self, *_: Any, **__: Any) -> PDiffPipelineOutput:
        """Networks that fit a few labelled examples; needs the package."""
        raise ImportError(_NEEDS_PACKAGE.format("Fitting networks to examples"))

    def build_network(self, *_: Any, **__: Any) -> nn.Module:
        """Build the target network; needs the package."""
        raise ImportError(_NEEDS_PACKAGE.format("Building a network"))

    def push_to_hub(self, *_: Any, **__: Any) -> str:
        """Push the pipeline and a card in one commit; needs the package."""
        raise ImportError(_NEEDS_PACKAGE.format("Pushing a pipeline"))


def reverse_process(
    scheduler: Any,
    noise: Tensor,
    steps: int,
    generators: list[torch.Generator],
    ask: Callable[[Tensor, Tensor], Tensor],
    after_step: Callable[[int, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Noise [B,C,L] -> its end after `steps` steps; SamplingError if the scheduler cannot make them.

    generators: one per network, for stochastic steps. ask: predicts for samples [B,C,L] at time steps [B].
    after_step: called with the step's number, time step and sample; what it returns goes on.
    """
    # The scheduler looks its numbers up on the CPU, so its timesteps stay there. The U-Net gets a copy on the
    # device. So no step has to wait for a number to come back from the device.
    with _explaining(scheduler, steps):
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps
        on_device = timesteps.to(noise.device)
        options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        sample = noise * scheduler.init_noise_sigma
    for index, timestep in enumerate(timesteps):
        with _explaining(scheduler, steps):
            model_input = scheduler.scale_model_input(sample, timestep)
        answer = ask(model_input, on_device[index].expand(len(sample)))
        with _explaining(scheduler, steps):
            sample = scheduler.step(answer, timestep, sample, **options).prev_sample
        if after_step is not None:
            sample = after_step(index, timestep, sample)
    return sample


@contextmanager
def _explaining(scheduler: Any, steps: int) -> Iterator[None]:
    """Says what to do when a scheduler fails, which can raise anything."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise SamplingError(
            f"the scheduler {type(scheduler).__name__} cannot make {steps} steps ({type(error).__name__}: {said}); "
            "take another number of steps, or another scheduler, such as DDIMScheduler."
        ) from error


def require_one_call(scheduler: Any) -> None:
    """Raise ValueError if a step of the scheduler needs more than one call of the U-Net gives."""
    if not hasattr(scheduler, "step"):
        raise SamplingError(f"{type(scheduler).__name__} makes no steps; take another, such as DDIMScheduler.")
    parts = list(inspect.signature(scheduler.step).parameters.values())
    needed = [each.name for each in parts if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    if len(needed) > 3:  # the answer of the U-Net, the time step, and the sample
        raise SamplingError(
            f"a step of the scheduler {type(scheduler).__name__} needs {', '.join(needed)}, and this pipeline "
            "has an answer of its U-Net, a time step and a sample; take another scheduler, such as DDIMScheduler."
        )


def require_generators(generator: Any) -> None:
    """Raise ValueError unless it is a generator, several, or None; a number, as numpy takes for a seed, is none."""
    for each in generator if isinstance(generator, Sequence) else [] if generator is None else [generator]:
        expected = "a torch.Generator such as torch.Generator().manual_seed(0), or a list of them, one for each network"
        _require(isinstance(each, torch.Generator), "generator", each, expected)


def _require(fits: bool, name: str, found: Any, expected: str) -> None:
    if not fits:
        raise SamplingError(f"{name} is {found!r:.60}, expected {expected}.")


def require_finite(numbers_NX: Tensor, first: int = 0) -> None:
    """Raise ValueError, naming the network (rows are counted from `first`), if a number is NaN or infinite."""
    if numbers_NX.numel() == 0:
        return
    low_N, high_N = torch.aminmax(numbers_NX.flatten(1), dim=1)
    odd_N = ~(low_N.isfinite() & high_N.isfinite())
    if bool(odd_N.any()):
        raise SamplingError(
            f"network {first + int(odd_N.int().argmax())} came out with NaN or infinity: the pipeline's weights or its "
            "scheduler are damaged, or what was asked for lies too far outside what it has seen; open the pipeline "
            "anew, or ask for something else."
        )


def _check_conditioner(conditioner: Any, shape: tuple[int, int]) -> None:
    """ValueError if its latents are of another shape [C,L], or a number is not finite."""
    found = (conditioner.config.latent_channels, conditioner.config.latent_length)
    if found != shape:
        raise SamplingError(
            f"the conditioner is of latents {list(found)}, expected {list(shape)}: channels and length."
        )
    for name, tensor in conditioner.named_buffers():
        if not bool(tensor.isfinite().all()):
            raise SamplingError(f"the conditioner's tensor {name!r} holds NaN or Inf; restore its weights.")
    if not bool((conditioner.std_CL > 0).all()):
        raise SamplingError("the conditioner's std_CL has numbers of 0 or below; restore its weights.")


def require_known_format(version: object, what: str) -> None:
    """Raise ValueError if `what` has a format version that this code does not read."""
    if type(version) is not int or version < 1:
        raise SamplingError(f"{what} has format version {version!r}, expected a number from 1 to {_FORMAT_VERSION}.")
    if version > _FORMAT_VERSION:
        raise SamplingError(
            f"{what} has format version {version}, and this pdiff-hub reads up to {_FORMAT_VERSION}; "
            "upgrade with: pip install . in a newer copy of its source."
        )
