"""Activations that a set of networks shares, computed once for all of them.

Networks may differ only in some late tensors, such as the last two norms of a ResNet-18. Every module that finishes
before the first of these tensors is used then gives the same output in all networks. `plan_prefix` finds these modules:
it watches forward passes on a tiny batch. `record` computes their outputs on a real batch. Inside `serve`, the modules
return the recorded outputs.

This is an optimisation and must never change a result. An output is reused only if the plan is certain of it, and a
plan is thrown away if its answers differ from a plain forward pass on the tiny batch. One assumption is left: the
values of the images do not decide which modules feed which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(varying tensors by name, inputs_NCHW) -> logits; everything else the network needs is fixed inside."""


Answers = Mapping[str, Callable[[], Any]]
"""What each served module returns, by its name."""


@dataclass(frozen=True)
class PrefixPlan:
    """What can be shared between the networks, and how large activations are.

    kept: modules whose outputs are recorded, because later code uses them. copied: the kept modules whose outputs later
    code changes in place (in-place activations); each network gets its own copy. skipped: modules whose outputs only
    the prefix itself reads; they are not stored, and the modules answer with NaN. If all are empty, nothing can be
    shared, and every forward pass is a plain one.
    kept_bytes: size of the recorded outputs per image.
    peak_bytes, late_peak_bytes: size of the largest output of one module per image, in the whole network and in the
    part that still runs for each network.
    """

    kept: tuple[str, ...]
    copied: tuple[str, ...]
    skipped: tuple[str, ...]
    peak_bytes: int
    late_peak_bytes: int
    kept_bytes: int = 0


@dataclass
class _Call:
    name: str
    parent: int | None
    begin: int
    end: int = -1
    plain: bool = False
    num_bytes: int = 0


