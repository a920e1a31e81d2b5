"""What the fuzzer opens: a small good folder of each kind, and how people open it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint_sets import dataset, use_small_files
from PIL import Image
from safetensors.torch import save_file
from test_asking import conditional

from pdiff_hub import PDiffPipeline
from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.collect.importing.condition_table import read_condition_table
from pdiff_hub.collect.importing.importer import import_checkpoints
from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.results_page import write_results_page
from pdiff_hub.evaluation.table import print_results
from pdiff_hub.hub import GeneratedNetwork, describe
from pdiff_hub.hub.networks.generated import write_generated_network
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.pipeline.card import render_card
from pdiff_hub.recipes import load_recipe
from pdiff_hub.records import NetworksFolder, RunFolder
from pdiff_hub.records.run_folder import AutoencoderFacts
from pdiff_hub.records.training_summary import LossCurve, TrainingSummary
from pdiff_hub.safe_files import write_json, write_safetensors
from pdiff_hub.tasks import load_task
from pdiff_hub.training.diffusion import build_scheduler, build_unet
from pdiff_hub.travelling.conditioner import ConditionError
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamError, ParamLayout
from pdiff_hub.travelling.pipeline_pdiff import SamplingError

OURS = (ConditionError, ParamError, SamplingError, PdiffError, OSError)
"""The errors that the command shows as one sentence."""
SHIPPED = Path(__file__).parents[2] / "pipelines"
_NETWORK = {"name": "mlp3", "hidden": [3, 3], "in_channels": 1, "num_classes": 3, "image_size": 2}


@dataclass(frozen=True)
class Subject:
    """One kind of folder.

    make: writes a good one. open: opens it, and returns what it holds; equal folders give equal values.
    sealed: suffixes of files whose content is recorded elsewhere, so that another content must be noticed.
    """

    name: str
    make: Callable[[Path], None]
    open: Callable[[Path], Any]
    sealed: tuple[str, ...] = ()


def _digest(*values: Any) -> str:
    seen = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise AssertionError("NaN or Inf was read without a word")
            seen.update(value.detach().contiguous().numpy().tobytes())
        else:
            seen.update(str(value).encode("utf-8", "surrogatepass"))
    return seen.hexdigest()


def _printed(show: Callable[[], None]) -> str:
    """What `show` prints; AssertionError if characters are among it that command a terminal."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        show()
    text = out.getvalue()
    if any(ord(letter) < 32 and letter not in "\n\t\r" for letter in text):
        raise AssertionError("control characters were printed")
    return text


def _make_pipeline(folder: Path) -> None:
    torch.manual_seed(0)
    network = build_network(_NETWORK)
    layout = ParamLayout.from_module(network)
    autoencoder = ParamAutoencoder(layout.to_dict(), num_components=14, latent_length=4, network=_NETWORK)
    torch.nn.init.normal_(autoencoder.components[0], std=0.1)
    autoencoder.set_frozen_state(layout.frozen_state(network.state_dict()))
    pipe = PDiffPipeline(autoencoder.eval(), build_unet(4, 4, (16,), 1).eval(), build_scheduler(), 7)
    pipe.save_pretrained(folder)
    for name in ("results.json", "recipe.yaml"):
        shutil.copyfile(SHIPPED / "digits-mlp3" / name, folder / name)


