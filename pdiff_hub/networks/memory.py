"""Networks that were given in Python and have no path by which another process could import them.

They are called `memory:NAME-DIGEST`, after what they are. The name stands in recipes, data sets and pipelines, so all
that builds networks from specs works for them in the process that was given them. It runs nothing that a file says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pdiff_hub.errors import PdiffError

PREFIX = "memory:"

_given: dict[str, Callable[..., nn.Module]] = {}


def is_in_memory(name: object) -> bool:
    """Whether a network's name is that of one that was given in Python."""
    return isinstance(name, str) and name.startswith(PREFIX)


def keep(name: str, make: Callable[..., nn.Module]) -> None:
    """Lets networks be built by this name in this process: `make` is called like the function of a dotted path."""
    _given[name] = make


def made_by(name: str) -> Callable[..., Any]:
    """What makes the network of this name; ValueError if it was not given in this process."""
    if name not in _given:
        raise PdiffError(
            f"the network {name!r} was given in Python, in another process, and no file says how to build it: give it "
            "again, as PDiffTrainer(network=...) or pipe.build_network(state_dict, network=...); for commands, put it "
            "into a module and name it there as module:function"
        )
    return _given[name]
