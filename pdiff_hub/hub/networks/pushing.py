"""`push_network` publishes one generated network as its own Hub repository, which says how to make it again.

If transformers has a class for the network, `AutoModelForImageClassification` opens the repository. If not,
`GeneratedNetwork` opens it. Both hold safetensors only, and no code, unless a program is asked for.

    config.json, model.safetensors   as transformers or `write_generated_network` writes them
    model.pt2 or model.onnx          if asked for: the network as a program for raw images
    preprocessor_config.json         for transformers, if the task is known: how a picture becomes an input
    generated.json                   `Origin`: how to make the network again; `Usage`: how to use it
    README.md                        the card, which says the same to people
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard
from torch import nn

from pdiff_hub.errors import PdiffError
from pdiff_hub.evaluation.environment import environment
from pdiff_hub.exporting import SAFETENSORS, SUFFIXES, require_format, write_program
from pdiff_hub.hub.networks.card import Images, Origin, render_network_card
from pdiff_hub.hub.networks.generated import CONFIG, write_generated_network
from pdiff_hub.networks import vision
from pdiff_hub.pipeline import PDiffPipeline, sample
from pdiff_hub.pipeline.exporting import built
from pdiff_hub.pipeline.public import public
from pdiff_hub.pipeline.usage import described, header_of, origin_of, usage_of
from pdiff_hub.records import NetworksFolder, Results, RunFolder
from pdiff_hub.records.fingerprint import fingerprint
from pdiff_hub.safe_files import write_json
from pdiff_hub.transfer import is_repo_id, list_files, push_files, temporary_folder
from pdiff_hub.travelling.pipeline_pdiff import COMPONENTS, CONDITIONER

_PROCESSOR = "preprocessor_config.json"
# Files that an earlier network of another kind or size may have left in the same repository.
_REPLACES = (CONFIG, _PROCESSOR, "model*.safetensors", "model.safetensors.index.json", "model.pt2", "model.onnx")
_BILINEAR = 2  # PIL's number


def push_network(
    pipe: PDiffPipeline,
    repo_id: str,
    *,
    seed: int,
    index: int = 0,
    num_models: int = 1,
    num_inference_steps: int | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload generated network",
    create_pr: bool = False,
    token: str | bool | None = None,
    accuracy: float | None = None,
    condition: Mapping[str, Any] | None = None,
    guidance_scale: float = 1.0,
    format: str = SAFETENSORS,
    trust_remote_code: bool = False,
) -> str:
    """Generate one network and publish it in one commit; -> the commit's URL.

    Args:
        pipe: if it is from the Hub, the card names its id and commit; if not, the sha256 of its weights.
        repo_id: "owner/name"; made if it does not exist. It must not hold a pipeline.
        seed, index, num_models, num_inference_steps: network `index`, counted from 0, of the `num_models` that `pdiff
            generate` writes with these options. Another `num_models` may give other networks.
        private, revision, commit_message, create_pr, token: as in `PDiffPipeline.push_to_hub`.
        accuracy: fraction on the test split of the pipeline's task, as you measured it; None if you did not.
        condition, guidance_scale: what the network is asked to be, as in a call of the pipeline.
        format: "torch-export" or "onnx" adds the network as a program that runs without this package, `model.pt2` or
            `model.onnx`, as `export_network` writes it. The weights are published in any case.
        trust_remote_code: for such a program, let the pipeline build the network by its own function.

    Raises:
        ValueError: an argument out of range, a network that `export_network` refuses, a pipeline that does not say
            which network it generates or that was changed since it was loaded from the Hub, a repository that holds a
            pipeline.
        Others as `pdiff_hub.transfer.push_files` raises them.
    """
    _check(repo_id, seed, index, num_models, accuracy)
    require_format(format)
    if pipe.autoencoder.config.network is None:
        raise PdiffError(
            "this pipeline does not say which network it generates, so nobody could open it from a "
            "repository; save the tensors of out.state_dicts yourself."
        )
    spec = dict(pipe.autoencoder.config.network)
    _require_no_pipeline(repo_id, revision, token)
    known = _known(pipe, token)
    params_NP = sample(
        pipe,
        num_models,
        seed=seed,
        num_inference_steps=num_inference_steps,
        condition=condition,
        guidance_scale=guidance_scale,
    )
    state = pipe.autoencoder.state_dicts(params_NP[index])[0]
    origin = Origin(
        pipe.hub_id,
        pipe.hub_revision,
        known.weights,
        seed,
        index,
        num_models,
        num_inference_steps or pipe.config.default_num_inference_steps,
        type(pipe.scheduler).__name__,
        pipe.device.type,
        environment(),
        None if condition is None else dict(condition),
        guidance_scale,
    )
    usage = usage_of(pipe, condition)
    made = origin_of(pipe, num_models, seed, num_inference_steps, condition, guidance_scale)
    facts = described(pipe, made, usage, format=SAFETENSORS)
    images = Images.of_task(pipe.autoencoder.config.task or {}, spec["num_classes"])
    transformers = spec["name"] in vision.NAMES and not spec.get("small_images")  # such a stem is not transformers' own
    card = render_network_card(
        repo_id,
        origin,
        spec,
        images,
        usage,
        program=None if format == SAFETENSORS else format,
        transformers=transformers,
        layout=pipe.autoencoder.layout,
        licence=known.licence,
        accuracy=accuracy,
        results=known.results,
    )
    with temporary_folder("pdiff-network") as directory:
        if transformers:
            _write_for_transformers(directory, pipe.build_network(state), spec, images)
        else:
            write_generated_network(directory, spec, state, header_of(facts, index))
        if format != SAFETENSORS:
            own = described(pipe, {**made, "index": index}, usage, format=format)
            network = built(pipe, state, trust_remote_code)
            write_program(network, usage, directory / f"model{SUFFIXES[format]}", own)
        write_json(NetworksFolder(directory).origin, {**facts, **origin.to_dict()})
        RunFolder(directory).card.write_text(card, encoding="utf-8")
        files = {file.relative_to(directory).as_posix(): file for file in directory.rglob("*") if file.is_file()}
        pushed = push_files(
            files,
            repo_id,
            repo_type="model",
            commit_message=commit_message,
            replaces=_REPLACES,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
        )
    return pushed.url


def _check(repo_id: str, seed: int, index: int, num_models: int, accuracy: float | None) -> None:
    if "/" not in repo_id or not is_repo_id(repo_id):
        raise PdiffError(f"cannot publish a network as {repo_id!r}; expected owner/name.")
    for name, value, least, below in (
        ("num_models", num_models, 1, 2**63),
        ("seed", seed, 0, 2**63),
        ("index", index, 0, num_models),
    ):
        if type(value) is not int or not least <= value < below:
            raise PdiffError(f"{name} is {value!r}, expected an integer from {least} to {below - 1}.")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise PdiffError(f"accuracy is {accuracy!r}, expected a fraction from 0 to 1.")


def _require_no_pipeline(repo_id: str, revision: str | None, token: str | bool | None) -> None:
    with suppress(FileNotFoundError):  # usually it does not exist yet
        _, files = list_files(repo_id, repo_type="model", revision=revision, token=token)
        if RunFolder(Path()).index.name in files:
            raise PdiffError(
                f"{repo_id} holds a pipeline, and the network's card would replace the pipeline's; give "
                "the network a repository of its own."
            )


@dataclass(frozen=True)
class _Known:
    """What is known of a pipeline: sha256 of its weights by file, if it is not on the Hub; licence; results."""

    weights: dict[str, str]
    licence: str | None
    results: Results | None


def _known(pipe: PDiffPipeline, token: str | bool | None) -> _Known:
    """ValueError if `pipe` is from the Hub and differs from it: what the card says would then give other networks."""
    if pipe.hub_id is None:
        with temporary_folder("pdiff-pipeline") as temporary:
            folder = RunFolder(temporary)
            pipe.save_pretrained(folder.path)  # with its results and card, if they are of these weights
            digests = {path: digest for path, digest in fingerprint(folder).items() if path.endswith(".safetensors")}
            return _Known(digests, _licence(folder), _results(folder))
    there = PDiffPipeline.from_pretrained(pipe.hub_id, revision=pipe.hub_revision, token=token)
    for name in (*COMPONENTS, *([CONDITIONER] if pipe.conditioner is not None else [])):
        if not _same(getattr(pipe, name), getattr(there, name)):
            raise PdiffError(
                f"the {name} of this pipeline is not that of {pipe.hub_id} at commit {pipe.hub_revision}, "
                "so a card that names them would be wrong; push the changed pipeline first "
                "(pipe.push_to_hub)."
            )
    assert there.folder is not None  # it was opened from its copy in the cache
    folder = RunFolder(there.folder)
    return _Known({}, _licence(folder), _results(folder))


def _same(one: Any, other: Any) -> bool:
    """Whether two components have the same class, the same configuration and, if they have any, the same weights."""
    # As JSON, because a loaded component has lists where a built one has tuples.
    # Without paths of this machine, because a pushed component has none.
    settings = {
        json.dumps(
            {key: public(value) for key, value in each.config.items() if not key.startswith("_")},
            sort_keys=True,
            default=str,
        )
        for each in (one, other)
    }
    if type(one) is not type(other) or len(settings) > 1:
        return False
    if not isinstance(one, nn.Module):
        return True
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        states[0][name].dtype == tensor.dtype and torch.equal(states[0][name].cpu(), tensor)
        for name, tensor in states[1].items()
    )


def _licence(folder: RunFolder) -> str | None:
    """The licence in a pipeline's card; None if it names none: no licence is assumed."""
    try:
        licence = ModelCard(folder.card.read_text(encoding="utf-8")).data.get("license")
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return None
    return licence if isinstance(licence, str) else None


def _results(folder: RunFolder) -> Results | None:
    """A pipeline's results; None if there are none or they cannot be read. The card then says that nothing is known."""
    try:
        return folder.read_results()
    except PdiffError:
        return None


def _write_for_transformers(directory: Path, network: Any, spec: Mapping[str, Any], images: Images | None) -> None:
    if images is not None:
        network.config.id2label = dict(enumerate(images.classes))
        network.config.label2id = {name: number for number, name in enumerate(images.classes)}
        side = spec["image_size"]
        # What `Task.inputs` does. Pictures of other sizes are resized and then cropped; tasks crop first. Both give the
        # same for square pictures, and the same up to rounding for others.
        write_json(
            directory / _PROCESSOR,
            {
                "image_processor_type": "BitImageProcessor",
                "do_convert_rgb": spec["in_channels"] == 3,
                "do_resize": True,
                "size": {"shortest_edge": side},
                "resample": _BILINEAR,
                "do_center_crop": True,
                "crop_size": {"height": side, "width": side},
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": images.mean,
                "image_std": images.std,
            },
        )
    network.save_pretrained(directory)
