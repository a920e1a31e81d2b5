"""Tells type checkers what a call of `PDiffPipeline` gives: which fields are there depends on `output_type`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdiff_hub.travelling import pipeline_pdiff

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Literal, TypedDict, Unpack, overload

    from torch import Generator, Tensor

    class LatentOutput(pipeline_pdiff.PDiffPipelineOutput):
        """With `output_type="latent"`."""

        latents: Tensor

    class ParamsOutput(LatentOutput):
        """With `output_type="params"`."""

        params: Tensor

    class NetworksOutput(ParamsOutput):
        """With `output_type="state_dict"`, which is the default."""

        state_dicts: list[dict[str, Tensor]]

    Generators = Generator | Sequence[Generator] | None
    # Any, so that a callback may ask for a pipeline of a narrower type.
    Callback = Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor]] | None

    class _Options(TypedDict, total=False):
        latents: Tensor | None
        return_trajectory: bool
        callback_on_step_end: Callback
        batch_size: int | None
        condition: Mapping[str, Any] | Tensor | None
        guidance_scale: float
        callback_on_step_end_tensor_inputs: Sequence[str]


class TypedPipeline(pipeline_pdiff.PDiffPipeline):
    """The class that travels to the Hub, with a call of which type checkers know the result."""

    if TYPE_CHECKING:

        @overload
        def __call__(
            self,
            num_models: int = 1,
            num_inference_steps: int | None = None,
            generator: Generators = None,
            output_type: Literal["state_dict"] = "state_dict",
            *,
            return_dict: Literal[True] = True,
            **options: Unpack[_Options],
        ) -> NetworksOutput: ...
        @overload
        def __call__(
            self,
            num_models: int = 1,
            num_inference_steps: int | None = None,
            generator: Generators = None,
            *,
            output_type: Literal["params"],
            return_dict: Literal[True] = True,
            **options: Unpack[_Options],
        ) -> ParamsOutput: ...
        @overload
        def __call__(
            self,
            num_models: int = 1,
            num_inference_steps: int | None = None,
            generator: Generators = None,
            *,
            output_type: Literal["latent"],
            return_dict: Literal[True] = True,
            **options: Unpack[_Options],
        ) -> LatentOutput: ...
        @overload
        def __call__(
            self,
            num_models: int = 1,
            num_inference_steps: int | None = None,
            generator: Generators = None,
            output_type: str = "state_dict",
            *,
            return_dict: Literal[False],
            **options: Unpack[_Options],
        ) -> tuple[Any, ...]: ...
        @overload
        def __call__(
            self,
            num_models: int = 1,
            num_inference_steps: int | None = None,
            generator: Generators = None,
            output_type: str = "state_dict",
            latents: Tensor | None = None,
            return_trajectory: bool = False,
            callback_on_step_end: Callback = None,
            return_dict: bool = True,
            batch_size: int | None = None,
            condition: Mapping[str, Any] | Tensor | None = None,
            guidance_scale: float = 1.0,
            callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        ) -> pipeline_pdiff.PDiffPipelineOutput | tuple[Any, ...]: ...
        def __call__(self, *_: Any, **__: Any) -> Any: ...
