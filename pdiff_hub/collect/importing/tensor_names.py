"""The names of the tensors in a file -> those of the network: prefixes, wrappers, and tensors that belong to neither.

A prefix (`module.` of DataParallel, `model.` or `net.` of Lightning, nested ones) is found by itself if with it, and
only with it, the file holds exactly the network's tensors. So are the names that torch.compile and DataParallel put
inside (`features.module.0.weight`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from pdiff_hub.collect.shared_tensors import is_counter
from pdiff_hub.errors import PdiffError
from pdiff_hub.travelling.param_autoencoder import ParamLayout

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What tools leave in state dicts: thop's counts of operations, AveragedModel's of averages; a loss with weights.
_STRANGERS = {"total_ops", "total_params", "n_averaged"}
_LOSSES = {"criterion", "loss_fn", "loss_function"}


@dataclass(frozen=True)
class NamedState:
    """The tensors of a file by the network's names, and what was done to the names.

    Attributes:
        prefix: that was removed.
        wrappers: parts of names that were removed inside.
        ignored: the file's tensors that are left out.
    """

    state: dict[str, Tensor]
    prefix: str = ""
    wrappers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


class TensorNames:
    """Reads the names of a file's tensors for one network.

    Args:
        layout: of the network.
        prefix: what to remove from the front of every name; "" finds it.
        ignore: globs of the file's names that are left out.
    """

    def __init__(self, layout: ParamLayout, prefix: str, ignore: Sequence[str]):
        self._selected = [(entry.name, *entry.aliases) for entry in layout.entries]
        self._rest = [entry.tied or (entry.name,) for entry in layout.frozen]
        self._known = {name for names in self._selected for name in names} | {entry.name for entry in layout.frozen}
        self._parts = {part for name in self._known for part in name.split(".")}
        self._prefix, self._ignore = prefix, ignore

    def read(self, state: Mapping[str, Tensor], where: str) -> NamedState:
        """The tensors of one file. Names that do not fit stay as they are; ValueError if they fit in several ways."""
        kept = {name: name for name in state if not self._is_stranger(name)}
        if self._prefix:
            for name in kept:
                if not name.startswith(self._prefix):
                    raise PdiffError(f"{where}: tensor {name!r} does not begin with the prefix {self._prefix!r}.")
            kept = {name.removeprefix(self._prefix): name for name in kept}
        wrappers = sorted({part for name in kept for part in name.split(".") if part in _WRAPPERS - self._parts})
        unwrapped = {_without(name, wrappers): name for name in kept}
        found, used = self._fitting(kept, where), list[str]()
        if found is None and wrappers and len(unwrapped) == len(kept):
            found, used = self._fitting(unwrapped, where), wrappers
        names = kept if found is None else found[1]
        return NamedState(
            {name: state[own] for name, own in names.items()},
            self._prefix + (found[0] if found else ""),
            tuple(used) if found else (),
            tuple(name for name in state if name not in names.values()),
        )

    def rest(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's tensors among those of a file that may hold others, under the prefix that most of them have."""
        wrappers = sorted({part for name in state for part in name.split(".") if part in _WRAPPERS - self._parts})
        best: dict[str, str] = {}
        for names in ({name: name for name in state}, {_without(name, wrappers): name for name in state}):
            for prefix in ["", *self._prefixes(names)]:
                own = {name: each for name, each in _inside(names, prefix).items() if name in self._known}
                best = max(best, own, key=len)
        return {name: state[own] for name, own in best.items()}

    def hint(self, state: Mapping[str, Tensor]) -> str:
        """What to do about names that do not fit: a prefix that nearly fits, tensors that could be left out."""
        if state.keys() <= self._known:
            return ""
        for prefix in ["", *self._prefixes(state)]:
            inside = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
            more = [name for name in state if name.removeprefix(prefix) not in self._known]
            if more and all(inside.intersection(names) for names in self._selected):
                begin = f" The network's names begin with {prefix!r} here." if prefix else ""
                return f"{begin} If {more[0]!r} is not needed, leave it out: ignore: [{more[0]!r}]."
        for prefix in self._prefixes(state):
            if all(name.startswith(prefix) for name in state):
                return f" All names here begin with {prefix!r}: give it as prefix."
        return ""

    def _fitting(self, names: Mapping[str, str], where: str) -> tuple[str, dict[str, str]] | None:
        """The prefix with which `names` (each with its name in the file) fit, and the names without it.

        Better with all of the network's tensors than with the selected ones only, which need a base.
        """
        prefixes = ["", *([] if self._prefix else self._prefixes(names))]
        inside = {each: _inside(names, each) for each in prefixes if all(name.startswith(each) for name in names)}
        for needed in ([*self._selected, *self._rest], self._selected):
            fitting = [prefix for prefix, own in inside.items() if self._fits(own, needed)]
            if "" in fitting:
                return "", inside[""]
            if len(fitting) > 1:
                raise PdiffError(f"{where}: the names fit with each of the prefixes {fitting}; give one as prefix.")
            if fitting:
                return fitting[0], inside[fitting[0]]
        return None

    def _prefixes(self, names: Iterable[str]) -> list[str]:
        """What stands before the name of the first selected tensor, or of the first other one."""
        ends = tuple(f".{each}" for names in [self._selected[0], *self._rest[:1]] for each in names)
        found = (name[: len(name) - len(end) + 1] for name in names for end in ends if name.endswith(end))
        return sorted(set(found), key=len)

    def _fits(self, names: Mapping[str, str], needed: Sequence[tuple[str, ...]]) -> bool:
        there = (is_counter(each[0]) or any(name in names for name in each) for each in needed)
        return names.keys() <= self._known and all(there)

    def _is_stranger(self, name: str) -> bool:
        if any(fnmatchcase(name, glob) for glob in self._ignore):
            return True
        parts = name.split(".")
        return parts[-1] in _STRANGERS - self._parts or bool((_LOSSES - self._parts).intersection(parts[:-1]))


def _inside(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): own for name, own in names.items() if name.startswith(prefix)}


def _without(name: str, wrappers: Sequence[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in wrappers)
