"""Target networks: the networks whose weights are generated. Each has a name (some need transformers) or a factory.

A network is described by a *spec*: a JSON-able dict of its name and options. `resolve_network` checks a spec and fills
in every default. Data sets and pipelines store the complete spec, and `build_network` makes the same architecture from
it again, so that stored state dicts load with `strict=True`.
"""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pdiff_hub.errors import PdiffError, unknown_name
from pdiff_hub.networks import factory, small, vision
from pdiff_hub.networks.building import one_at_a_time
from pdiff_hub.networks.memory import is_in_memory
from pdiff_hub.networks.seeding import seeded

__all__ = ["NETWORK_NAMES", "base_model", "build_network", "logits", "resolve_network"]

NETWORK_NAMES: tuple[str, ...] = (*small.NAMES, *vision.NAMES)
_TASK_FIELDS = ("in_channels", "image_size", "num_classes")


def resolve_network(
    spec: str | Mapping[str, Any], *, in_channels: int, image_size: int, num_classes: int
) -> dict[str, Any]:
    """The complete spec of a network for images [in_channels, image_size, image_size] and num_classes classes.

    Args:
        spec: a name, or `{"name": NAME, **options}`. NAME is one of

            - `mlp`: linear layers with ReLU between them, as many as `hidden: [h1, ...]` has numbers and one more
              (default [32]).
            - `mlp3`: three linear layers. `hidden: [h1, h2]` (default [64, 64]).
            - `convnet3`: three 3x3 convolutions, one linear layer. `widths: [w1, w2, w3]` (default [8, 16, 16]),
              `norm: none|batch|group` (none), `downsample: max_pool|stride` (max_pool), `global_pool: bool` (false: the
              last map is flattened, which is more accurate on small images).
            - `resnet18`, `resnet50`, `vit_tiny`, `vit_base`, `convnext_atto`,
              `convnext_pico`, `convnext_tiny`, `convnext_base` (need transformers):
              `pretrained: HUB_ID_OR_FOLDER` and `revision`. ResNets also take `small_images: bool` (3x3 stem, no
              max-pool; the default up to 64 pixels without `pretrained`) and `stem_stride: 1|2`; the others take
              `patch_size`.
            - `some.module:factory` or `some.module.factory`: called with the other options as keyword arguments.
        in_channels, image_size, num_classes: positive integers; image_size is the side in pixels.

    Returns:
        A JSON-able dict with every option. Resolving it again changes nothing. With `pretrained`, that model's
        config.json is read (from the Hub unless it is cached) and recorded, so that the architecture can be built again
        without a network connection.

    Raises:
        ValueError: an unknown name or option (with the nearest known one), an option out of range, a spec that was
            resolved for other images or classes, a pretrained model that does not fit.
        ImportError: a network from transformers where transformers is not installed.
    """
    shape = {"in_channels": in_channels, "image_size": image_size, "num_classes": num_classes}
    for field, value in shape.items():
        if type(value) is not int or value < 1:
            raise PdiffError(f"{field} must be a positive integer, found {value!r}")
    if not isinstance(spec, (str, Mapping)):
        raise PdiffError(f"a network is a name or a mapping with a 'name', found {reprlib.repr(spec)}")
    options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else copy.deepcopy(dict(spec))
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise PdiffError(f"a network spec needs a 'name', for example {{'name': 'mlp3'}}; found {reprlib.repr(spec)}")
    explicit = [field for field in _TASK_FIELDS if field in options]
    for field in explicit:
        if (found := options.pop(field)) != shape[field]:
            raise PdiffError(
                f"network {name!r} was given {field}={reprlib.repr(found)}, but the task has {field}={shape[field]}; "
                f"leave {field} out of the network's spec, it is taken from the task"
            )
    if name in small.NAMES:
        resolved = small.resolve(name, options)
    elif name in vision.NAMES:
        resolved = vision.resolve(name, options, **shape)
    elif factory.is_dotted(name):
        resolved = factory.resolve(name, options, shape, explicit)
    else:
        raise unknown_name("network", name, NETWORK_NAMES)
    return {"name": name, **resolved, **shape}


def build_network(
    spec: Mapping[str, Any], *, seed: int = 0, pretrained: bool = True, allow_factory: bool = True
) -> nn.Module:
    """A freshly initialised network of a complete spec, in train mode. Networks with a name are float32.

    What a factory returns is made a plain network, which takes float32 images in any dtype (`unwrapping.plain`).

    Args:
        spec: what `resolve_network` returned.
        seed: 0 or larger; decides the initial weights. The caller's random number generators are not changed.
        pretrained: whether to load the weights that a spec with `pretrained` names (from the Hub or a folder). False
            builds the architecture only, which is enough if you load a state dict afterwards.
        allow_factory: whether a dotted name may be imported and called. Set it to False for a spec that came with a
            downloaded pipeline: such a spec could run any function with any arguments. Networks that were given in this
            process (`networks.memory`) are built in any case.

    Raises:
        ValueError: an incomplete or invalid spec, a seed out of range, a dotted name that is not allowed.
        ImportError: a network from transformers where transformers is not installed.
    """
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise PdiffError(f"seed must be an integer from 0 to 2**63 - 1, found {seed!r}")
    if not isinstance(spec, Mapping):
        raise PdiffError(f"build_network needs the mapping that resolve_network gives, found {reprlib.repr(spec)}")
    spec = dict(spec)
    name = spec.get("name")
    dotted = isinstance(name, str) and name not in NETWORK_NAMES and factory.is_dotted(name)
    if dotted and not allow_factory and not is_in_memory(name):
        raise PdiffError(
            f"the network {name!r} is built by calling that function, which is not allowed here because the spec came "
            "from somewhere else; look at it, then give --trust-remote-code, or trust_remote_code=True "
            "(allow_factory=True of this function)"
        )
    missing = [field for field in _TASK_FIELDS if field not in spec]
    if name in vision.NAMES and spec.get("pretrained") is not None and spec.get("config") is None:
        missing.append("config")  # resolve_network would read it where the spec says
    if missing:
        raise PdiffError(f"{_shown(spec)} lacks {', '.join(missing)}: complete it with resolve_network first")
    complete = resolve_network(spec, **{field: spec[field] for field in _TASK_FIELDS})
    if absent := sorted(complete.keys() - spec.keys()):
        raise PdiffError(f"{_shown(spec)} lacks {', '.join(absent)}: complete it with resolve_network first")
    with one_at_a_time, seeded(seed):
        if dotted:
            return factory.build(complete)
        if name in small.NAMES:
            return small.build(complete).to(torch.float32)
        return vision.build(complete, pretrained=pretrained)


def _shown(spec: Mapping[str, Any]) -> str:
    return f"the network spec {reprlib.repr(dict(spec))}"


def base_model(spec: Mapping[str, Any]) -> str | None:
    """The Hub id of the pretrained model that a complete spec starts from; None if it has none, or one in a folder."""
    # A commit is recorded for a config from the Hub, never for one from a local folder.
    revision = str(spec.get("revision"))
    from_hub = len(revision) == 40 and set(revision) <= set("0123456789abcdef")
    return str(spec["pretrained"]) if from_hub and spec.get("pretrained") else None


def logits(output: Any) -> Tensor:
    """The logits [B, num_classes] in a network's output: a tensor, or a tensor "logits" of an object or a dict.

    Raises:
        ValueError: the output is anything else.
    """
    held = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = output if isinstance(output, Tensor) else held
    if not isinstance(found, Tensor):
        raise PdiffError(
            "a network must return a tensor of logits, or an object or a dict with logits, found "
            f"{type(output).__name__}"
        )
    return found
