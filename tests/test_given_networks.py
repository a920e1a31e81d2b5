"""Networks in memory: every kind of module and function gets a name that says what it is, also in another process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import odd_networks
import pytest
import torch
from torch import nn

from pdiff_hub.errors import PdiffError
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.networks.factory import functions_in
from pdiff_hub.networks.given import importable_name, keep_network
from pdiff_hub.networks.memory import is_in_memory, made_by

SHAPE = {"in_channels": 1, "image_size": 8, "num_classes": 10}


def kept(network: Any, weights: Any = "own", **options: Any) -> dict[str, Any]:
    return resolve_network(keep_network(network, options, weights=weights, shape=SHAPE).spec, **SHAPE)


@pytest.mark.parametrize(
    "make",
    ["mlp", "compiled", "compiled_and_parallel", "parallel", "wrapped_inside", "bfloat16", "lazy_and_half", "float64"],
)
def test_modules_as_people_have_them(make: str) -> None:
    network = getattr(odd_networks, make)()
    spec = kept(network)
    built, again = (build_network(spec, seed=seed, allow_factory=False) for seed in (0, 1))
    assert built is not again and is_in_memory(spec["name"]) and not functions_in({"network": spec})
    state, other = built.state_dict(), again.state_dict()
    assert list(state) == list(other) and all(
        torch.equal(state[name], other[name]) for name in state if not make.startswith("lazy")
    )
    assert built.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_module_is_copied() -> None:
    network = odd_networks.mlp()
    spec = kept(network)
    before = build_network(spec).state_dict()
    torch.nn.init.zeros_(network[1].weight)
    assert torch.equal(build_network(spec).state_dict()["1.weight"], before["1.weight"])
    assert (
        kept(network)["name"] != spec["name"]
        and kept(network, "any")["name"] == kept(odd_networks.mlp(), "any")["name"]
    )


def test_weights_are_made_anew_by_the_seed() -> None:
    spec = kept(odd_networks.mlp(), "new")
    first, same, other = (build_network(spec, seed=seed).state_dict()["1.weight"] for seed in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert spec == kept(odd_networks.mlp(), "new")  # the weights that it had do not matter


def test_what_a_function_is_called_with() -> None:
    spec = kept(lambda num_classes, width: nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes)), width=5)
    assert spec["name"].startswith("memory:lambda-") and spec["width"] == 5
    with pytest.raises(PdiffError, match="cannot be called with the options"):
        kept(lambda depth: odd_networks.mlp(), width=5)
    network = odd_networks.mlp()
    with pytest.raises(PdiffError, match="returns the same module each time"):
        kept(lambda: network)
    with pytest.raises(PdiffError, match="could not be built: RuntimeError: no"):
        kept(lambda: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(PdiffError, match=r"scripted \(torch\.jit\)"):
        kept(odd_networks.scripted())
    with pytest.raises(PdiffError, match=r"cannot be copied \(.*uninitialized.*; give a function that makes it"):
        kept(odd_networks.lazy())
    assert kept(odd_networks.lazy)["name"].startswith("memory:lazy-")


def test_other_code_is_another_network() -> None:
    def make(negative: bool) -> type[nn.Module]:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(64, 10)

            if negative:

                def forward(self, images: torch.Tensor) -> Any:
                    return -self.linear(images.flatten(1))

            else:

                def forward(self, images: torch.Tensor) -> Any:
                    return self.linear(images.flatten(1))

        return Net

    assert kept(make(False))["name"] == kept(make(False))["name"] != kept(make(True))["name"]


class Scaled(nn.Module):
    def __init__(self, factor: float, act: Any = torch.relu, options: Any = None):
        super().__init__()
        torch.manual_seed(0)
        self.factor, self.act, self.options, self.layer = factor, act, options, nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.act(self.layer(self.factor * images.flatten(1)))
        return answers


def test_other_attributes_are_another_network() -> None:
    own: list[Any] = []
    own.append(own)  # what holds itself is no trouble
    given = [(1.0,), (2.0,), (1.0, torch.tanh), (1.0, torch.relu, {"a": (1, None)}), (1.0, torch.relu, own)]
    names = [kept(Scaled(*each))["name"] for each in given]
    assert len(set(names)) == len(given) and names == [kept(Scaled(*each))["name"] for each in given]


def test_a_module_may_start_from_its_weights_and_from_new_ones_in_one_process() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    new, own = kept(network, "new"), kept(network, "own")
    first, other = (build_network(new, seed=seed).state_dict()["1.weight"] for seed in (1, 2))
    assert not torch.equal(first, other)  # though the seed 0 gives the module's own weights
    assert torch.equal(build_network(own, seed=1).state_dict()["1.weight"], network[1].weight)


def test_what_can_be_imported_has_a_path() -> None:
    assert importable_name(odd_networks.mlp) == "odd_networks:mlp"
    assert importable_name(odd_networks.Odd) == "odd_networks:Odd"
    assert importable_name(lambda: odd_networks.mlp()) is None and importable_name(odd_networks.mlp()) is None


def test_the_name_is_the_same_in_another_process_and_gone_there() -> None:
    lines = [
        "import torch",
        "from torch import nn",
        "from pdiff_hub.networks.given import keep_network",
        f"shape = {SHAPE}",
        "class Net(nn.Sequential):",
        "    def forward(self, x): return super().forward(x) if {1, 'a', 'b'} else x",
        "make = lambda: Net(nn.Flatten(), nn.Linear(64, 10))",
        "print(keep_network(make, {}, weights='own', shape=shape).spec['name'])",
    ]
    names = [
        subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": s},
        ).stdout
        for s in "12"
    ]
    assert names[0] == names[1] and names[0].startswith("memory:lambda-")
    with pytest.raises(PdiffError, match="was given in Python, in another process"):
        made_by(names[0].strip())