def _open_pipeline(folder: Path) -> str:
    text, results = describe(folder)
    if results is not None:
        _printed(lambda: print_results(results))
    pipe = PDiffPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(1, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    pipe.build_network(out.state_dicts[0])
    return _digest(text, out.params)


def _open_conditional(folder: Path) -> str:
    pipe = PDiffPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    asked = {"classes": [0, 3, 7]}
    out = pipe(1, num_inference_steps=2, generator=torch.Generator().manual_seed(0), condition=asked, guidance_scale=2)
    return _digest(describe(folder)[0], out.params)


def _open_set(folder: Path) -> str:
    text, _ = describe(folder)
    opened = CheckpointDataset.from_pretrained(folder)
    frozen = [opened.frozen[name] for name in sorted(opened.frozen)]
    spec = opened.conditions
    return _digest(text, opened.params_KP, opened.metadata, *frozen, opened.network, opened.task, spec)


def _make_set(form: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import pytest

        with pytest.MonkeyPatch.context() as patch:
            use_small_files(form, patch)
            dataset(6).save_pretrained(folder)

    return make


def _make_recipe(folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(SHIPPED / "digits-subsets" / "recipe.yaml", folder / "recipe.yaml")


def _open_recipe(folder: Path) -> str:
    recipe = load_recipe(folder / "recipe.yaml")
    task = load_task(recipe.task, seed=recipe.seed)
    sizes = {"in_channels": task.in_channels, "image_size": task.image_size, "num_classes": task.num_classes}
    network = resolve_network(recipe.network, **sizes)
    return _digest(recipe, network)


def _make_results(folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(SHIPPED / "digits-mlp3" / "results.json", folder / "results.json")


def _open_results(folder: Path) -> str:
    results = RunFolder(folder).read_results()
    if results is None:
        raise FileNotFoundError("results.json")
    return _digest(_printed(lambda: print_results(results)))


def _make_judged(folder: Path) -> None:
    """What a run keeps of its measurements, and how long its training went."""
    (folder / "training").mkdir(parents=True)
    run = RunFolder(folder)
    shutil.copyfile(SHIPPED / "digits-mlp3" / run.results.name, run.results)
    write_json(run.networks, {"original": {"accuracy": [0.9, 0.8]}, "generated": {"accuracy": [0.9, None]}})
    write_json(run.training.autoencoder_facts, asdict(AutoencoderFacts(0.5, 2.0, 14)))
    curve = LossCurve((0, 10), (0.5, 0.4), (0.5, 0.3), 10)
    write_json(run.training.summary, asdict(TrainingSummary(0.5, 14, (4, 4), 0.1, 2.0, 3.0, 1, curve)))


def _open_judged(folder: Path) -> str:
    run = RunFolder(folder)
    results = run.read_results()
    if results is None or not run.networks.is_file():
        raise FileNotFoundError(f"{folder} was not judged")
    if results.measured is None:
        raise PdiffError(f"{folder} was not judged")
    facts, summary = run.training.read_autoencoder_facts(), run.training.read_summary()
    page = write_results_page(results, run).read_text(encoding="utf-8")
    return _digest(render_card(results), page, run.read_networks(), facts, summary)


def _make_published(folder: Path) -> None:
    torch.manual_seed(0)
    folder.mkdir()
    write_generated_network(folder, _NETWORK, build_network(_NETWORK).state_dict(), {"format": "pt"})


def _open_published(folder: Path) -> str:
    network = GeneratedNetwork.from_pretrained(folder)
    size = network.spec["image_size"]
    answers = network(torch.ones(1, network.spec["in_channels"], size, size))
    return _digest(network.spec, *network.state_dict().values(), answers)


def _make_generated(folder: Path) -> None:
    """A folder of `pdiff generate`."""
    folder.mkdir()
    torch.manual_seed(0)
    for k in range(3):
        write_safetensors(NetworksFolder(folder).network(k), build_network(_NETWORK).state_dict(), {"format": "pt"})
    write_json(NetworksFolder(folder).origin, {"seed": 0, "num_models": 3, "num_inference_steps": 2})


def _open_generated(folder: Path) -> str:
    layout = ParamLayout.from_module(build_network(_NETWORK))
    imported = import_checkpoints(folder, layout, network=_NETWORK)
    return _digest(imported.params_KP, imported.metadata)


def _make_imports(suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        torch.manual_seed(0)
        for k in range(3):
            state = build_network(_NETWORK).state_dict()
            if suffix == ".pt":
                torch.save({"model": state, "epoch": k}, folder / f"{k}.pt")
            else:
                save_file(state, folder / f"{k}.safetensors")
        rows = "".join(f"{k}{suffix},{k + 0.5}\n" for k in range(3))
        (folder / "conditions.csv").write_text(f"file,angle\n{rows}")

    return make


def _open_imports(suffix: str) -> Callable[[Path], str]:
    key = "model" if suffix == ".pt" else None

    def open_(folder: Path) -> str:
        layout = ParamLayout.from_module(build_network(_NETWORK))
        imported = import_checkpoints(folder, layout, network=_NETWORK, pattern=f"*{suffix}", key=key)
        table = read_condition_table(folder / "conditions.csv", [f"{k}{suffix}" for k in range(3)])
        return _digest(imported.params_KP, imported.metadata, table)

    return open_


def _make_pictures(folder: Path) -> None:
    random_ = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for k in range(4):
                pixels = random_.integers(0, 256, (6, 6), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{k}.png")


def _make_idx(folder: Path) -> None:
    folder.mkdir()
    random_ = np.random.default_rng(0)
    for split, count in (("train", 12), ("t10k", 6)):
        pixels = random_.integers(0, 256, (count, 6, 6), dtype=np.uint8)
        head = struct.pack(">HBBIII", 0, 8, 3, count, 6, 6)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = bytes(k % 2 for k in range(count))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + labels)


def _open_task(folder: Path) -> str:
    task = load_task({"dataset": str(folder)})
    splits = [getattr(task, name) for name in ("train", "validation", "test")]
    return _digest(*[tensor for split in splits for tensor in (split.images_NCHW, split.labels_N)])


SUBJECTS = (
    Subject("pipeline", _make_pipeline, _open_pipeline),
    Subject("conditional pipeline", lambda folder: conditional().save_pretrained(folder), _open_conditional),
    Subject("data set, Parquet", _make_set("parquet"), _open_set, sealed=(".parquet", ".safetensors")),
    Subject("data set, shards", _make_set("shards"), _open_set, sealed=(".safetensors", ".parquet")),
    Subject("recipe", _make_recipe, _open_recipe),
    Subject("results", _make_results, _open_results),
    Subject("judged run", _make_judged, _open_judged),
    Subject("published network", _make_published, _open_published),
    Subject("generated networks", _make_generated, _open_generated),
    Subject("imports, safetensors", _make_imports(".safetensors"), _open_imports(".safetensors")),
    Subject("imports, torch", _make_imports(".pt"), _open_imports(".pt")),
    Subject("folder of pictures", _make_pictures, _open_task),
    Subject("IDX files", _make_idx, _open_task),
)
