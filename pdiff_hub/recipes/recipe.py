"""recipe.yaml <-> `Recipe`, a validated set of options. A file states only what differs from the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pdiff_hub.collect.family import FamilyConfig
from pdiff_hub.collect.finetune import FinetuneConfig
from pdiff_hub.collect.importing import ImportConfig
from pdiff_hub.collect.population import PopulationConfig
from pdiff_hub.errors import PdiffError, require, require_known, shortened, unknown_name
from pdiff_hub.recipes.cells import CELL_NAMES, cell
from pdiff_hub.recipes.values import from_text, plain, typed
from pdiff_hub.records import RunFolder
from pdiff_hub.records.shipped import FOLDERS, shipped
from pdiff_hub.records.yaml_files import read_yaml
from pdiff_hub.tasks.spec import HUB_OPTIONS
from pdiff_hub.training.config import AutoencoderConfig, DiffusionConfig, with_preset

RECIPE_FILE = RunFolder(Path()).recipe.name
CollectConfig = FinetuneConfig | PopulationConfig | FamilyConfig | ImportConfig
METHODS: dict[str, type[CollectConfig]] = {
    "finetune": FinetuneConfig,
    "population": PopulationConfig,
    "family": FamilyConfig,
    "import": ImportConfig,
}
_Config = TypeVar("_Config")


@dataclass(frozen=True)
class GenerateConfig:
    """How networks are generated for judging.

    Attributes:
        num_models (at least 1): how many.
        num_inference_steps (at least 1, at most 1000): sampling steps; the pipeline's own default, too.
    """

    num_models: int = 200
    num_inference_steps: int = 50

    def __post_init__(self) -> None:
        require(self.num_models >= 1, "generate.num_models", self.num_models, "at least 1")
        require(
            1 <= self.num_inference_steps <= 1000, "generate.num_inference_steps", self.num_inference_steps, "1 to 1000"
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """How networks are judged.

    Attributes:
        num_originals (at least 2): how many checkpoints are judged, evenly spaced; null means all.
        baselines (at least 0): how many networks each baseline makes; 0 leaves out baselines, frontier and ensembles.
        most_numbers (at least 1): of large networks there are fewer, but at least 8: those of a baseline have no more
            numbers than this in all, generated ones four times as many. null: as many as is said, however large they
            are.
        fine_tune_steps (at least 1): steps of the baseline that trains originals further.
        guidance_scale (at least 0): of families: with which networks are asked for (docs/measurements.md, "Asking").
        fit_tasks (at least 0): of families: to how many held-out tasks networks are fitted.
        num_labels (each at least 2): of families: to how many labels networks are fitted, one fit for each number.
    """

    num_originals: int | None = None
    baselines: int = 100
    most_numbers: int | None = 2**27
    fine_tune_steps: int = 20
    guidance_scale: float = 2.0
    fit_tasks: int = 20
    num_labels: Sequence[int] = (20, 50, 100)

    def __post_init__(self) -> None:
        require(
            self.num_originals is None or self.num_originals >= 2,
            "evaluate.num_originals",
            self.num_originals,
            "at least 2, or nothing for all",
        )
        require(self.baselines >= 0, "evaluate.baselines", self.baselines, "at least 0")
        require(
            self.most_numbers is None or self.most_numbers >= 1,
            "evaluate.most_numbers",
            self.most_numbers,
            "at least 1, or nothing for no bound",
        )
        require(self.fine_tune_steps >= 1, "evaluate.fine_tune_steps", self.fine_tune_steps, "at least 1")
        require(self.guidance_scale >= 0, "evaluate.guidance_scale", self.guidance_scale, "at least 0")
        require(self.fit_tasks >= 0, "evaluate.fit_tasks", self.fit_tasks, "at least 0")
        several = isinstance(self.num_labels, (list, tuple))
        require(
            several and all(type(number) is int and number >= 2 for number in self.num_labels),
            "evaluate.num_labels",
            list(self.num_labels) if several else self.num_labels,
            "numbers of labelled examples, each at least 2",
        )

    def num_baselines(self, num_params: int) -> int:
        """How many networks of so many parameters each baseline makes."""
        return self._bounded(self.baselines, num_params, 1)

    def num_generated(self, num_models: int, num_params: int) -> int:
        """How many networks of so many parameters are generated for judging where `num_models` were to be."""
        return self._bounded(num_models, num_params, _PER_BASELINE)

    def _bounded(self, asked: int, num_params: int, times: int) -> int:
        if self.most_numbers is None:
            return asked
        return min(asked, max(_LEAST_NETWORKS, times * self.most_numbers // num_params))


_LEAST_NETWORKS = 8  # of large networks; the two-sample test needs 5
_PER_BASELINE = 4  # generated networks for each network of a baseline


_OF_FAMILIES = ("guidance_scale", "fit_tasks", "num_labels")  # options of `EvaluateConfig`


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which networks are generated. `task` and `network` alone give a sound pipeline.

    Attributes:
        task (a name, a Hub id, a folder, or a mapping): the images that networks are trained and judged on, as
            `load_task` takes them.
        network (a name, a function, or a mapping): the network whose weights are generated: one of those below, or
            `some.module:function`, as `resolve_network` takes it.
        select (a text, or a list of tensors): which of its tensors are generated; the others stay as they are. `all`;
            `head`: the last layer; `last_norms:N`: the last N norm layers; `norms:A-B`: norm layers A to B;
            `modules:GLOB,GLOB`: modules by name.
        method ("finetune", "population", "family" or "import"): where checkpoints come from: one network trained
            further, many seeds, many tasks, or files that are there; each has options of its own.
        collect: the options of the method.
        condition: a column of the checkpoints' metadata by which networks can be asked for, such as
            validation_accuracy; null: by none. Families have conditions of their own.
        autoencoder: the options of stage one.
        diffusion: the options of stage two.
        generate: how networks are generated for judging.
        evaluate: how networks are judged.
        seed (at least 0, at most 4294967295): decides every random choice.
        file: what the recipe was read from; None if it was made in Python.
    """

    task: str | dict[str, Any]
    network: str | dict[str, Any]
    select: str | list[str] = "all"
    method: str = "finetune"
    collect: CollectConfig = field(default_factory=FinetuneConfig)
    condition: str | None = None
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    seed: int = 0
    file: Path | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The whole recipe, defaults included, as `recipe_from_dict` reads it; JSON-able."""
        data: dict[str, Any] = {}
        for each in fields(self):
            if each.name == "file":
                continue
            value = getattr(self, each.name)
            if is_dataclass(value) and not isinstance(value, type):
                value = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(value).items()}
            data[each.name] = value
        data["collect"] = {"method": data.pop("method"), **data["collect"]}
        for name in ("base", "ignore"):  # of imports; so that one begun before there were these options goes on
            if not data["collect"].get(name, True):
                del data["collect"][name]
        if self.method == "import" and not data["collect"]["align"]:  # for the same reason
            del data["collect"]["align"], data["collect"]["align_rounds"]
        if self.condition is None:  # so that a run begun before there were conditions goes on
            del data["condition"]
            if self.method != "family":
                for name in _OF_FAMILIES:
                    del data["evaluate"][name]
        for name in ("pull_to_start", "trunk_steps"):  # of families, for the same reason
            if not data["collect"].get(name, True):
                del data["collect"][name]
        if data["collect"].get("mixed_precision") == "no":  # of fine-tunes, for the same reason
            del data["collect"]["mixed_precision"]
        if self.evaluate.most_numbers == EvaluateConfig.most_numbers:  # for the same reason
            del data["evaluate"]["most_numbers"]
        return data


SECTIONS: dict[str, type[Any]] = {
    "autoencoder": AutoencoderConfig,
    "diffusion": DiffusionConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
}
# Options of the two free-form keys that are texts, even if they look like numbers.
TASK_TEXTS = ("dataset", *HUB_OPTIONS)
_TEXTS = {"task": TASK_TEXTS, "network": ("name", "pretrained", "revision")}
_TYPES: dict[str, Any] = {
    "task": str | Mapping[str, Any],
    "network": str | Mapping[str, Any],
    "select": str | list[str],
    "condition": str | None,
    "seed": int,
}


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """Merge `data` over the defaults. ValueError for an option that is missing, unknown, mistyped or out of range."""
    require_known("recipe key", data, [*_TYPES, "collect", *SECTIONS])
    for name in ("task", "network"):
        if data.get(name) in (None, "", {}):
            raise PdiffError(
                f"the recipe has no {name!r}; expected a name or a mapping, e.g. task: digits, network: mlp3."
            )
    free = {name: plain(name, data[name], texts) for name, texts in _TEXTS.items()}
    given = {name: typed(name, _TYPES[name], data[name]) for name in ("select", "condition", "seed") if name in data}
    select = given.get("select", "all")
    seed, condition = given.get("seed", 0), given.get("condition")
    require(0 <= seed < 2**32, "seed", seed, "a whole number from 0 to 2**32 - 1")
    collect = dict(_mapping("collect", data.get("collect")))
    method = collect.pop("method", "finetune")
    if not isinstance(method, str) or method not in METHODS:
        raise unknown_name("collect.method", shortened(method) if not isinstance(method, str) else method, METHODS)
    if method == "family" and condition is not None:
        raise PdiffError(
            f"condition is {condition!r}, and a family has conditions of its own, those of its tasks; leave it out."
        )
    options = {name: _mapping(name, data.get(name)) for name in SECTIONS}
    options["autoencoder"] = with_preset(options["autoencoder"])
    made: dict[str, Any] = {name: _section(name, kind, options[name]) for name, kind in SECTIONS.items()}
    return Recipe(
        task=_name_or_mapping("task", free["task"]),
        network=_name_or_mapping("network", free["network"]),
        select=select if isinstance(select, str) else list(select),
        method=method,
        collect=_section("collect", METHODS[method], collect),
        condition=condition,
        seed=seed,
        **made,
    )


def method_of(config: CollectConfig) -> str:
    """The `collect.method` that a config is of."""
    return next(method for method, kind in METHODS.items() if isinstance(config, kind))


def _name_or_mapping(name: str, value: Any) -> str | dict[str, Any]:
    found: str | dict[str, Any] = typed(name, _TYPES[name], value)
    return found


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PdiffError(f"recipe key {name!r} is {shortened(value)}, expected a mapping of options.")
    return value


def _section(name: str, kind: type[_Config], options: Mapping[str, Any]) -> _Config:
    types = get_type_hints(kind)
    require_known(f"recipe key in {name}", options, types)
    given = {key: typed(f"{name}.{key}", types[key], value) for key, value in options.items()}
    try:
        return kind(**given)
    except PdiffError as error:  # a method's own sentences call an option by its last name
        if str(error).partition(" ")[0] not in types:
            raise
        raise PdiffError(f"{name}.{error}") from error


def find_recipe(name: str | Path) -> Path:
    """The recipe file that `name` means: a folder, a file, a shipped pipeline, or a cell of the paper's tables.

    A cell (cells.py) that no shipped folder replaces has no file. Its path is the one that such a folder's file would
    have, so that the folder's name is the recipe's name here too. ValueError for an unknown name gives the nearest.
    """
    path = Path(name)
    if path.is_dir() and (path / RECIPE_FILE).is_file():
        return path / RECIPE_FILE
    if path.is_file():
        return path
    known = shipped()
    # `pipelines/digits-mlp3` means the shipped one even if the current folder has no such path.
    if path.parent in (Path("."), Path("pipelines")):
        if path.name in known:
            return known[path.name] / RECIPE_FILE
        if path.name in CELL_NAMES:
            return FOLDERS[0] / path.name / RECIPE_FILE
    if path.is_dir():
        raise FileNotFoundError(f"{path} holds no {RECIPE_FILE}.")
    raise unknown_name("recipe", str(name), [*known, *CELL_NAMES])


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `overrides` are `a.b=c`, e.g. `collect.num_checkpoints=50`. c is read as the option's type says:
    as it is for a text, otherwise as YAML. Another `collect.method` than the recipe's begins from its own defaults."""
    file = find_recipe(name)
    data = read_yaml(file) if file.is_file() else cell(file.parent.name)
    split = [_split_override(override) for override in overrides]
    methods = [each for each in split if each[0] == ["collect", "method"]]
    # First, since it decides which options there are; the last of several counts.
    for keys, text in [*methods[-1:], *(each for each in split if each not in methods)]:
        *parents, last = keys
        section = data
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                # An override of an option of `network: mlp3` turns the name into the mapping form.
                key = {"task": "dataset", "network": "name"}.get(parent)
                section[parent] = {key: section[parent]} if key and section.get(parent) else {}
            section = section[parent]
        value = from_text(".".join(keys), _type_of(keys, data), text)
        if keys == ["collect", "method"] and value != section.get("method", "finetune"):
            section.clear()  # its options are those of another way
        section[last] = value
    return replace(recipe_from_dict(data), file=file)


