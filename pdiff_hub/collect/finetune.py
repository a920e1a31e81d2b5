"""Checkpoints of one network on one path: train it (or load it), freeze all but the selection, train on and keep one
checkpoint every few steps (p-diff, arXiv 2402.13144, sec. 3.1).

What happens in a step follows from the seed, the phase and the step alone, and from the weights before it. So a run
that was killed goes on from the newest `TrainingState` of its journal and ends, on a CPU, in the very same data set.

Shapes: P parameters, N images, B batch, C, H and W channels and pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.image_batches import ImageBatches
from pdiff_hub.collect.parts import CheckpointJournal, TrainingState
from pdiff_hub.networks import NETWORK_NAMES, build_network, logits, resolve_network
from pdiff_hub.networks.prefix_cache import Answers, PrefixPlan, plan_prefix, record, serve
from pdiff_hub.param_autoencoder import ParamLayout
from pdiff_hub.safe_files import write_safetensors
from pdiff_hub.tasks import Task

_RATES = {"train": "learning_rate", "finetune": "finetune_learning_rate"}  # the two phases
_WARM_UP = 0.1  # of the first phase's steps
_PART_ROWS, _PART_BYTES = 20, 256 << 20  # a part is committed when it reaches either,
_STATE_SECONDS = 30.0  # or when the last one is that old: no more work than this is ever done twice
_MAX_SHARED_BYTES = 1 << 30  # of activations kept for judging checkpoints
_DIVERGED = 100.0  # times the loss of guessing


@dataclass(frozen=True)
class FinetuneConfig:
    """How `collect_finetune` trains.

    Args:
        num_checkpoints, save_every: K, 2 or more; and the steps from one to the next, 1 or more.
        epochs: of the first phase; 0 collects from the initial, or pretrained, weights on.
        batch_size: cut to the number of training images; the last incomplete batch of an epoch is left out.
        learning_rate: of AdamW in the first phase, the peak of a linear warm-up and half a cosine.
        finetune_learning_rate: of a fresh AdamW in the second phase, constant.
        weight_decay, label_smoothing: of both phases; 0 or more, in [0, 1).
        buffers: whether running statistics are collected, as in `ParamLayout.from_module`.

    Raises ValueError naming the option that is out of range.
    """

    num_checkpoints: int = 200
    save_every: int = 5
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 3e-3
    finetune_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    buffers: bool | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for option, least in (("num_checkpoints", 2), ("save_every", 1), ("epochs", 0), ("batch_size", 1)):
            if type(value := getattr(self, option)) is not int or value < least:
                raise ValueError(f"{option} must be an integer from {least}, found {value!r}")
        for option in ("learning_rate", "finetune_learning_rate", "weight_decay", "label_smoothing"):
            value, rate, below = getattr(self, option), option.endswith("rate"), 1 if "label" in option else math.inf
            if type(value) not in (int, float) or not (0 < value < below or (value == 0 and not rate)):
                wanted = "above 0" if rate else "from 0" + " and below 1" * (below == 1)
                raise ValueError(f"{option} must be a number {wanted}, found {value!r}")
        if not isinstance(self.buffers, bool | None):
            raise ValueError(f"buffers must be true, false or null, found {self.buffers!r}")


def collect_finetune(
    task: Task,
    network_spec: str | Mapping[str, Any],
    select: str | Sequence[str],
    config: FinetuneConfig,
    directory: str | Path,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    trained: Path | None = None,
    progress: bool = True,
) -> CheckpointDataset:
    """Trains one network and collects `config.num_checkpoints` checkpoints of its selected tensors in `directory`.

    First phase: the whole network. Second phase: the selected parameters only, and what else could move is held still:
    a module with running statistics that are not selected runs in eval mode, normalising with them instead of changing
    them. What is saved is then the whole difference between two checkpoints.

    Args:
        task: trained on `train`, each checkpoint judged on `validation`.
        network_spec: as in `resolve_network`; `pretrained` weights are loaded when collecting starts. The data set
            keeps the complete spec: `build_network(dataset.network, pretrained=False)` downloads nothing.
        select: as in `ParamLayout.from_module`.
        directory: where the data set will be. A run with the same arguments that was stopped there is gone on with,
            without losing or repeating a checkpoint; one that had finished is only opened.
        seed: 0 or larger; decides all randomness. The caller's random number generators are left as they were.
        trained: a folder where the network as the first phase leaves it is kept, and looked for: runs that differ only
            in what they select or how they train on share it, with the same result as without.
        progress: show bars where stderr is a terminal.

    Returns:
        K rows in order of `metadata[k]`: run, seed, step (of the second phase, counted from 1), train_loss (mean
        since the checkpoint before), validation_loss (without label smoothing), validation_accuracy (a fraction).

    Raises:
        ValueError: bad options; nothing to train in the selection; a directory with checkpoints of other settings;
            training that diverges (committed checkpoints stay); a network that changes tensors outside the selection.
    """
    place = torch.empty(0, device=device).device  # with its index, if it has one
    shape = {"in_channels": task.in_channels, "image_size": task.image_size, "num_classes": task.num_classes}
    spec = resolve_network(network_spec, **shape)
    network = build_network(spec, seed=seed, pretrained=False)
    layout = ParamLayout.from_module(network, select, config.buffers)
    if not _trainable(network, layout):
        raise ValueError(f"select={select!r} has no parameter of {spec['name']!r} that can be trained; select weights.")
    settings = {"method": "finetune", "seed": seed, "device": place.type, **asdict(config), "network": spec,
                "select": layout.select, "task": task.spec["resolved"]["fingerprint"], "augment": task.spec["augment"]}
    journal = CheckpointJournal(directory, settings, layout)
    if journal.finished:
        return CheckpointDataset.from_pretrained(directory)
    state = journal.state
    if state is None and spec.get("pretrained") is not None:
        network = build_network(spec, seed=seed)
    network = network.to(place)
    if spec["name"] in NETWORK_NAMES:
        # Twice as fast on a CPU. Not for a network of the user's, which may use .view, where this would be an error.
        for parameter in (each for each in network.parameters() if each.ndim == 4):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    run = _Run(network, layout, ImageBatches(task, config.batch_size, seed, place), config)
    hide = None if progress else True  # None: where stderr is no terminal
    # torch's generators are put back afterwards, and cuDNN chooses algorithms that give the same result each time.
    with (torch.random.fork_rng([place.index] if place.type == "cuda" else []),
          torch.backends.cudnn.flags(enabled=True, deterministic=True)):
        if state is not None:
            run.load(state)
        if run.phase == "train":
            _trained_network(run, journal, hide, None if trained is None else trained / _trained_name(settings))
        _finetune(run, journal, {"run": f"finetune-{seed}", "seed": seed}, hide)
    return journal.finish(network=spec, task=task.spec, frozen=layout.frozen_state(network.state_dict()),
                          collect={"method": "finetune"})


def _trained_network(run: _Run, journal: CheckpointJournal, hide: bool | None, file: Path | None) -> None:
    """The first phase, or the network that another run's first phase has left in `file`."""
    if file is not None and file.exists():
        run.network.load_state_dict(load_file(file, device=str(run.images.device)))
        run.begin("finetune")
        return
    _train(run, journal, hide)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(file, run.network.state_dict())


