"""Trains one network per task and seed, all from one shared start, as one batched program.

Seen tasks become the data set; held-out tasks, which nothing may be trained on, a data set of their own beside it.
Shapes: K networks, R networks of one part, D numbers of a condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.checkpoints.files import INDEX_NAME
from pdiff_hub.collect.family.family import Family, build_family
from pdiff_hub.collect.journal import CheckpointJournal, TrainingState
from pdiff_hub.collect.population.batched_training import BatchedTrainer
from pdiff_hub.collect.population.training_groups import train_in_groups
from pdiff_hub.collect.whole_networks import whole_layout
from pdiff_hub.errors import require
from pdiff_hub.networks import build_network
from pdiff_hub.safe_files import require_same_settings
from pdiff_hub.tasks import Task
from pdiff_hub.travelling.param_autoencoder import ParamLayout
from pdiff_hub.travelling.pipeline_pdiff import ConditionSpec

_UNSEEN = "unseen"


@dataclass(frozen=True)
class FamilyConfig:
    """How `collect_family` trains.

    Args:
        family: "class-subsets" or "rotation". options: of the family (`family.build_family`).
        num_tasks: seen tasks, 2 or more. seeds_per_task: networks for each of them, 1 or more.
        held_out_tasks: tasks that nothing is trained on but their own networks, 0 or more; one network each.
        epochs, batch_size: 1 or more. learning_rate, weight_decay: of batched AdamW with warm-up and cosine.

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

    def __post_init__(self) -> None:
        for option, least in (
            ("num_tasks", 2),
            ("seeds_per_task", 1),
            ("held_out_tasks", 0),
            ("epochs", 1),
            ("batch_size", 1),
        ):
            value = getattr(self, option)
            require(type(value) is int and value >= least, f"collect.{option}", value, f"an integer from {least}")
        require(isinstance(self.options, Mapping), "collect.options", self.options, "a mapping of options")
        require(self.learning_rate > 0, "collect.learning_rate", self.learning_rate, "above 0")
        require(self.weight_decay >= 0, "collect.weight_decay", self.weight_decay, "at least 0")


def family_classes(config: FamilyConfig, task: Task) -> int:
    """How many answers a network of the family has; ValueError for an unknown family or option."""
    return build_family(config.family, config.options, task).num_classes


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
) -> CheckpointDataset:
    """Trains the networks of all tasks and keeps their last weights, as a data set in `directory`.

    `unseen_of(directory)` opens the networks of the held-out tasks. All networks start from the same weights; the
    images come in an order of their own for each. A killed run resumes when it is started again. ValueError for
    options that do not go with the family, and for a loss that is not finite.
    """
    spec = dict(network_spec)
    family = build_family(config.family, config.options, task)
    split = family.split(config.num_tasks, config.held_out_tasks, seed)
    settings = {"collect": asdict(config), "network": spec, "task": task.spec, "seed": seed}
    if (directory / INDEX_NAME).exists():  # written last
        dataset = CheckpointDataset.from_pretrained(directory)
        require_same_settings(directory, dataset.collect.get("settings", {}), settings)
        return dataset
    network = build_network(spec, seed=seed, pretrained=False)
    layout = whole_layout(network, select, "family", "each network trains for itself")
    run = _Run(task, spec, layout, config, family, settings, seed, device, progress)
    if len(split.held_out_UD):
        groups, first = split.held_out_groups, config.num_tasks * config.seeds_per_task
        run.train(directory / _UNSEEN, split.spec, split.held_out_UD, groups, first, split.rule, "train held-out tasks")
    seen_KD = split.seen_TD.repeat_interleave(config.seeds_per_task, dim=0)
    seen_groups = [group for group in split.seen_groups for _ in range(config.seeds_per_task)]
    return run.train(directory, split.spec, seen_KD, seen_groups, 0, split.rule, "train tasks")


def unseen_of(directory: Path) -> CheckpointDataset | None:
    """The networks of the held-out tasks of the set in `directory`; None if it has none."""
    place = directory / _UNSEEN
    return CheckpointDataset.from_pretrained(place) if (place / INDEX_NAME).exists() else None


@dataclass(frozen=True)
class _Run:
    task: Task
    spec: dict[str, Any]
    layout: ParamLayout
    config: FamilyConfig
    family: Family
    settings: dict[str, Any]
    seed: int
    device: str
    progress: bool

    def train(
        self,
        directory: Path,
        conditions: ConditionSpec,
        conditions_KD: Tensor,
        groups: Sequence[str],
        first: int,
        rule: str,
        what: str,
    ) -> CheckpointDataset:
        """One network per row of conditions_KD. first: the number of the first network, which decides its seed."""
        journal = CheckpointJournal(directory, self.settings, self.layout)
        config = self.config
        network = build_network(self.spec, seed=self.seed, pretrained=False)

        def make(rows: range) -> BatchedTrainer:
            own_RD = conditions_KD[rows.start : rows.stop].to(self.device)
            return self._trainer(own_RD, [self.seed + first + row for row in rows])

        def keep(trainer: BatchedTrainer, rows: range) -> None:
            params_RP = self.layout.unstack(trainer.stacked_state())
            journal.append(params_RP, self._metadata(trainer, groups[rows.start : rows.stop]), TrainingState())

        if not journal.finished:
            train_in_groups(
                journal, len(conditions_KD), config.epochs, make, keep, at_once=None, what=what, progress=self.progress
            )
        collect = {"method": "family", "rule": rule}
        return journal.finish(
            network=self.spec,
            task=self.task.spec,
            frozen=self.layout.frozen_state(network.state_dict()),
            collect=collect,
            conditions=conditions,
            conditions_KD=conditions_KD,
        )

    def _trainer(self, own_RD: Tensor, seeds: list[int]) -> BatchedTrainer:
        config, task = self.config, self.task
        first = seeds[0]
        return BatchedTrainer(
            lambda _: build_network(self.spec, seed=self.seed, pretrained=False).train(),
            seeds,
            task.inputs(task.train).to(self.device),
            task.train.labels_N.to(self.device),
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
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