def _split_override(override: str) -> tuple[list[str], str]:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise PdiffError(f"override {override!r} is not of the form a.b=c.")
    return keys, text


def _type_of(keys: list[str], data: Mapping[str, Any]) -> Any:
    """The declared type of the option that `keys` lead to; `Any` for one that is free, or unknown."""
    section, *rest = keys
    if not rest:
        return _TYPES.get(section, Mapping[str, Any])
    if section in _TEXTS:
        return str | None if rest[0] in _TEXTS[section] else Any
    if keys in (["collect", "method"], ["autoencoder", "preset"]):
        return str | None
    collect = data.get("collect")
    method = collect.get("method", "finetune") if isinstance(collect, Mapping) else "finetune"
    kind = {**SECTIONS, "collect": METHODS.get(method, FinetuneConfig) if isinstance(method, str) else None}
    declared = get_type_hints(kind[section]) if kind.get(section) is not None else {}
    return declared.get(rest[0], Any) if len(rest) == 1 else Any


def recipe_of(folder: RunFolder) -> dict[str, Any] | None:
    """The whole recipe of the pipeline in that folder, from its results or its recipe.yaml; None if it has none."""
    results = folder.read_results()
    if results is not None and results.facts.recipe:
        return results.facts.recipe
    return load_recipe(folder.path).to_dict() if folder.recipe.is_file() else None
