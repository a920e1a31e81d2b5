"""`PDiffArguments`: the options of a run in Python. They are those of a recipe, with the same defaults and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from pdiff_hub.collect.finetune import FinetuneConfig
from pdiff_hub.errors import PdiffError, require
from pdiff_hub.networks.devices import require_device
from pdiff_hub.recipes import EvaluateConfig, GenerateConfig, Recipe, recipe_from_dict
from pdiff_hub.recipes.recipe import CollectConfig, method_of
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig

Options = Mapping[str, Any]
_SECTIONS = ("collect", "autoencoder", "diffusion", "generate", "evaluate")


@dataclass(frozen=True)
class PDiffArguments:
    """What a `PDiffTrainer` is to do, and where.

    Attributes:
        output_dir: the folder of the run: checkpoints, pipeline, results. A stopped run goes on in it.
        num_checkpoints, num_models: shortcuts for the options of these names in `collect` and `generate`.
        collect: how checkpoints are trained: an object such as `FinetuneConfig`, or the options by name as a recipe has
            them, `{"method": "population", "num_checkpoints": 200}`.
        autoencoder, diffusion, generate, evaluate: likewise.
        select, condition, seed: as in `Recipe`.
        device: which networks are trained, generated and judged on. The generator itself is trained where Accelerate
            finds a device.
        log_with: an Accelerate tracker, such as "tensorboard".

    After construction each section is an object with all its options. ValueError for one that is unknown, mistyped or
    out of range.
    """

    output_dir: str | Path
    _: KW_ONLY
    num_checkpoints: int | None = None
    num_models: int | None = None
    collect: CollectConfig | Options = field(default_factory=FinetuneConfig)
    autoencoder: AutoencoderConfig | Options = field(default_factory=AutoencoderConfig)
    diffusion: DiffusionConfig | Options = field(default_factory=DiffusionConfig)
    generate: GenerateConfig | Options = field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig | Options = field(default_factory=EvaluateConfig)
    select: str | Sequence[str] = Recipe.select
    condition: str | None = Recipe.condition
    seed: int = Recipe.seed
    device: str = "cpu"
    log_with: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.output_dir, str | Path):
            raise PdiffError(f"output_dir is {self.output_dir!r}, expected the name of a folder.")
        require_device(self.device, "device")
        given = {name: _options_of(name, getattr(self, name)) for name in _SECTIONS}
        collect, generate = given["collect"], given["generate"]
        if self.num_checkpoints is not None:
            method = collect.get("method", "finetune")
            if method not in ("finetune", "population"):
                raise PdiffError(
                    f"num_checkpoints is for fine-tunes and populations, and collect.method is {method!r}; leave it "
                    "out."
                )
            collect["num_checkpoints"] = self._shortcut("num_checkpoints", "collect")
        if self.num_models is not None:
            generate["num_models"] = self._shortcut("num_models", "generate")
        # The checks do not ask which task and network these are.
        checked = recipe_from_dict({"task": "digits", "network": "mlp", **self._others(), **given})
        for name in _SECTIONS:
            object.__setattr__(self, name, getattr(checked, name))

    def _shortcut(self, option: str, section: str) -> Any:
        value, options = getattr(self, option), getattr(self, section)
        if isinstance(options, Mapping) and options.get(option, value) != value:
            raise PdiffError(f"{option} is {value!r}, and {section} has {options[option]!r}; give one of them.")
        return value

    def _others(self) -> dict[str, Any]:
        several = isinstance(self.select, Sequence) and not isinstance(self.select, str)
        select = list(self.select) if several else self.select
        return {"select": select, "condition": self.condition, "seed": self.seed}

    def recipe(self, task: str | dict[str, Any], network: str | dict[str, Any]) -> Recipe:
        """The recipe of a run with these options. ValueError as `recipe_from_dict` raises it."""
        made = recipe_from_dict({"task": task, "network": network, **self._others()})
        assert not isinstance(self.collect, Mapping)
        sections: dict[str, Any] = {name: getattr(self, name) for name in _SECTIONS}
        return replace(made, method=method_of(self.collect), **sections)

    @classmethod
    def of(cls, recipe: Recipe, output_dir: str | Path, *, device: str, log_with: str | None) -> PDiffArguments:
        """The arguments that a recipe has."""
        own = {each.name for each in fields(cls)}
        known = {each.name: getattr(recipe, each.name) for each in fields(recipe) if each.name in own}
        return cls(output_dir, device=device, log_with=log_with, **known)


def _options_of(section: str, value: Any) -> dict[str, Any]:
    """A section as a recipe has it."""
    if isinstance(value, CollectConfig):
        return {"method": method_of(value), **asdict(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    require(isinstance(value, Mapping), section, value, "an object with its options, or a mapping of them")
    return dict(value)
