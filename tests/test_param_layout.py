"""`ParamLayout`: exact round trips, selections, and one clear error per bad tensor."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from pdiff_hub.checkpoints import CheckpointDataset
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout, write_tensors

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


ALL_DTYPES = (*DTYPES, torch.float64, torch.complex64, torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn)


@st.composite
def odd_modules(draw: st.DrawFn) -> nn.Module:
    """A module whose parameters and buffers have any shape (also none, also empty) and dtype; some are tied."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(2))  # so that there is something to generate
    shapes = st.lists(st.integers(0, 3), max_size=4)
    for number, (shape, dtype, tied, buffer) in enumerate(
        draw(st.lists(st.tuples(shapes, st.sampled_from(ALL_DTYPES), st.booleans(), st.booleans()), max_size=6))
    ):
        tensor = torch.zeros(shape).to(dtype)
        real = dtype.is_floating_point or dtype.is_complex
        names = [f"t{number}", f"again{number}"][: 1 + tied]
        value = tensor if buffer else nn.Parameter(tensor, requires_grad=real and dtype.itemsize > 1)
        for name in names:
            if buffer:
                module.register_buffer(name, value)
            else:
                module.register_parameter(name, value)
    return module


def filled(module: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A state dict of `module` with random values that float32 holds exactly; tied tensors are equal."""
    drawn: dict[int, torch.Tensor] = {}
    for tensor in module.state_dict(keep_vars=True).values():
        values = torch.randint(-4, 5, (2, *tensor.shape), generator=generator).float() / 4
        is_complex = tensor.dtype.is_complex
        drawn.setdefault(id(tensor), torch.complex(*values) if is_complex else values[0].to(tensor.dtype))
    return {name: drawn[id(tensor)] for name, tensor in module.state_dict(keep_vars=True).items()}


@settings(max_examples=60, deadline=None)
@given(odd_modules(), st.integers(1, 3), st.integers(0, 1000))
def test_any_shape_and_dtype_goes_there_and_back(module: nn.Module, batch: int, seed: int) -> None:
    layout, generator = ParamLayout.from_module(module), torch.Generator().manual_seed(seed)
    assert ParamLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    states = [filled(module, generator) for _ in range(batch)]
    params_BP = layout.flatten(states)
    assert params_BP.dtype == torch.float32 and params_BP.shape == (batch, layout.num_params)
    sizes = {n: t.numel() * (2 if t.is_complex() else 1) for n, t in states[0].items()}
    assert layout.num_params == sum(sizes[entry.name] for entry in layout.entries)
    assert torch.equal(layout.unstack(layout.stack(params_BP)), params_BP)
    assert layout.unstack(layout.stack(params_BP[:0])).shape == (0, layout.num_params)
    # Through the autoencoder, the file of generated networks, and the set of checkpoints.
    shared = layout.frozen_state(states[0])
    autoencoder = ParamAutoencoder(layout.to_dict(), slice_size=2, num_components=1)
    autoencoder.set_frozen_state(shared)
    for state, found in zip(states, autoencoder.state_dicts(params_BP), strict=True):
        module.load_state_dict(found, strict=True)
        for name, tensor in {**state, **shared}.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with TemporaryDirectory() as folder:
        CheckpointDataset(params_BP, layout, network={"name": "x"}, frozen=shared).save_pretrained(folder)
        dataset = CheckpointDataset.from_pretrained(folder)
        write_tensors(Path(folder) / "one", found, lambda tensor: None)
        written = load_file(Path(folder) / "one")
        assert dataset.layout == layout and torch.equal(dataset.params_KP, params_BP)
    for name, tensor in dataset.state_dict(batch - 1).items():
        assert torch.equal(tensor, found[name]) and torch.equal(written[name], found[name])
    sliced = torch.cat([params for _, _, params in autoencoder.decode_slices(autoencoder.encode(params_BP))], dim=1)
    assert sliced.shape == params_BP.shape


def test_a_mask_of_infinities_is_a_constant() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    layout = ParamLayout.from_module(module)
    assert [entry.name for entry in layout.entries] == ["weight", "bias"]
    assert torch.equal(layout.frozen_state(module.state_dict())["mask"], module.mask)
    named = ParamLayout.from_module(module, ["weight", "mask"])  # whoever names it wants it
    with pytest.raises(ValueError, match="'mask' holds NaN or Inf"):
        named.flatten(module.state_dict())


def test_a_dtype_that_no_file_holds_is_named() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("table", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match="tensor 'table' is complex128, which safetensors files cannot hold"):
        ParamLayout.from_module(module)
