"""The recipes of all tables and figures, at two scales: "small" runs on a laptop, "paper" is as in the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pdiff_hub.recipes import Recipe, load_recipe, recipe_from_dict
from pdiff_hub.recipes.cells import TABLE_1, TABLE_3, norms_cell

Scale = Literal["small", "paper"]
SCALES: tuple[Scale, ...] = ("small", "paper")

# A small-scale cell is compared with the published row of the same network on this data set (table 1, table 3).
_BESIDE_NORMS, _BESIDE_WHOLE = "cifar100", "cifar10"
# The real architectures on small images: options and epochs of training from scratch. Patches are so large that a base
# model takes minutes on two cores.
_SMALL: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "resnet18": ({}, 5),
    "resnet50": ({}, 5),
    "vit_tiny": ({"patch_size": 2}, 15),
    "vit_base": ({"patch_size": 4}, 6),
    "convnext_tiny": ({"patch_size": 1}, 10),
    "convnext_base": ({"patch_size": 1}, 4),
}
_AS_PUBLISHED: Mapping[str, Any] = {"label_smoothing": 0.0}  # of networks that are trained once
_SMALL_COLLECT: Mapping[str, Any] = {"learning_rate": 1e-3, "finetune_learning_rate": 3e-3, "save_every": 1}
_SMALL_JUDGED = 100  # networks per cell; each needs its own pass through all that follows the first generated norm
# Norm layers of a ResNet-18 in the order of its modules (transformers): first the stem's, then per stage the shortcut's
# (if there is one) and the two of each block. Layers 10-14, 14-16, 16-18 of table 2b have 4 x 256, 2 x 512, 2 x 512
# channels.
_DEPTHS = {"10-14": "norms:12-15", "14-16": "norms:17-18", "16-18": "norms:19-20"}
_SMALL_NOISE_STEPS = 500
_NOISES: Mapping[str, Mapping[str, float]] = {
    "none": {"input_noise": 0.0, "latent_noise": 0.0},
    "parameters": {"input_noise": 1e-3, "latent_noise": 0.0},
    "latents": {"input_noise": 0.0, "latent_noise": 0.1},
    "both": {"input_noise": 1e-3, "latent_noise": 0.1},
}


@dataclass(frozen=True)
class Settings:
    """task: a data set, by name, Hub id or folder, that replaces the data set of the scale; None keeps the scale's."""

    scale: Scale = "small"
    task: str | None = None
    seed: int = 0

    @property
    def main_checkpoints(self) -> int:
        """K of the run that is shown in the figures."""
        return 200

    @property
    def checkpoint_numbers(self) -> tuple[int, ...]:
        """The values of K in table 2a."""
        return (1, 10, 50, 200, 500)

    @property
    def beside(self) -> str:
        """Where the published rows in tables 1 and 3 come from, in words."""
        if self.scale == "paper" and self.task is None:
            return "the same cell"
        return f"the same network on {_BESIDE_NORMS} (table 1) or {_BESIDE_WHOLE} (table 3)"

    def main(self) -> Recipe:
        """The run of table 2a at K = 200, which the figures show too; with every baseline."""
        if self.scale == "paper":
            return self._seeded(load_recipe("cifar100-resnet18-norms", self._task_override()))
        return self._seeded(_whole(self.task or "digits", "mlp3"))

    def plain(self, recipe: Recipe) -> Recipe:
        """The same recipe without baselines, for tables that need none."""
        return replace(recipe, evaluate=replace(recipe.evaluate, baselines=0))

    def norms(
        self, dataset: str, network: str, select: str = "last_norms:2", autoencoder: Mapping[str, Any] | None = None
    ) -> Recipe:
        """A cell of table 1, without baselines."""
        if self.scale == "paper":
            overrides = [
                f"select={select}",
                *(f"autoencoder.{key}={value}" for key, value in (autoencoder or {}).items()),
            ]
            return self.plain(self._seeded(load_recipe(norms_cell(dataset, network), overrides)))
        options, epochs = _SMALL[network]
        recipe = recipe_from_dict(
            {
                "task": dataset,
                "network": {"name": network, **options},
                "select": select,
                "collect": {**_AS_PUBLISHED, **_SMALL_COLLECT, "epochs": epochs},
                "autoencoder": dict(autoencoder or {}),
                "generate": {"num_models": _SMALL_JUDGED},
                "evaluate": {"num_originals": _SMALL_JUDGED},
            }
        )
        return self.plain(self._seeded(recipe))

    def whole(self, dataset: str, network: str) -> Recipe:
        """A cell of table 3, without baselines."""
        if self.scale == "paper":
            return self.plain(self._seeded(load_recipe(f"{dataset}-{network}")))
        return self.plain(self._seeded(_whole(dataset, network)))

    def table1_cells(self) -> list[tuple[str, str, str]]:
        """By cell: (data set, network, data set of the published row)."""
        if self.scale == "small":
            return [(self.task or "digits", network, _BESIDE_NORMS) for network in _SMALL]
        if self.task is not None:
            return [(self.task, network, self.task) for network in _SMALL]
        return [(dataset, network, dataset) for dataset, network in TABLE_1.values()]

    def table3_cells(self) -> list[tuple[str, str, str]]:
        """By cell: (data set, network, data set of the published row)."""
        if self.scale == "paper" and self.task is None:
            return [(dataset, network, dataset) for dataset, network in TABLE_3.values()]
        return [(self.task or "digits", network, _BESIDE_WHOLE) for network in ("convnet3", "mlp3")]

    def depths(self) -> dict[str, Recipe]:
        """Table 2b: recipes by the numbers that the paper gives the generated layers."""
        return {name: self.norms(self._ablation_task, "resnet18", select) for name, select in _DEPTHS.items()}

    def noises(self) -> dict[str, Recipe]:
        """Table 2c: recipes with the paper's autoencoder, by noise augmentation."""
        steps = {} if self.scale == "paper" else {"steps": _SMALL_NOISE_STEPS}
        return {
            name: self.norms(self._ablation_task, "resnet18", autoencoder={"preset": "paper", **steps, **noise})
            for name, noise in _NOISES.items()
        }

    def seeds(self) -> Recipe:
        """Figure 3: three networks from three seeds, with conv, norm and linear layers; units are not aligned."""
        network = {"name": "convnet3", "norm": "group"}
        return self._seeded(
            recipe_from_dict(
                {
                    "task": self._ablation_task,
                    "network": network,
                    "collect": {"method": "population", "num_checkpoints": 3, "align": False},
                }
            )
        )

    def describe_main(self) -> str:
        """The main run in words."""
        recipe = self.main()
        return f"{_name(recipe.network)} on {_name(recipe.task)}, select: {recipe.select}"

    def describe_cells(self, whole: bool) -> str:
        """What a cell of table 1 or 3 is, in words."""
        if self.scale == "paper":
            return "Each cell as in the paper: a data set, a network, what of it is generated."
        if whole:
            return "Whole networks, the defaults of this package, on small images."
        return (
            "The real architectures, trained from scratch for a few epochs on small images (base models with large "
            "patches), then 200 checkpoints of their last two norm layers."
        )

    def describe_depths(self) -> str:
        """What table 2b varies, in words."""
        return (
            f"A ResNet-18 on {self._ablation_task}, trained once; then 2,048 numbers of norm layers at three "
            "depths are trained on, collected and generated."
        )

    def describe_noises(self) -> str:
        """What table 2c varies, in words."""
        steps = "30,000" if self.scale == "paper" else f"{_SMALL_NOISE_STEPS:,}"
        return (
            f"The paper's convolutional autoencoder on the last two norm layers of a ResNet-18 on "
            f"{self._ablation_task}, {steps} steps, under each noise augmentation (sigma 0.001 on parameters, 0.1 "
            "on latents)."
        )

    @property
    def _ablation_task(self) -> str:
        return self.task or ("digits" if self.scale == "small" else "cifar100")

    def _task_override(self) -> list[str]:
        return [f"task.dataset={self.task}"] if self.task else []

    def _seeded(self, recipe: Recipe) -> Recipe:
        return replace(recipe, seed=self.seed)


def _whole(task: str, network: str) -> Recipe:
    return recipe_from_dict({"task": task, "network": network, "collect": dict(_AS_PUBLISHED)})


def _name(spec: str | Mapping[str, Any]) -> str:
    return spec if isinstance(spec, str) else str(spec.get("dataset", spec.get("name")))