def plan_prefix(network: nn.Module, forward: Forward, state: Mapping[str, Tensor], inputs_NCHW: Tensor) -> PrefixPlan:
    """Plan what networks can share if they differ only in the tensors that `state` names.

    network: in eval mode. state: one sound value for each varying tensor, by its name in the network. inputs_NCHW: a
    tiny batch (two images are enough). Costs a dozen forward passes on this batch, and one per shared module. The
    network is not changed.
    """
    calls = _trace(network, lambda: forward(state, inputs_NCHW))
    peak_bytes = _peak_bytes(calls, len(inputs_NCHW))
    plain = PrefixPlan((), (), (), peak_bytes, peak_bytes)
    names = _finished_before(network, calls, state)
    if not _hold_tensors(network, names):  # to flatten images anew costs less than to find out that all share it
        return plain
    baseline = forward(state, inputs_NCHW)
    outputs = _capture(network, names, lambda: forward(state, inputs_NCHW))
    # Code outside a tensor's own module may read the tensor earlier. With NaN in all varying tensors, every output that
    # depends on one of them changes.
    poison = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    poisoned = _capture(network, names, lambda: forward(poison, inputs_NCHW))
    if not all(_same(outputs[name], poisoned.get(name)) for name in names) or not bool(baseline.isfinite().all()):
        return plain

    answers: Answers = {name: partial(changed, output, torch.clone) for name, output in outputs.items()}
    read, written = [], []
    for name in names:
        nothing = changed(outputs[name], lambda tensor: torch.full_like(tensor, torch.nan))
        versions = [tensor._version for tensor in tensors_in(nothing)]  # autograd's count of in-place changes
        with serve(network, {**answers, name: partial(changed, nothing, _itself)}):
            if not torch.equal(forward(state, inputs_NCHW), baseline):
                read.append(name)
        if versions != [tensor._version for tensor in tensors_in(nothing)]:
            written.append(name)
    kept = tuple(name for name in names if name in read or name in written)
    skipped = tuple(name for name in names if name not in kept)
    kept_bytes = sum(tensor.numel() * tensor.element_size() for name in kept for tensor in tensors_in(outputs[name]))
    plan = PrefixPlan(kept, tuple(written), skipped, peak_bytes, peak_bytes, kept_bytes // len(inputs_NCHW))
    answers = record(network, plan, forward, state, inputs_NCHW)
    if not _agrees(network, forward, state, inputs_NCHW, answers):
        return plain
    with serve(network, answers):
        late = [call for call in _trace(network, lambda: forward(state, inputs_NCHW)) if call.name not in names]
    return replace(plan, late_peak_bytes=_peak_bytes(late, len(inputs_NCHW)))


def record(
    network: nn.Module, plan: PrefixPlan, forward: Forward, state: Mapping[str, Tensor], inputs_NCHW: Tensor
) -> Answers:
    """Run the network once on these inputs and return what `serve` needs for them; empty if nothing is shared."""
    if not plan.kept and not plan.skipped:
        return {}
    outputs = _capture(
        network,
        (*plan.kept, *plan.skipped),
        lambda: forward(state, inputs_NCHW),
        dict.fromkeys(plan.copied, torch.clone) | dict.fromkeys(plan.skipped, _nothing),
        _itself,
    )
    return {
        name: partial(changed, output, torch.clone if name in plan.copied else _itself)
        for name, output in outputs.items()
    }


@contextmanager
def serve(network: nn.Module, answers: Answers) -> Iterator[None]:
    """Inside the block, each module named in `answers` returns its answer, whatever its input; then all is restored."""
    modules = dict(network.named_modules())
    originals: list[tuple[dict[str, Any], Any]] = []
    try:
        for name, answer in answers.items():
            attributes = modules[name].__dict__
            originals.append((attributes, attributes.get("forward")))
            attributes["forward"] = _ignoring_arguments(answer)
        yield
    finally:
        for attributes, original in reversed(originals):
            if original is None:
                del attributes["forward"]
            else:
                attributes["forward"] = original


def _ignoring_arguments(answer: Callable[[], Any]) -> Callable[..., Any]:
    return lambda *_arguments, **_named: answer()


def _capture(
    network: nn.Module,
    names: Iterable[str],
    run: Callable[[], object],
    changes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    default: Callable[[Tensor], Tensor] = torch.clone,
) -> dict[str, Any]:
    """The outputs of the named modules in one run. Each tensor goes through its module's change when it appears."""
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        change = (changes or {}).get(name, default)

        def hook(_module: nn.Module, _arguments: object, output: Any) -> None:
            outputs[name] = changed(output, change)

        return hook

    modules = dict(network.named_modules())
    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _trace(network: nn.Module, run: Callable[[], object]) -> list[_Call]:
    """Every module call of one run, in the order in which the calls begin. Their times come from one event counter."""
    calls: list[_Call] = []
    running: list[int] = []
    events = 0

    def watch(name: str, module: nn.Module) -> list[Any]:
        def begin(_module: nn.Module, _arguments: object) -> None:
            nonlocal events
            calls.append(_Call(name, running[-1] if running else None, events))
            running.append(len(calls) - 1)
            events += 1

        def end(_module: nn.Module, arguments: object, output: Any) -> None:
            nonlocal events
            call = calls[running.pop()]
            call.end, call.plain = events, _is_plain(output)
            given = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(arguments)}
            made = [each for each in tensors_in(output) if each.untyped_storage().data_ptr() not in given]  # no views
            call.num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in made)
            events += 1

        return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]

    handles = [handle for name, module in network.named_modules() for handle in watch(name, module)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _finished_before(network: nn.Module, calls: Sequence[_Call], names: Mapping[str, Tensor]) -> list[str]:
    """The outermost modules that are called once and finish before any owner of a varying tensor begins, in order."""
    owners = _owners(network, names)
    begins = {call.name: call.begin for call in reversed(calls) if call.name in owners}
    if begins.keys() != owners:  # an owner is never called: other code reads its tensors, at an unknown time
        return []
    cut = min(begins.values())
    counts = Counter(call.name for call in calls)
    found: list[str] = []
    covered: set[int] = set()
    for index, call in enumerate(calls):
        if call.parent in covered:
            covered.add(index)
        elif call.end < cut and counts[call.name] == 1 and call.plain:
            covered.add(index)
            found.append(call.name)
    return found


def _hold_tensors(network: nn.Module, names: Iterable[str]) -> bool:
    """Whether one of the named modules has parameters or buffers, so that its work is worth sharing."""
    modules = dict(network.named_modules())
    return any(next(chain(modules[name].parameters(), modules[name].buffers()), None) is not None for name in names)


def _owners(network: nn.Module, names: Mapping[str, Tensor]) -> set[str]:
    """Modules that hold one of the named tensors, under any name. Tied tensors have several owners."""
    tensors: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    tensors |= dict(network.named_buffers(remove_duplicate=False))
    wanted = {id(tensors[name]) for name in names}
    owners = set()
    for name, module in network.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if any(id(tensor) in wanted for _, tensor in own):
            owners.add(name)
    return owners


def _agrees(
    network: nn.Module, forward: Forward, state: Mapping[str, Tensor], inputs_NCHW: Tensor, answers: Answers
) -> bool:
    """Whether served and plain forward passes agree: for two different networks, and again for the first."""
    shifted = {name: tensor * 1.25 + 0.05 for name, tensor in state.items()}
    for candidate in (state, shifted, state):
        plain = forward(candidate, inputs_NCHW)
        with serve(network, answers):
            reused = forward(candidate, inputs_NCHW)
        if not torch.allclose(plain, reused, rtol=1e-4, atol=1e-6, equal_nan=True):
            return False
    return True


def changed(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A module's output, with `change` applied to every tensor in it."""
    return tree_map_only(Tensor, change, output)


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors in a module's output, in order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _is_plain(output: Any) -> bool:
    """Whether an output can be copied part by part: a float tensor, None, or a tuple, list or dict of these."""
    if isinstance(output, Tensor):
        return output.is_floating_point()
    if type(output) in (tuple, list):
        return all(_is_plain(part) for part in output)
    if type(output) is dict:
        return all(_is_plain(part) for part in output.values())
    return output is None


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _nothing(tensor: Tensor) -> Tensor:
    """NaN in the shape of the tensor, expanded from one number so that it takes no memory."""
    return tensor.new_full((), torch.nan).expand(tensor.shape)


def _same(first: Any, second: Any) -> bool:
    """Whether all tensors are exactly equal; NaN equals NaN."""
    pairs = list(tensors_in(first)), list(tensors_in(second))
    return len(pairs[0]) == len(pairs[1]) and all(
        one.shape == two.shape and bool(((one == two) | (one.isnan() & two.isnan())).all())
        for one, two in zip(*pairs, strict=True)
    )


def _peak_bytes(calls: Sequence[_Call], num_images: int) -> int:
    return max(1, max((call.num_bytes for call in calls), default=1) // num_images)
