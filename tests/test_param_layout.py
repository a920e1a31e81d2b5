"""`ParamLayout`: exact round trips, selections, and one clear error per bad tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pdiff_hub.travelling.param_autoencoder import ParamLayout

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight


def norm_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.LayerNorm(144),
        nn.RMSNorm(144),
        nn.Linear(144, 10),
    )


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    st.sampled_from(DTYPES),
    st.integers(0, 1000),
)
def test_round_trip_is_bit_exact(batch: int, shapes: list[tuple[int, int]], dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    module = nn.ModuleList(nn.Linear(a, b) for a, b in shapes).to(dtype)
    layout = ParamLayout.from_module(module)
    states = [{name: torch.randn(t.shape).to(t.dtype) for name, t in module.state_dict().items()} for _ in range(batch)]
    params_BP = layout.flatten(states)
    assert params_BP.dtype == torch.float32 and params_BP.shape == (batch, layout.num_params)
    back = layout.unflatten(params_BP)
    assert isinstance(back, list)
    for before, after in zip(states, back, strict=True):
        assert list(before) == list(after)
        assert all(torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype for n in before)
    assert torch.equal(layout.unstack(layout.stack(params_BP)), params_BP)
    assert torch.equal(layout.flatten(back[0] if isinstance(back, list) else back), params_BP[0])


def test_buffers_integers_and_the_frozen_rest() -> None:
    network = norm_network()
    network(torch.randn(8, 1, 8, 8))
    everything = ParamLayout.from_module(network)
    assert [e.name for e in everything.frozen] == ["1.num_batches_tracked"]
    assert [e.name for e in everything.entries if e.log] == ["1.running_var"]
    state = network.state_dict()
    rebuilt = norm_network()
    generated = everything.unflatten(everything.flatten(state))
    assert isinstance(generated, dict)
    rebuilt.load_state_dict({**generated, **everything.frozen_state(state)}, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), rebuilt.state_dict().values(), strict=True))
    assert not any("running" in e.name for e in ParamLayout.from_module(network, "norms:1-1").entries)
    assert any("running" in e.name for e in ParamLayout.from_module(network, "norms:1-1", buffers=True).entries)


def test_tied_tensors_appear_once() -> None:
    network = Tied()
    layout = ParamLayout.from_module(network)
    assert layout.num_params == 16 and layout.entries[0].aliases == ("head.weight",)
    state = network.state_dict()
    generated = layout.unflatten(layout.flatten(state))
    assert isinstance(generated, dict)
    Tied().load_state_dict(generated, strict=True)
    with pytest.raises(ValueError, match=r"head\.weight.*tied to 'embed\.weight'"):
        layout.flatten({"embed.weight": torch.zeros(4, 4), "head.weight": torch.ones(4, 4)})
    with pytest.raises(ValueError, match=r"missing tensor 'head\.weight'"):
        layout.flatten({"embed.weight": torch.zeros(4, 4)})


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ("last_norms:2", ["5.weight", "5.bias", "6.weight"]),
        ("norms:1-2", ["1.weight", "1.bias", "3.weight", "3.bias"]),
        ("modules:[37]", ["3.weight", "3.bias", "7.weight", "7.bias"]),
        ("head", ["7.weight", "7.bias"]),
        (["7.bias", "0.weight"], ["0.weight", "7.bias"]),
        (["1.running_var"], ["1.running_var"]),
    ],
)
def test_selections(select: str | list[str], names: list[str]) -> None:
    layout = ParamLayout.from_module(norm_network(), select)
    assert [e.name for e in layout.entries] == names
    assert ParamLayout.from_dict(layout.to_dict()) == layout


def test_layout_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert ParamLayout.from_module(norm_network()) == ParamLayout.from_module(norm_network())


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("last_norms:9", "only 4 normalisation layers"),
        ("norms:3-9", "1 <= A <= B <= 4"),
        ("modules:nothing.*", "matches no module"),
        ("last_norm:2", "nearest known name is 'last_norms'"),
        (["7.wieght"], "nearest known name is '7.weight'"),
        (["1.num_batches_tracked"], "matches no float tensor"),
        ("modules:2", "matches no float tensor"),
    ],
)
def test_bad_selections(select: str | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParamLayout.from_module(norm_network(), select)


def test_bad_state_dicts_name_the_tensor() -> None:
    network = norm_network()
    layout = ParamLayout.from_module(network)
    good = network.state_dict()
    bad: list[tuple[dict[str, torch.Tensor], str]] = [
        ({k: v for k, v in good.items() if k != "7.bias"}, r"missing tensor '7\.bias'"),
        ({**good, "8.bias": torch.zeros(1)}, r"unexpected tensor '8\.bias'.*nearest known name is"),
        ({**good, "7.bias": torch.zeros(11)}, r"'7\.bias' has shape \[11\], expected \[10\]"),
        ({**good, "7.bias": torch.full((10,), torch.nan)}, r"'7\.bias' holds NaN or Inf"),
        ({**good, "7.bias": torch.full((10,), torch.inf)}, r"'7\.bias' holds NaN or Inf"),
        ({**good, "7.bias": torch.zeros(10, dtype=torch.int64)}, r"'7\.bias' has dtype torch\.int64"),
    ]
    for state, message in bad:
        with pytest.raises(ValueError, match=message):
            layout.flatten(state)
    with pytest.raises(ValueError, match=r"state dict 1"):
        layout.flatten([good, bad[0][0]])
    with pytest.raises(ValueError, match="shape"):
        layout.unflatten(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="empty list"):
        layout.flatten([])
    damaged = layout.to_dict()
    damaged["entries"][1]["start"] += 1
    with pytest.raises(ValueError, match="damaged"):
        ParamLayout.from_dict(damaged)
