"""ResNet, ViT and ConvNeXt image classifiers from transformers: the architectures of p-diff's table 1.

They are built from a config, or get pretrained weights from a Hub id or folder. transformers is an optional extra and
is imported only when one of these networks is asked for.
"""

from __future__ import annotations

import importlib.util
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from pdiff_hub.errors import MissingPackageError, PdiffError, one_line, require_known
from pdiff_hub.networks.options import PatchOptions, ResnetOptions, defaults
from pdiff_hub.transfer import bounded

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# The values by which a config is the architecture of that name. ResNet: arXiv 1512.03385, table 1; ViT: arXiv
# 2010.11929, table 1, and for Tiny arXiv 2012.12877, table 1; ConvNeXt: arXiv 2201.03545, sec. 3, and for sizes below
# Tiny arXiv 2301.00808, app. A.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet18": {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
    },
    "resnet50": {
        "model_type": "resnet",
        "layer_type": "bottleneck",
        "embedding_size": 64,
        "hidden_sizes": [256, 512, 1024, 2048],
        "depths": [3, 4, 6, 3],
    },
    "vit_tiny": {
        "model_type": "vit",
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    },
    "vit_base": {
        "model_type": "vit",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "convnext_atto": {"model_type": "convnext", "hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]},
    "convnext_pico": {"model_type": "convnext", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 6, 2]},
    "convnext_tiny": {"model_type": "convnext", "hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
    "convnext_base": {"model_type": "convnext", "hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]},
}
NAMES = tuple(_ARCHITECTURES)

_MAX_SMALL_IMAGE = 64  # pixels; in larger images the strides of the original stem lose little
_PROCESSOR = "preprocessor_config.json"
_MOST_PROCESSOR_BYTES = 1 << 20
_NOT_ARCHITECTURE = {
    "id2label",
    "label2id",
    "num_labels",
    "architectures",
    "dtype",
    "transformers_version",
    "_name_or_path",
}


def resolve(
    name: str, options: dict[str, Any], *, in_channels: int, image_size: int, num_classes: int
) -> dict[str, Any]:
    """All options of network `name`, checked. With `pretrained` also that model's config, which is read only once."""
    if importlib.util.find_spec("transformers") is None:
        raise MissingPackageError(
            f"the network {name!r} needs transformers: pip install '.[transformers]' in the source of pdiff-hub."
        )
    model_type = _ARCHITECTURES[name]["model_type"]
    own = defaults(ResnetOptions if model_type == "resnet" else PatchOptions)
    require_known(f"option of network {name!r}", options, (*own, "config"))
    pretrained, revision = options.get("pretrained"), options.get("revision")
    for key, value in (("pretrained", pretrained), ("revision", revision)):
        if value is not None and not isinstance(value, str):
            raise PdiffError(f"{key} of network {name!r} must be a string or null, found {value!r}")
    if pretrained is None and (options.get("config") is not None or revision is not None):
        raise PdiffError(f"network {name!r}: config and revision are those of a pretrained model; name it (pretrained)")
    resolved: dict[str, Any] = {"pretrained": pretrained, "revision": revision, "config": options.get("config")}
    if pretrained is not None and resolved["config"] is None:
        resolved["config"], resolved["revision"] = _read_config(pretrained, revision)
    config = resolved["config"]
    if config is not None:
        _check_config(name, pretrained, config, in_channels, image_size if model_type == "vit" else None)
    if model_type == "resnet":
        small = _given(options, "small_images", pretrained is None and image_size <= _MAX_SMALL_IMAGE)
        stride = _given(options, "stem_stride", 1 if small else 2)
        if not isinstance(small, bool):
            raise PdiffError(f"small_images of network {name!r} must be true or false, found {small!r}")
        if small and pretrained is not None:
            raise PdiffError(f"network {name!r}: small_images changes the stem, and {pretrained!r} has no such weights")
        if type(stride) is not int or stride not in ((1, 2) if small else (2,)):
            raise PdiffError(f"stem_stride of network {name!r} must be 2, or 1 with small_images, found {stride!r}")
        return {**resolved, "small_images": small, "stem_stride": stride}
    default = _default_patch(model_type, image_size) if config is None else config["patch_size"]
    patch = _given(options, "patch_size", default)
    if type(patch) is not int or patch < 1:
        raise PdiffError(f"patch_size of network {name!r} must be a positive integer, found {patch!r}")
    if config is not None and patch != config["patch_size"]:
        raise PdiffError(f"network {name!r}: patch_size is {patch}, but {pretrained!r} has {config['patch_size']}")
    if model_type == "vit" and image_size % patch:
        raise PdiffError(f"patch_size of network {name!r} must divide the image size {image_size}, found {patch}")
    # ConvNeXt halves its map three times after the patches, and cannot halve a single pixel.
    if model_type == "convnext" and image_size // patch < 8:
        raise PdiffError(
            f"network {name!r} needs images at least 8 patches wide: {image_size} pixels with patch_size {patch} give "
            f"{image_size // patch}; set the task's image_size to {8 * patch} or more, or patch_size lower"
        )
    return {**resolved, "patch_size": patch}


def _given(options: dict[str, Any], name: str, default: Any) -> Any:
    return default if options.get(name) is None else options[name]


def build(spec: dict[str, Any], *, pretrained: bool) -> nn.Module:
    """The network of a complete spec, in train mode and float32. `pretrained` loads the weights that the spec names."""
    name = spec["name"]
    import transformers

    architecture = _ARCHITECTURES[name]
    kind = {"resnet": "ResNet", "vit": "ViT", "convnext": "ConvNext"}[architecture["model_type"]]
    model_class = getattr(transformers, f"{kind}ForImageClassification")
    values = dict(spec["config"] or architecture, num_channels=spec["in_channels"])
    if architecture["model_type"] != "resnet":
        values |= {"image_size": spec["image_size"], "patch_size": spec["patch_size"]}
    config_class = getattr(transformers, f"{kind}Config")
    # Only what describes the architecture: others of transformers' settings choose code (attention from the Hub).
    own = {key: value for key, value in values.items() if key in config_class.__annotations__ and key[0] != "_"}
    config = config_class.from_dict({**own, "num_labels": spec["num_classes"]})
    if pretrained and spec["pretrained"] is not None:
        network = _load(model_class, spec, config)
    else:
        network = model_class(config).to(torch.float32)
    if spec.get("small_images"):
        _shrink_stem(network, spec["in_channels"], spec["stem_stride"])
    trained: nn.Module = network.train()
    return trained


def _shrink_stem(network: Any, in_channels: int, stride: int) -> None:
    """Gives a ResNet a 3x3 stem and no max-pool, as for CIFAR-sized images (arXiv 1512.03385, sec. 4.2)."""
    embedder = network.resnet.embedder
    convolution = embedder.embedder.convolution
    stem = nn.Conv2d(in_channels, convolution.out_channels, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as in its other convolutions
    embedder.embedder.convolution = stem
    embedder.pooler = nn.Identity()


def _load(model_class: Any, spec: dict[str, Any], config: PretrainedConfig) -> Any:
    """The network with pretrained weights. Only the classifier may be new, if the number of classes differs."""
    try:
        with _fetching(spec["pretrained"], spec["revision"]):
            network, report = model_class.from_pretrained(
                spec["pretrained"],
                config=config,
                revision=spec["revision"] or "main",
                dtype=torch.float32,
                use_safetensors=True,  # never unpickle what was downloaded,
                trust_remote_code=False,  # and never run it
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except SafetensorError as error:  # an OSError, for files that are not there, has a good message of its own
        raise PdiffError(f"the weights of {spec['pretrained']!r} are damaged: {error}") from error
    strangers = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if wrong := sorted(name for name in strangers if not name.startswith("classifier.")):
        raise PdiffError(
            f"{spec['pretrained']!r} has no weights that fit {', '.join(wrong[:3])} ({len(wrong)} in all) of network "
            f"{spec['name']!r}"
        )
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PdiffError(f"tensor {name!r} of {spec['pretrained']!r} holds NaN or Inf; expected finite numbers")
    return network


def _fetching(pretrained: str, revision: str | None) -> AbstractContextManager[None]:
    """Bounds what is fetched of a pretrained model; nothing is of one in a folder."""
    return nullcontext() if Path(pretrained).is_dir() else bounded(pretrained, repo_type="model", revision=revision)


def _read_config(pretrained: str, revision: str | None) -> tuple[dict[str, Any], str | None]:
    """The config of a pretrained model, without its class names, and the commit that it was read from."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoConfig

    try:
        with _fetching(pretrained, revision):
            config = AutoConfig.from_pretrained(pretrained, revision=revision or "main", trust_remote_code=False)
    except (OSError, ImportError):  # with a good message of its own, if there is no such repository
        raise
    except Exception as error:  # transformers checks the types of some values, and fails at others anywhere
        raise PdiffError(f"{pretrained!r} has no config that transformers can read: {one_line(error)}") from error
    values = {key: value for key, value in config.to_dict().items() if key not in _NOT_ARCHITECTURE}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    # transformers does not say which commit it read. The name of the snapshot's folder in the cache does.
    cached = None if Path(pretrained).is_dir() else try_to_load_from_cache(pretrained, "config.json", revision=revision)
    return plain, Path(cached).parent.name if isinstance(cached, str) else revision


def input_statistics(spec: dict[str, Any]) -> dict[str, list[float]] | None:
    """The mean and std, of pixels in [0, 1], that the pretrained model of a complete spec was trained with.

    They are those of its image processor; None for a network without pretrained weights, and for a model without one.

    Raises:
        ValueError: the processor's file cannot be had, or says something else than a mean and a std.
    """
    pretrained = spec.get("pretrained")
    if spec["name"] not in NAMES or pretrained is None:
        return None
    file = _processor_file(pretrained, spec.get("revision"))
    if file is None:
        return None
    what, channels = f"the image processor of {pretrained!r} ({_PROCESSOR})", spec["in_channels"]
    hint = "; set task.normalize to what the model was trained with"
    with file.open("rb") as opened:
        content = opened.read(_MOST_PROCESSOR_BYTES + 1)
    if len(content) > _MOST_PROCESSOR_BYTES:
        raise PdiffError(f"{what} has more than {_MOST_PROCESSOR_BYTES:,} bytes, which is no such file{hint}")
    try:
        values = json.loads(content.decode())
        factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
        mean, std = (values["image_mean"], values["image_std"]) if values.get("do_normalize", True) else (0.0, 1.0)
        # pixel * factor, less the mean, over the std; here the pixel is divided by 255 first
        numbers = [
            [float(each) / (255 * factor) for each in (value if isinstance(value, list) else [value] * channels)]
            for value in (mean, std)
        ]
    except (ValueError, TypeError, LookupError, AttributeError, ZeroDivisionError, RecursionError) as error:
        raise PdiffError(f"{what} cannot be read ({error!r}){hint}") from error
    if [len(each) for each in numbers] != [channels] * 2:
        raise PdiffError(f"{what} is not for images of {channels} channels{hint}")
    return dict(zip(("mean", "std"), numbers, strict=True))


def _processor_file(pretrained: str, revision: str | None) -> Path | None:
    """The file of the image processor; None if there is none. PdiffError if that is not known."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if (folder := Path(pretrained)).is_dir():
        file = folder / _PROCESSOR
        return file if file.is_file() else None
    try:
        cached = try_to_load_from_cache(pretrained, _PROCESSOR, revision=revision)
        if cached is not None:  # a path, or the note that there is none
            return Path(cached) if isinstance(cached, str) else None
        with _fetching(pretrained, revision):
            return Path(hf_hub_download(pretrained, _PROCESSOR, revision=revision))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        missing: Exception = error
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        missing = error
    raise PdiffError(
        f"{_PROCESSOR} of {pretrained!r}, which says how its images are normalised, cannot be had from the Hub; "
        "connect once, or set task.normalize"
    ) from missing


def _check_config(name: str, pretrained: Any, config: Any, in_channels: int, image_size: int | None) -> None:
    if not isinstance(config, dict):
        raise PdiffError(f"config of network {name!r} must be the dict that resolve_network recorded, found {config!r}")
    wanted = {**_ARCHITECTURES[name], "num_channels": in_channels}
    if image_size is not None:
        wanted["image_size"] = image_size
    for key, value in wanted.items():
        if config.get(key) != value:
            hint = {
                "num_channels": "the images must have as many channels",
                "image_size": "set the task's image_size to that of the pretrained model",
            }.get(key, "choose the network that fits it")
            raise PdiffError(
                f"{pretrained!r} does not fit network {name!r}: {key} is {config.get(key)!r}, needed {value!r}; {hint}"
            )


def _default_patch(model_type: str, image_size: int) -> int:
    """The largest usual patch size that leaves a useful map: at least 7 patches across for ViT, 8 for ConvNeXt."""
    if model_type == "convnext":
        return next((patch for patch in (4, 2) if image_size // patch >= 8), 1)
    return next((patch for patch in (16, 8, 4, 2) if image_size % patch == 0 and image_size // patch >= 7), 1)
