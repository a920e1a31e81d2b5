"""One forward pass of a network before any work is done, so that what does not fit the task is said at once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import NETWORK_NAMES, build_network, logits
from pdiff_hub.networks.beside import Layout, build_beside, sketch
from pdiff_hub.networks.building import one_at_a_time
from pdiff_hub.networks.seeding import seeded
from pdiff_hub.networks.unwrapping import cannot_take

_INPUTS = 2
_MOST_TENSORS = 10_000  # of a network that the package knows by name


def build_checked(
    spec: Mapping[str, Any], *, seed: int = 0, from_files: bool = False, allow_factory: bool = True
) -> nn.Module:
    """The network of a complete spec, without pretrained weights, after all checks that work on it needs.

    Args:
        spec, seed, allow_factory: as in `build_network`.
        from_files: whether all saved tensors will come from files, so that their first values do not matter.

    Raises:
        ValueError: as `build_network` and `dry_run` raise it; for a named network that does not fit into memory; for a
            factory whose networks differ though the seed is the same.
    """
    own = spec.get("name") not in NETWORK_NAMES
    if not own:
        _require_memory(spec)
    network = build_network(spec, seed=seed, pretrained=False, allow_factory=allow_factory)
    dry_run(network, spec)
    if own:
        again = build_network(spec, seed=seed, pretrained=False, allow_factory=allow_factory)
        _require_same(network, again, str(spec["name"]), values=not from_files)
    return network


def build_to_judge(spec: Mapping[str, Any], layout: Layout, what: str, *, allow_factory: bool) -> nn.Module:
    """As `build_beside`, for work on the network of a data set or pipeline (`what`); a factory's is run dry."""
    network = build_beside(dict(spec), layout, f"the network spec of {what}", allow_factory=allow_factory)
    if spec["name"] not in NETWORK_NAMES:  # the package's own are known to work
        dry_run(network, spec)
    return network


@torch.no_grad()
def dry_run(network: nn.Module, spec: Mapping[str, Any]) -> None:
    """Runs the network in eval mode on two random images of its task. Nothing changes: neither the network, nor the
    caller's random number generators.

    Raises:
        ValueError: what is saved of the network are not its parameters and buffers; it has no numbers (it is on the
            meta device); it cannot take the images, or changes them; it does not give one logit per image and class; it
            changes its tensors in eval mode, so that answers would depend on those before. The message names the
            network.

    Warns if the network draws random numbers in eval mode.
    """
    name, num_classes = str(spec["name"]), int(spec["num_classes"])
    _require_plain_tensors(network, name)
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    # The package's own networks change nothing in eval mode, and may be large.
    own = {} if name in NETWORK_NAMES else {key: tensor.detach().clone() for key, tensor in tensors.items()}
    device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
    with one_at_a_time, seeded(0), _attributes_kept(network):
        images = torch.randn(_INPUTS, spec["in_channels"], spec["image_size"], spec["image_size"])
        inputs_NCHW, before = images.to(device, copy=True), torch.get_rng_state()
        network.eval()
        try:
            output = functional_call(network, own, (inputs_NCHW,)) if own else network(inputs_NCHW)
        except Exception as error:  # a user's own code may raise anything
            raise cannot_take(name, inputs_NCHW.shape, error) from error
        is_random = not torch.equal(before, torch.get_rng_state())
    _require_logits(output, name, num_classes)
    if not torch.equal(inputs_NCHW.cpu(), images):
        raise PdiffError(
            f"network {name!r} changes the images that it is given; let it change a copy (no in-place operation on its "
            "input)"
        )
    for key, tensor in own.items():
        if not tensors[key].dtype.is_floating_point or torch.equal(tensor, tensors[key]):  # integers may count calls
            continue
        if not bool((tensor.isnan() & tensors[key].isnan() | (tensor == tensors[key])).all()):
            raise PdiffError(
                f"network {name!r} changes its tensor {key!r} in eval mode, so its answers depend on what it was asked "
                "before; change it only where self.training is true"
            )
    if is_random:
        warnings.warn(
            f"network {name!r} draws random numbers in eval mode, so what is measured of it is not repeatable; use "
            "dropout and noise only where self.training is true.",
            stacklevel=3,
        )


