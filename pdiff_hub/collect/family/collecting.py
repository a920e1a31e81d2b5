"""Trains one network per task and seed as one batched program.

Seen tasks become the data set; held-out tasks, which nothing may be trained on, a data set of their own beside it.
All networks start from the same weights. If they do not, their hidden units are put into one order in the end.
Shapes: K networks, R networks of one part, D numbers of a condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.index import HELD_OUT, INDEX_NAME
from pdiff_hub.collect.alignment import AlignmentInfo, align_to_mean, align_to_reference, mean_of, require_alignable
from pdiff_hub.collect.family.family import Family, build_family, require_view, split_of
from pdiff_hub.collect.family.split import TaskSplit
from pdiff_hub.collect.family.trunk import train_trunk
from pdiff_hub.collect.journal import CheckpointJournal, TrainingState, tidy_finished
from pdiff_hub.collect.population.batched_training import BatchedTrainer
from pdiff_hub.collect.population.training_groups import train_in_groups
from pdiff_hub.collect.whole_networks import require_shared, require_shared_start, whole_layout
from pdiff_hub.errors import PdiffError, require
from pdiff_hub.networks import build_network
from pdiff_hub.networks.dry_run import build_checked
from pdiff_hub.safe_files import require_same_settings
from pdiff_hub.tasks import Task
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_BATCHES = 8  # whose images a step of the trunk takes
_SAMPLE = 16  # inputs on which alignment is checked


@dataclass(frozen=True)
class FamilyConfig:
    """Networks of many related tasks are trained from one start; networks can then be asked for tasks never seen.

    Args:
        family ("class-subsets", "rotation", or a function): what the tasks are. class-subsets: is the label one of
            these classes? rotation: the images are turned by an angle. `some.module:function`, of yours, gets the task
            and `options`, and gives an object as `pdiff_hub.collect.family.Family` describes.
        options: of the family; class-subsets has none, those of rotation are below.
        num_tasks (at least 2): tasks that are seen.
        seeds_per_task (at least 1): networks for each of them.
        held_out_tasks (at least 0): tasks that nothing is trained on but their own networks, one each; the audit asks
            for networks of these.
        epochs (at least 1): of each network's training.
        batch_size (at least 1): images per step of each network.
        learning_rate (above 0): of batched AdamW, with warm-up and cosine.
        weight_decay (at least 0): of the same.
        trunk_steps (at least 0): steps of training all seen tasks together, each with a last layer of its own, with
            `learning_rate`, eight batches in a step and no weight decay; every network then begins where they end. It
            needs two layers or more. 0: from random weights. What is generated for other tasks is better, and so is
            what simple ways make; it lies nearer to seen networks (docs/asking.md).
        pull_to_start (at least 0): half of so many times the squared distance from the first weights is added to the
            loss. Networks of different tasks then differ less and more regularly, so that more is known of those of
            other tasks; they are hardly worse up to 0.01, with a trunk 0.03 (docs/measurements.md, "Asking").
        shared_start: whether all networks start from the same weights. If not, each starts from the weights of its own
            seed, and the trained networks are aligned to the mean of those of seen tasks, as populations are. They are
            then less alike, and harder to learn; the weight decay of populations, 1.0, helps.

    Raises ValueError naming the option that is out of range.
    """

    family: str = "class-subsets"
    options: Mapping[str, Any] = field(default_factory=dict)
    num_tasks: int = 200
    seeds_per_task: int = 8
    held_out_tasks: int = 100
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    trunk_steps: int = 0
    pull_to_start: float = 0.0
    shared_start: bool = True

    def __post_init__(self) -> None:
        for option, least in (
            ("num_tasks", 2),
            ("seeds_per_task", 1),
            ("held_out_tasks", 0),
            ("epochs", 1),
            ("batch_size", 1),
            ("trunk_steps", 0),
        ):
            value = getattr(self, option)
            require(type(value) is int and value >= least, f"collect.{option}", value, f"an integer from {least}")
        require(isinstance(self.family, str), "collect.family", self.family, "the name of a family")
        require(type(self.shared_start) is bool, "collect.shared_start", self.shared_start, "true or false")
        if self.trunk_steps and not self.shared_start:
            raise PdiffError("collect.trunk_steps trains one start for all networks; it needs shared_start: true.")
        require(isinstance(self.options, Mapping), "collect.options", self.options, "a mapping of options")
        require(self.learning_rate > 0, "collect.learning_rate", self.learning_rate, "above 0")
        for option in ("weight_decay", "pull_to_start"):
            value = getattr(self, option)
            require(value >= 0, f"collect.{option}", value, "at least 0")


def family_classes(config: FamilyConfig, task: Task, *, allow_factory: bool = True) -> int:
    """How many answers a network of the family has; ValueError for an unknown family or option.

    allow_factory: as in `build_family`.
    """
    return build_family(config.family, config.options, task, allow_factory=allow_factory).num_classes


def collect_family(
    task: Task,
    network_spec: Mapping[str, Any],
    select: str | Sequence[str],
    config: FamilyConfig,
    directory: Path,
    *,
    seed: int,
    device: str = "cpu",
    progress: bool = True,
    allow_factory: bool = True,
) -> CheckpointDataset:
    """Trains the networks of all tasks and keeps their last weights, as a data set in `directory`.

    Its `held_out()` are the networks of the held-out tasks. The images come in an order of their own for each network.
    A killed run resumes when it is started again. allow_factory: as in `build_family`. ValueError for options
    that do not go with the family, for networks without a shared start that cannot be aligned, and for a loss that is
    not finite.
    """
    spec = dict(network_spec)
    family = build_family(config.family, config.options, task, allow_factory=allow_factory)
    split = split_of(family, config.family, config.num_tasks, config.held_out_tasks, seed)
    collect = asdict(config)
    for option in ("shared_start", "pull_to_start", "trunk_steps"):
        if collect[option] == getattr(FamilyConfig, option):  # a collection begun before there was the option goes on
            del collect[option]
    settings = {"collect": collect, "network": spec, "task": task.spec, "seed": seed}
    if (directory / INDEX_NAME).exists():  # written last
        dataset = CheckpointDataset.from_pretrained(directory)
        require_same_settings(directory, dataset.collect.get("settings", {}), settings)
        tidy_finished(directory)
        return dataset
    network = build_checked(spec, seed=seed)
    layout = whole_layout(network, select, "family", "each network trains for itself")
    require_view(family, config.family, task, split)
    if not config.shared_start:
        require_shared_start(layout, network, lambda: build_network(spec, seed=seed + 1, pretrained=False))
        require_alignable(network, task.inputs(task.validation, slice(0, _SAMPLE)))
    journal = CheckpointJournal(directory, settings, layout)
    run = _Run(task, spec, network, layout, config, family, seed, device, progress)
    if config.trunk_steps and not journal.finished:
        run = replace(run, start=journal.once("start", partial(run.trained_start, split.seen_TD)))
    seen = _Part(
        journal,
        split.seen_TD.repeat_interleave(config.seeds_per_task, dim=0),
        [group for group in split.seen_groups for _ in range(config.seeds_per_task)],
        first=0,
        what="train tasks",
    )
    unseen = None
    if len(split.held_out_UD):
        journal = CheckpointJournal(directory / HELD_OUT, settings, layout)
        groups, first = split.held_out_groups, len(seen.conditions_KD)
        unseen = _Part(journal, split.held_out_UD, groups, first, "train held-out tasks")
        run.train(unseen)
    run.train(seen)
    if not config.shared_start:
        run.align(seen, unseen)
    if unseen is not None:
        run.finish(unseen, split)
    return run.finish(seen, split)


@dataclass
class _Part:
    """The networks of the seen tasks, or those of the held-out ones.

    Attributes:
        first: the number of the first network, which decides its seed.
        params_KP, alignment: the aligned networks and what was done to them, if they are aligned.
    """

    journal: CheckpointJournal
    conditions_KD: Tensor
    groups: Sequence[str]
    first: int
    what: str
    params_KP: Tensor | None = None
    alignment: AlignmentInfo | None = None


@dataclass(frozen=True)
class _Run:
    """start: the state dict that all networks begin with; None for that of `seed`."""

    task: Task
    spec: dict[str, Any]
    network: nn.Module
    layout: ParamLayout
    config: FamilyConfig
    family: Family
    seed: int
    device: str
    progress: bool
    start: Mapping[str, Tensor] | None = None

    def trained_start(self, seen_TD: Tensor) -> dict[str, Tensor]:
        """The state dict of the network of this seed after all seen tasks have trained it together."""
        network = build_network(self.spec, seed=self.seed, pretrained=False).to(self.device)
        train_trunk(
            network,
            self.family,
            seen_TD,
            self.task,
            self.config.trunk_steps,
            images=_BATCHES * self.config.batch_size,
            learning_rate=self.config.learning_rate,
            seed=self.seed,
            progress=self.progress,
        )
        return {name: tensor.cpu() for name, tensor in network.state_dict().items()}

    def train(self, part: _Part) -> None:
        """Collects one network per row of `part.conditions_KD` in its journal."""
        journal = part.journal

        def make(rows: range) -> BatchedTrainer:
            own_RD = part.conditions_KD[rows.start : rows.stop].to(self.device)
            return self._trainer(own_RD, [self.seed + part.first + row for row in rows])

        def keep(trainer: BatchedTrainer, rows: range) -> None:
            stacked = trainer.stacked_state()
            require_shared(self.layout, stacked, self._frozen())
            params_RP = self.layout.unstack(stacked)
            journal.append(params_RP, self._metadata(trainer, part.groups[rows.start : rows.stop]), TrainingState())

        if not journal.finished:
            num_networks, epochs = len(part.conditions_KD), self.config.epochs
            train_in_groups(
                journal, num_networks, epochs, make, keep, at_once=None, what=part.what, progress=self.progress
            )

    def align(self, seen: _Part, unseen: _Part | None) -> None:
        """Aligns the seen networks to their mean, and the unseen ones to that mean, on which they have no influence."""
        sample_NX = self.task.inputs(self.task.validation, slice(0, _SAMPLE))
        options: dict[str, Any] = {"frozen": self._frozen(), "seed": self.seed, "progress": self.progress}
        seen.params_KP = seen.journal.collected()
        seen.alignment = align_to_mean(self.network, seen.params_KP, self.layout, sample_NX, **options)
        if unseen is not None and not unseen.journal.finished:
            unseen.params_KP, mean_P = unseen.journal.collected(), mean_of(seen.params_KP)
            unseen.alignment = align_to_reference(
                self.network, unseen.params_KP, self.layout, sample_NX, mean_P, **options
            )

    def finish(self, part: _Part, split: TaskSplit) -> CheckpointDataset:
        began = " All networks began with a trunk that the seen tasks trained together." if self.start else ""
        collect: dict[str, Any] = {"method": "family", "rule": (split.rule + began).strip()}
        return part.journal.finish(
            network=self.spec,
            task=self.task.spec,
            frozen=self._frozen(),
            collect=collect if part.alignment is None else {**collect, "alignment": part.alignment.to_dict()},
            conditions=split.spec,
            conditions_KD=part.conditions_KD,
            params_KP=part.params_KP,
        )

    def _frozen(self) -> dict[str, Tensor]:
        return self.layout.frozen_state(self.network.state_dict())

    def _trainer(self, own_RD: Tensor, seeds: list[int]) -> BatchedTrainer:
        config, task = self.config, self.task
        first = seeds[0]

        def begin(own: int) -> nn.Module:
            network = build_network(self.spec, seed=self.seed if config.shared_start else own, pretrained=False)
            if self.start is not None:
                network.load_state_dict(self.start)
            return network.train()

        return BatchedTrainer(
            begin,
            seeds,
            task.inputs(task.train).to(self.device),
            task.train.labels_N.to(self.device),
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            pull_to_start=config.pull_to_start,
            augment=task.augment if any(task.spec["augment"].values()) else None,
            view=lambda inputs, labels, seeds_k: self.family.view(inputs, labels, own_RD[seeds_k - first]),
        )

    def _metadata(self, trainer: BatchedTrainer, groups: Sequence[str]) -> list[dict[str, Any]]:
        validation = self.task.validation
        loss_R, accuracy_R = trainer.judge(
            self.task.inputs(validation).to(self.device), validation.labels_N.to(self.device)
        )
        steps = self.config.epochs * (len(self.task.train) // min(self.config.batch_size, len(self.task.train)))
        return [
            {
                "run": group,
                "seed": seed,
                "step": steps,
                "train_loss": float(last),
                "validation_loss": float(loss),
                "validation_accuracy": float(accuracy),
            }
            for group, seed, last, loss, accuracy in zip(
                groups, trainer.seeds, trainer.last_loss_K, loss_R, accuracy_R, strict=True
            )
        ]
