"""One training run of `collect_finetune`: its network, phase and step, and how it trains, validates and resumes.

A step depends only on the seed, the phase, the step number and the weights before it.
Shapes: P parameters, B batch, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pdiff_hub.collect.finetune.config import FinetuneConfig
from pdiff_hub.collect.finetune.image_batches import ImageBatches
from pdiff_hub.collect.journal import TrainingState
from pdiff_hub.collect.schedule import cosine_with_warm_up
from pdiff_hub.collect.shared_tensors import first_difference, remedy
from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import logits
from pdiff_hub.networks.capturing import Replayed, moments_of
from pdiff_hub.networks.prefix_cache import Answers, PrefixPlan, plan_prefix, record, serve
from pdiff_hub.networks.prefix_recording import Recording, record_all, same_outputs
from pdiff_hub.prediction.predictions import are_wrong, sums_of_loss
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_RATES = {"train": "learning_rate", "finetune": "finetune_learning_rate"}  # by phase
_MAX_SHARED_BYTES = 1 << 30  # of activations kept for training, and as many again for validation
_DIVERGED = 100.0  # a loss above this many times the loss of guessing means that training diverged


class FinetuneRun:
    """One network in training: its phase ("train" or "finetune"), its step and its optimiser."""

    def __init__(
        self,
        network: nn.Module,
        layout: ParamLayout,
        images: ImageBatches,
        config: FinetuneConfig,
        *,
        captured: bool = False,
    ):
        self.network, self.layout, self.images, self.config, self._captured = network, layout, images, config, captured
        self.num_train_steps = config.epochs * images.steps_per_epoch
        self.begin("train")

    def begin(self, phase: str, step: int = 0) -> None:
        """Starts a phase from the current weights, with a fresh AdamW; the second freezes what is not selected."""
        self.phase, self.step = phase, step
        self._still: list[nn.Module] = []
        if phase == "finetune":
            selected = trainable(self.network, self.layout)
            self.network.requires_grad_(False)
            for parameter in selected:
                parameter.requires_grad_(True)
            self._frozen = self.layout.frozen_state(self.network.state_dict())
            # The modules that own a frozen float buffer themselves: mostly BatchNorm.
            owners = {
                name.rpartition(".")[0]
                for name, buffer in self.network.named_buffers()
                if name in self._frozen and buffer.is_floating_point()
            }
            self._still = [self.network.get_submodule(owner) for owner in owners]
        self._set_modes()
        self._shared: list[Answers] | None = None
        self._recording: Recording | None = None
        self._asked_to_record = phase == "train"  # nothing can be shared while the whole network is trained
        self._trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        rate, decay = getattr(self.config, _RATES[phase]), self.config.weight_decay
        fused = not any(parameter.is_complex() for parameter in self._trained)  # torch has no fused form for them
        self._replayed: Replayed | None = None
        self._optimizer = torch.optim.AdamW(
            self._trained,
            lr=torch.tensor(rate, device=self.images.device) if self._captured else rate,
            weight_decay=decay,
            fused=fused,
            capturable=self._captured and self.images.device.type == "cuda",
        )
        if phase == "train":
            self._schedule = cosine_with_warm_up(self._optimizer, self.num_train_steps, done=step)

    def take_step(self) -> Tensor:
        """Takes one step; -> its loss, a scalar on the device."""
        answers = self._answers_of_step()  # before `batch`, which seeds the generators that dropout uses
        inputs_BCHW, labels_B = self.images.batch(self.phase, self.step)
        if self._captured and not answers:
            if self._replayed is None:
                self._replayed = Replayed(
                    "collect: a step", self._descend, inputs_BCHW, labels_B, changed=self._changed
                )
                self.images.seed_dropout(self.phase, self.step)  # warming up has drawn from the generators
            loss = self._replayed(inputs_BCHW, labels_B)
        else:
            loss = self._descend(inputs_BCHW, labels_B, answers)
        if self.phase == "train":
            self._schedule.step()
        self.step += 1
        return loss

    def _descend(self, inputs_BCHW: Tensor, labels_B: Tensor, answers: Answers | None = None) -> Tensor:
        self._optimizer.zero_grad()
        with serve(self.network, answers or {}), self._precision():
            output_BN = logits(self.network(inputs_BCHW))
        if self.config.mixed_precision == "bf16":
            output_BN = output_BN.float()
        loss = F.cross_entropy(output_BN, labels_B, label_smoothing=self.config.label_smoothing)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return loss.detach()

    def _precision(self) -> AbstractContextManager[object]:
        """In which a step's forward pass computes. "auto" is decided before there is a run."""
        if self.config.mixed_precision != "bf16":
            return nullcontext()
        # No cache: within a caller's own autocast its copies of the weights would outlive the step.
        return torch.autocast(self.images.device.type, torch.bfloat16, cache_enabled=False)

    def _changed(self) -> list[Tensor]:
        """What a step changes."""
        return [*self.network.parameters(), *self.network.buffers(), *moments_of(self._optimizer)]

    def checked_mean(self, loss: Tensor, first: int) -> float:
        """The mean of a `loss` summed since step `first`; ValueError if it or a weight shows that training diverged."""
        mean = loss.item() / (self.step - first)
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in self._trained)
        if finite and mean <= _DIVERGED * math.log(max(2, self.images.task.num_classes)):
            return mean
        option = _RATES[self.phase]
        raise PdiffError(
            f"training diverged in steps {first + 1} to {self.step} of the {self.phase} phase (mean loss "
            f"{mean:.4g}{'' if finite else ', weights not finite'}); lower {option} (it is "
            f"{getattr(self.config, option)}) and collect into another directory."
        )

    def params(self) -> Tensor:
        """The current checkpoint: float32 [P] on the CPU."""
        state = self.network.state_dict()
        return self.layout.unstack({e.name: state[e.name][None] for e in self.layout.entries})[0].cpu()

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Mean loss and accuracy (a fraction) on the validation split."""
        self.network.eval()
        if self._shared is None:
            self._shared = self._record_validation()
        sums = torch.zeros(2, dtype=torch.float64, device=self.images.device)
        for (inputs_BCHW, labels_B), answers in zip_longest(self.images.validation_batches(), self._shared):
            with serve(self.network, answers or {}):
                logits_1BN = logits(self.network(inputs_BCHW))[None]
            sums += torch.stack([sums_of_loss(logits_1BN, labels_B)[0], are_wrong(logits_1BN, labels_B).sum().double()])
        self._set_modes()
        loss, wrong = (sums / len(self.images.task.validation)).tolist()
        return loss, 1 - wrong

    def _answers_of_step(self) -> Answers:
        """Recorded outputs of the modules before the first trained tensor, for the step's images; empty if none are."""
        if not self._asked_to_record:
            self._asked_to_record = True
            with torch.no_grad(), self._precision():
                self._recording = self._record_training()
        if self._recording is None:
            return {}
        return self._recording.answers(self.images.index(self.phase, self.step))

    def _record_training(self) -> Recording | None:
        """Records these outputs for all training images, once for all steps; None if later steps cannot use them."""
        config, num_images = self.config, len(self.images.task.train)
        seen = config.num_checkpoints * config.save_every * self.images.batch_size
        if seen < 2 * num_images or self.images.augments:
            return None
        state = self._varying()
        probe_BCHW = next(self.images.train_batches())[0][:4]
        self.network.eval()
        try:
            plan = self._plan(state, probe_BCHW, num_images)
            if plan is None:
                return None
            judged = record(self.network, plan, self._forward, state, probe_BCHW)
            self._set_modes()
            # With dropout or batch statistics, the outputs would be different at every step.
            if not same_outputs(judged, record(self.network, plan, self._forward, state, probe_BCHW)):
                return None
            self.network.eval()
            batches = (inputs_BCHW for inputs_BCHW, _ in self.images.train_batches())
            return record_all(self.network, plan, self._forward, state, batches)
        finally:
            self._set_modes()

    def _record_validation(self) -> list[Answers]:
        """Outputs of the modules before the first trained tensor, for each batch of validation images: they are the
        same at every checkpoint. Empty if they would take too much memory."""
        state = self._varying()
        shared: list[Answers] = []
        plan: PrefixPlan | None = None
        for inputs_BCHW, _ in self.images.validation_batches():
            plan = plan or self._plan(state, inputs_BCHW[:2], len(self.images.task.validation))
            if plan is None:
                return []
            shared.append(record(self.network, plan, self._forward, state, inputs_BCHW))
        return shared

    def _varying(self) -> dict[str, Tensor]:
        live = self.network.state_dict(keep_vars=True)
        return {entry.name: live[entry.name].detach() for entry in self.layout.entries}

    def _forward(self, varying: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return logits(functional_call(self.network, dict(varying), (inputs,)))

    def _plan(self, state: Mapping[str, Tensor], probe_BCHW: Tensor, num_images: int) -> PrefixPlan | None:
        """What can be shared, in eval mode; None if it would take too much memory for so many images."""
        plan = plan_prefix(self.network, self._forward, state, probe_BCHW)
        return plan if plan.kept_bytes * num_images <= _MAX_SHARED_BYTES else None

    def check_frozen(self) -> None:
        """ValueError if a tensor outside the selection that is no counter has changed in the second phase."""
        if name := first_difference(self._frozen, self.layout.frozen_state(self.network.state_dict())):
            raise PdiffError(
                f"tensor {name!r} is not selected, but the network changes it while it is trained, "
                f"also in eval mode; {remedy(self._frozen[name])}."
            )

    def state(self) -> TrainingState:
        """All that is needed to resume exactly: weights, buffers, the optimiser's moments, phase and step."""
        tensors: dict[str, Tensor] = {f"buffer/{name}": tensor for name, tensor in self.network.named_buffers()}
        for name, parameter in self.network.named_parameters():
            moments = self._optimizer.state.get(parameter, {})  # `get`, because indexing would add a missing entry
            tensors |= {f"{key}/{name}": tensor for key, tensor in {"parameter": parameter, **moments}.items()}
        return TrainingState(tensors, {"phase": self.phase, "step": self.step})

    def load(self, state: TrainingState) -> None:
        """Resumes from the `state` of a run with the same arguments."""
        parameters = dict(self.network.named_parameters())
        for name, parameter in parameters.items():
            parameter.data.copy_(state.tensors[f"parameter/{name}"])
        for name, buffer in self.network.named_buffers():
            buffer.copy_(state.tensors[f"buffer/{name}"])
        self.begin(state.info["phase"], state.info["step"])
        for path, tensor in state.tensors.items():
            key, _, name = path.partition("/")
            if key not in ("parameter", "buffer"):
                like = parameters[name] if tensor.ndim else tensor.to(parameters[name].device)
                self._optimizer.state[parameters[name]][key] = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)

    def _set_modes(self) -> None:
        self.network.train()
        for module in self._still:
            module.training = False  # not eval(), which would also change the modules inside it


def trainable(network: nn.Module, layout: ParamLayout) -> list[Tensor]:
    """The selected parameters (tied ones once), without those that the network's factory has frozen."""
    live = network.state_dict(keep_vars=True)
    return [live[entry.name] for entry in layout.entries if live[entry.name].requires_grad]