def _require_logits(output: Any, name: str, num_classes: int) -> None:
    try:
        found = logits(output)
    except PdiffError as error:
        raise PdiffError(f"network {name!r}: {error}") from None
    shape, wanted = list(found.shape), [_INPUTS, num_classes]
    if shape == wanted and found.is_floating_point():
        return
    if shape == wanted:
        remedy = "return the logits themselves"
    elif len(shape) == 2 and shape[0] == _INPUTS:
        remedy = (
            f"it has {shape[1]} logits, and the task has {num_classes} classes; give its last layer {num_classes} "
            "outputs (its factory gets their number if it takes num_classes)"
        )
    elif len(shape) > 2 and shape[:2] == wanted:
        remedy = "flatten or average what it gives for each position"
    else:
        remedy = "one row per image, one logit per class"
    raise PdiffError(
        f"network {name!r} answers {_INPUTS} images with {str(found.dtype).removeprefix('torch.')} numbers {shape}, "
        f"expected float numbers {wanted}: {remedy}"
    )


def _require_plain_tensors(network: nn.Module, name: str) -> None:
    """ValueError unless the state dict is exactly the parameters and buffers, each with numbers in memory."""
    live: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    saved = network.state_dict(keep_vars=True)
    for key, value in saved.items():
        if live.get(key) is not value and key not in dict(network.named_buffers(remove_duplicate=False)):
            kind = "extra state (get_extra_state)" if key.endswith("_extra_state") else "no parameter or buffer"
            raise PdiffError(
                f"network {name!r} saves {key!r}, which is {kind}, so it cannot be generated or kept; use a buffer "
                "(register_buffer) for it, or leave it out of the state dict"
            )
    if lost := [key for key in live if key not in saved]:
        raise PdiffError(
            f"network {name!r} leaves its parameter {lost[0]!r} out of its state dict, so it would be lost; save it, "
            "or make it a constant of the network"
        )
    for key, tensor in (*live.items(), *network.named_buffers()):
        if tensor.is_meta:
            raise PdiffError(
                f"tensor {key!r} of network {name!r} is on the meta device, where it has no numbers; build the network "
                "on the CPU"
            )
        if tensor.layout != torch.strided or tensor.is_nested:
            raise PdiffError(
                f"tensor {key!r} of network {name!r} is sparse or nested ({tensor.layout}); use a dense one (to_dense)"
            )


@contextmanager
def _attributes_kept(network: nn.Module) -> Iterator[None]:
    """Restores all attributes of all modules afterwards: their mode, and what a forward pass may note in them."""
    kept = [(module, dict(vars(module))) for module in network.modules()]
    try:
        yield
    finally:
        for module, attributes in kept:
            vars(module).clear()
            vars(module).update(attributes)


def _require_same(one: nn.Module, other: nn.Module, name: str, *, values: bool) -> None:
    """ValueError if two networks of one spec and seed differ in their tensors, or in the numbers that are not saved.

    values: whether the saved tensors must have the same numbers, too.
    """
    built = [each.state_dict() for each in (one, other)]
    kinds = [
        {key: f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.") for key, tensor in state.items()}
        for state in built
    ]
    if different := sorted(kinds[0].items() ^ kinds[1].items()):
        key = different[0][0]
        raise PdiffError(
            f"network {name!r} is another one each time that it is built: tensor {key!r} is "
            f"{kinds[0].get(key, 'missing')} and then {kinds[1].get(key, 'missing')}; let its factory depend on its "
            "arguments only"
        )
    compared = [_unsaved(each) | (state if values else {}) for each, state in zip((one, other), built, strict=True)]
    for key in sorted(compared[0].keys() & compared[1].keys()):
        if not _equal(compared[0][key], compared[1][key]):
            raise PdiffError(
                f"network {name!r} has other numbers in {key!r} each time that it is built with the same seed; take "
                "them from torch's, NumPy's or Python's global generators, which are seeded"
                + ("" if key in built[0] else ", or save them (a persistent buffer)")
            )


def _unsaved(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that a network has beside those of its state dict: unsaved buffers, and plain attributes."""
    saved = network.state_dict(keep_vars=True)
    found = {key: buffer for key, buffer in network.named_buffers() if key not in saved}
    for prefix, module in network.named_modules():
        own = {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        found |= {f"{prefix}.{key}".removeprefix("."): value for key, value in own.items()}
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    same = (one == other) | (one.isnan() & other.isnan()) if one.is_floating_point() else one == other
    return bool(same.all())


def _require_memory(spec: Mapping[str, Any]) -> None:
    """ValueError if a network that the package knows by name has more numbers than this machine has memory for."""
    empty = sketch(spec, f"the spec of network {spec['name']!r}", _MOST_TENSORS)
    needed = sum(tensor.nbytes for tensor in empty.state_dict().values())
    if needed > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise PdiffError(
            f"network {spec['name']!r} of this size takes {needed / 1e9:,.0f} GB, and this machine has "
            f"{memory / 1e9:,.0f} GB of memory; make it smaller"
        )