def _trained_name(settings: Mapping[str, Any]) -> str:
    """A file name that is the same for settings with the same first phase."""
    second = ("num_checkpoints", "save_every", "finetune_learning_rate", "buffers", "select")
    first = {key: value for key, value in settings.items() if key not in second}
    return f"trained-{hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()[:12]}.safetensors"


def _train(run: _Run, journal: CheckpointJournal, hide: bool | None) -> None:
    """The first phase from where `run` is; leaves it at the start of the second, saved."""
    per_epoch, saved = run.images.steps_per_epoch, time.monotonic()
    loss, first = torch.zeros((), device=run.images.device), run.step
    with tqdm(total=run.num_train_steps, initial=run.step, desc="train", unit="step", disable=hide) as bar:
        while run.step < run.num_train_steps:
            loss += run.take_step()
            bar.update()
            old = time.monotonic() - saved >= _STATE_SECONDS
            if old or run.step % per_epoch == 0:
                bar.set_postfix(loss=f"{run.checked_mean(loss, first):.4f}")
                loss, first = torch.zeros_like(loss), run.step
            if old:
                journal.save_state(run.state())
                saved = time.monotonic()
    run.begin("finetune")
    journal.save_state(run.state())


def _finetune(run: _Run, journal: CheckpointJournal, row: Mapping[str, Any], hide: bool | None) -> None:
    """The second phase from where `run` is, with parts committed on the way."""
    total, every = run.config.num_checkpoints, run.config.save_every
    most = max(1, min(_PART_ROWS, _PART_BYTES // (4 * run.layout.num_params)))
    rows: list[tuple[Tensor, dict[str, Any]]] = []
    saved, start = time.monotonic(), journal.num_checkpoints
    with tqdm(total=total, initial=start, desc="checkpoints", unit="checkpoint", disable=hide) as bar:
        for number in range(start + 1, total + 1):
            loss, first = torch.zeros((), device=run.images.device), run.step
            for _ in range(every):
                loss += run.take_step()
            train_loss = run.checked_mean(loss, first)
            validation_loss, accuracy = run.validate()
            rows.append((run.params(), {**row, "step": run.step, "train_loss": train_loss,
                                        "validation_loss": validation_loss, "validation_accuracy": accuracy}))
            bar.set_postfix(loss=f"{train_loss:.4f}", accuracy=f"{accuracy:.4f}")
            bar.update()
            if number == total or len(rows) >= most or time.monotonic() - saved >= _STATE_SECONDS:
                run.check_frozen()
                journal.append(torch.stack([each for each, _ in rows]), [each for _, each in rows], run.state())
                rows, saved = [], time.monotonic()


class _Run:
    """One network in training: its phase ("train" or "finetune"), the step it is at, its optimiser."""

    def __init__(self, network: nn.Module, layout: ParamLayout, images: ImageBatches, config: FinetuneConfig):
        self.network, self.layout, self.images, self.config = network, layout, images, config
        self.num_train_steps = config.epochs * images.steps_per_epoch
        self.begin("train")

    def begin(self, phase: str) -> None:
        """The start of a phase with the weights as they are: a fresh AdamW, and in the second what stands still."""
        self.phase, self.step = phase, 0
        self._still: list[nn.Module] = []
        if phase == "finetune":
            trainable = _trainable(self.network, self.layout)
            self.network.requires_grad_(False)
            for parameter in trainable:
                parameter.requires_grad_(True)
            self._frozen = self._frozen_floats()
            # The modules that hold a frozen float buffer themselves; BatchNorm, mostly.
            owners = {name.rpartition(".")[0] for name, _ in self.network.named_buffers() if name in self._frozen}
            self._still = [self.network.get_submodule(owner) for owner in owners]
        self._set_modes()
        self._shared: list[Answers] | None = None
        self._trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        rate, decay = getattr(self.config, _RATES[phase]), self.config.weight_decay
        self._optimizer = torch.optim.AdamW(self._trained, lr=rate, weight_decay=decay, fused=True)

    def take_step(self) -> Tensor:
        """One step; -> its loss, a scalar on the device."""
        inputs_BCHW, labels_B = self.images.batch(list(_RATES).index(self.phase), self.step)
        if self.phase == "train":
            self._optimizer.param_groups[0]["lr"] = self._train_rate()
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(logits(self.network(inputs_BCHW)), labels_B, label_smoothing=smoothing)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        self.step += 1
        return loss.detach()

    def checked_mean(self, loss: Tensor, first: int) -> float:
        """The mean of a `loss` summed since step `first`; ValueError if it, or a weight, is that of a lost training."""
        mean = loss.item() / (self.step - first)
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in self._trained)
        if finite and mean <= _DIVERGED * math.log(max(2, self.images.task.num_classes)):
            return mean
        option = _RATES[self.phase]
        raise ValueError(f"training diverged in steps {first + 1} to {self.step} of the {self.phase} phase (mean loss "
                         f"{mean:.4g}{'' if finite else ', weights not finite'}); lower {option} (it is "
                         f"{getattr(self.config, option)}) and collect into another directory.")

    def params(self) -> Tensor:
        """The checkpoint: float32 [P] on the CPU."""
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
                output = logits(self.network(inputs_BCHW))
            sums[0] += F.cross_entropy(output, labels_B, reduction="sum")
            sums[1] += (output.argmax(1) == labels_B).sum()
        self._set_modes()
        loss, accuracy = (sums / len(self.images.task.validation)).tolist()
        return loss, accuracy

    def _record_validation(self) -> list[Answers]:
        """What comes before the first trained tensor, for each batch of validation images: it is the same at every
        checkpoint. Nothing where it would take too much memory."""
        live = self.network.state_dict(keep_vars=True)
        state = {entry.name: live[entry.name].detach() for entry in self.layout.entries}

        def forward(varying: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
            return logits(functional_call(self.network, dict(varying), (inputs,)))

        shared: list[Answers] = []
        plan: PrefixPlan | None = None
        for inputs_BCHW, _ in self.images.validation_batches():
            plan = plan or plan_prefix(self.network, forward, state, inputs_BCHW[:2])
            if plan.kept_bytes * len(self.images.task.validation) > _MAX_SHARED_BYTES:
                return []
            shared.append(record(self.network, plan, forward, state, inputs_BCHW))
        return shared

    def check_frozen(self) -> None:
        """ValueError if a float tensor outside the selection has changed in the second phase."""
        for name, tensor in self._frozen_floats().items():
            if not torch.equal(tensor, self._frozen[name]):
                raise ValueError(f"tensor {name!r} is not selected, but the network changes it while it is trained, "
                                 "also in eval mode; select it too (buffers=True for buffers).")

    def state(self) -> TrainingState:
        """All that is needed to go on exactly: weights, buffers, the optimiser's moments, phase and step."""
        tensors: dict[str, Tensor] = {f"buffer/{name}": tensor for name, tensor in self.network.named_buffers()}
        for name, parameter in self.network.named_parameters():
            moments = self._optimizer.state.get(parameter, {})  # reading a missing one from it would add it
            tensors |= {f"{key}/{name}": tensor for key, tensor in {"parameter": parameter, **moments}.items()}
        return TrainingState(tensors, {"phase": self.phase, "step": self.step})

    def load(self, state: TrainingState) -> None:
        """Goes on from `state`, which a run with the same arguments had."""
        parameters = dict(self.network.named_parameters())
        for name, parameter in parameters.items():
            parameter.data.copy_(state.tensors[f"parameter/{name}"])
        for name, buffer in self.network.named_buffers():
            buffer.copy_(state.tensors[f"buffer/{name}"])
        self.begin(state.info["phase"])
        self.step = state.info["step"]
        for path, tensor in state.tensors.items():
            key, _, name = path.partition("/")
            if key not in ("parameter", "buffer"):
                like = parameters[name] if tensor.ndim else tensor.to(parameters[name].device)
                self._optimizer.state[parameters[name]][key] = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)

    def _set_modes(self) -> None:
        self.network.train()
        for module in self._still:
            module.training = False  # not eval(), which would reach the modules inside it

    def _train_rate(self) -> float:
        peak, warm_up = self.config.learning_rate, max(1, round(_WARM_UP * self.num_train_steps))
        done = (self.step - warm_up) / max(1, self.num_train_steps - warm_up)
        return peak * ((self.step + 1) / warm_up if done < 0 else 0.5 * (1 + math.cos(math.pi * done)))

    def _frozen_floats(self) -> dict[str, Tensor]:
        frozen = self.layout.frozen_state(self.network.state_dict())
        return {name: tensor for name, tensor in frozen.items() if tensor.is_floating_point()}


def _trainable(network: nn.Module, layout: ParamLayout) -> list[Tensor]:
    """The selected parameters (tied ones once), without those that the network's factory has frozen."""
    live = network.state_dict(keep_vars=True)
    return [live[entry.name] for entry in layout.entries if live[entry.name].requires_grad]
