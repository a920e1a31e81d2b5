"""The options of both training stages, as validated frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdiff_hub.errors import require, require_known

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # p-diff, arXiv 2402.13144, sec. 3.2 and its code. The paper's widths are the defaults below.
    "paper": {"form": "conv", "normalization": "none", "steps": 30_000, "input_noise": 1e-3, "latent_noise": 0.1},
}
"""Options of `AutoencoderConfig`, by preset name; a recipe's own options override them."""


def with_preset(options: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's `options`, with the preset that they name (`preset: paper`) filling in those that are not given."""
    given = {key: value for key, value in options.items() if key != "preset"}
    if (name := options.get("preset")) is None:
        return given
    require_known("autoencoder.preset", [name], PRESETS)
    return {**PRESETS[name], **given}


@dataclass(frozen=True)
class AutoencoderConfig:
    """Stage one: checkpoints to latents, and back.

    Attributes:
        form ("linear" or "conv"): principal components in closed form, or the paper's 1-D CNN.
        num_components (at least 1): linear form; null takes the fewest that hold `explained` of held-out deviations.
        explained (above 0, at most 1): used where num_components is null.
        max_components (at least 1): upper bound on the automatic choice; its lower bound is 24. It never takes more
            than two for three training checkpoints.
        latent_channels (at least 1): channels of a latent; the U-Net's input has as many.
        normalization ("none", "per_tensor" or "per_parameter"): the unit of deviations from the mean checkpoint: none,
            one of each tensor, or one of each number.
        steps (at least 0): gradient steps; 0 keeps the closed form (linear form only). Conv: a step sees about 65,000
            numbers of a larger network, which therefore needs more steps.
        batch_size (at least 1): checkpoints per gradient step.
        learning_rate (above 0): of AdamW in these steps.
        weight_decay (at least 0): of the same.
        input_noise (at least 0): standard deviation of noise on the weights, in their units (p-diff sec. 3.2: 0.001).
        latent_noise (at least 0): standard deviation of noise on unscaled latents (p-diff sec. 3.2: 0.1).
        encoder_widths (each at least 1): conv form: channels of each layer of the encoder.
        decoder_widths (each at least 1): conv form: channels of each layer of the decoder, as many layers.
        kernel_size (at least 1): conv form: of all its layers.
        holdout (at least 0, below 1): share of the checkpoints that neither stage is trained on. They decide the number
            of components and when the denoiser's training ends, and are the fresh networks of an audit. With 0, neither
            is possible.
    """

    form: str = "linear"
    num_components: int | None = None
    explained: float = 0.9
    max_components: int = 128
    latent_channels: int = 4
    normalization: str = "per_tensor"
    steps: int = 0
    batch_size: int = 50
    learning_rate: float = 1e-3
    weight_decay: float = 2e-6
    input_noise: float = 0.0
    latent_noise: float = 0.0
    encoder_widths: Sequence[int] = (4, 4, 4, 4)
    decoder_widths: Sequence[int] = (4, 256, 256, 8)
    kernel_size: int = 5
    holdout: float = 0.1

    def __post_init__(self) -> None:
        require(self.form in ("linear", "conv"), "autoencoder.form", self.form, "'linear' or 'conv'")
        require(
            self.normalization in ("none", "per_tensor", "per_parameter"),
            "autoencoder.normalization",
            self.normalization,
            "'none', 'per_tensor' or 'per_parameter'",
        )
        for name in ("encoder_widths", "decoder_widths"):
            widths = getattr(self, name)
            require(len(widths) > 0 and min(widths) >= 1, f"autoencoder.{name}", list(widths), "numbers from 1")
        require(self.form == "linear" or self.steps > 0, "autoencoder.steps", self.steps, "at least 1 for form 'conv'")
        for name in ("max_components", "latent_channels", "batch_size", "kernel_size"):
            require(getattr(self, name) >= 1, f"autoencoder.{name}", getattr(self, name), "at least 1")
        require(
            self.num_components is None or self.num_components >= 1,
            "autoencoder.num_components",
            self.num_components,
            "at least 1",
        )
        require(
            len(self.encoder_widths) == len(self.decoder_widths),
            "autoencoder.decoder_widths",
            list(self.decoder_widths),
            f"as many layers as encoder_widths has ({len(self.encoder_widths)})",
        )
        require(0 < self.explained <= 1, "autoencoder.explained", self.explained, "a number in (0, 1]")
        require(0 <= self.holdout < 1, "autoencoder.holdout", self.holdout, "a number in [0, 1)")
        require(self.steps >= 0, "autoencoder.steps", self.steps, "at least 0")
        require(self.learning_rate > 0, "autoencoder.learning_rate", self.learning_rate, "a positive number")
        for name in ("input_noise", "latent_noise", "weight_decay"):
            require(getattr(self, name) >= 0, f"autoencoder.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True)
class DiffusionConfig:
    """Stage two: `UNet1DModel` on latents, T=1000, linear betas (p-diff sec. 3.3).

    Training ends where it generalises: the averaged weights with the lowest denoising loss on the latents of held-out
    checkpoints are kept, or earlier ones if those draw copies, later ones if they draw too far away. After that the
    U-Net only learns to draw its checkpoints again.

    Attributes:
        prediction ("v_prediction" or "epsilon"): the second as p-diff does. With the first, the U-Net starts as the
            Gaussian that has the latents' mean and standard deviations, and learns what is different from it.
        widths (each a positive multiple of 8): U-Net channels per level. One level sees 21 latent positions, which is
            all of a short latent; each further level halves the length.
        layers_per_block (at least 1): residual blocks per level, minus one.
        steps (at least 1): an upper bound; see `patience`.
        batch_size (at least 1): latents per step, in all processes together.
        learning_rate (above 0): of AdamW, with warm-up and cosine.
        warmup_steps (at least 0): steps until the learning rate has its peak.
        weight_decay (at least 0): of AdamW.
        max_grad_norm (above 0): gradients are clipped to this norm.
        ema_decay (at least 0, below 1): how slowly the averaged weights follow; these are kept.
        eval_every (at least 1): steps between measurements of the held-out loss.
        patience (at least 1): training ends after so many measurements without a new lowest loss. null takes all
            steps and keeps the last weights, as is done if no checkpoint is held out; then most generated networks
            are copies.
        latent_noise (at least 0): standard deviation of noise on the (scaled) latents that are trained on.
        condition_dropout (at least 0, below 1): of sets with conditions: how often a network is shown without its own.
        compile: `torch.compile` of the U-Net. On two CPU cores it takes half a minute; it saves a fifth of each step on
            latents of length 16 and nothing on shorter ones. It pays for long trainings.
        mixed_precision ("auto", "no", "fp16" or "bf16"): auto: bf16 if the GPU has it.
        save_every (at least 1): steps between saves, from which a killed run goes on.
        save_limit (at least 1): how many of these are kept.
        log_every (at least 1): steps between checks of the loss (for the tracker, and for divergence).
    """

    prediction: str = "v_prediction"
    widths: Sequence[int] = (96,)
    layers_per_block: int = 1
    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 2e-6
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    eval_every: int = 50
    patience: int | None = 8
    latent_noise: float = 0.1
    condition_dropout: float = 0.1
    compile: bool = False
    mixed_precision: str = "auto"
    save_every: int = 500
    save_limit: int = 2
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every", "save_limit", "log_every", "layers_per_block", "eval_every"):
            require(getattr(self, name) >= 1, f"diffusion.{name}", getattr(self, name), "at least 1")
        require(
            self.prediction in ("v_prediction", "epsilon"),
            "diffusion.prediction",
            self.prediction,
            "'v_prediction' or 'epsilon'",
        )
        require(
            self.patience is None or self.patience >= 1,
            "diffusion.patience",
            self.patience,
            "at least 1, or nothing to take all steps",
        )
        require(self.latent_noise >= 0, "diffusion.latent_noise", self.latent_noise, "at least 0")
        require(
            0 <= self.condition_dropout < 1,
            "diffusion.condition_dropout",
            self.condition_dropout,
            "a number in [0, 1)",
        )
        require(isinstance(self.compile, bool), "diffusion.compile", self.compile, "true or false")
        require(self.learning_rate > 0, "diffusion.learning_rate", self.learning_rate, "a positive number")
        require(self.max_grad_norm > 0, "diffusion.max_grad_norm", self.max_grad_norm, "a positive number")
        for name in ("warmup_steps", "weight_decay"):
            require(getattr(self, name) >= 0, f"diffusion.{name}", getattr(self, name), "at least 0")
        require(0 <= self.ema_decay < 1, "diffusion.ema_decay", self.ema_decay, "a number in [0, 1)")
        require(
            len(self.widths) >= 1 and all(w > 0 and w % 8 == 0 for w in self.widths),
            "diffusion.widths",
            list(self.widths),
            "positive multiples of 8",
        )
        require(
            self.mixed_precision in ("auto", "no", "fp16", "bf16"),
            "diffusion.mixed_precision",
            self.mixed_precision,
            "'auto', 'no', 'fp16' or 'bf16'",
        )
