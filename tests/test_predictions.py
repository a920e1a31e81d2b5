"""prediction/predictions.py and networks/prefix_cache.py: batched and shared forward passes equal plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pdiff_hub.networks import build_network, logits, resolve_network
from pdiff_hub.networks.prefix_cache import plan_prefix, record, serve
from pdiff_hub.prediction import predictions
from pdiff_hub.prediction.predictions import SplitImages, evaluate, predict_logits
from pdiff_hub.tasks import Split, Task
from pdiff_hub.travelling.param_autoencoder import ParamLayout


class Block(nn.Module):
    """A residual block with in-place activations, as in most published networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += x
        return self.act(y)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.blocks = nn.Sequential(Block(6), Block(6), Block(6))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.blocks(torch.relu(self.stem(x))).mean((2, 3))))


class Tower(nn.Module):
    """Three linear layers `a`, `b`, `c`. `route` calls them, mostly in ways that are traps for prefix caching."""

    def __init__(self, route: Callable[[Tower, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.b.weight
        self.norm = nn.LayerNorm(16)
        self.remembered = torch.zeros(())
        self.route = route

    def forward(self, x: Tensor) -> Tensor:
        return self.route(self, x.flatten(1)[:, :16])


ROUTES: dict[str, Callable[[Tower, Tensor], Tensor]] = {
    "plain": lambda t, x: t.c(F.relu(t.norm(t.b(F.relu(t.a(x)))))),
    "called twice, before and after": lambda t, x: t.c(t.a(t.norm(t.a(x)))),
    "owner called twice": lambda t, x: t.c(t.norm(t.a(t.norm(x)))),
    "owner never called": lambda t, x: t.c(F.layer_norm(t.a(x), (16,), t.norm.weight, t.norm.bias)),
    "tensor read before its owner runs": lambda t, x: t.c(t.norm(t.b(t.a(x) * t.norm.weight))),
    "forward called directly": lambda t, x: t.c(t.norm(t.a.forward(t.a(x)))),
    "changed in place": lambda t, x: t.c(t.norm(t.a(x).add_(1.0))),
    "read late and early": lambda t, x: (lambda h: t.c(t.norm(t.b(h)) + h))(t.a(x)),
    "first norm in the middle of a sum": lambda t, x: t.c(t.b(x) + t.norm(x) + t.a(x)),
}


def variants(network: nn.Module, select: str | list[str], count: int, seed: int = 0) -> tuple[ParamLayout, Tensor]:
    layout = ParamLayout.from_module(network, select)
    generator = torch.Generator().manual_seed(seed)
    params_P = layout.flatten(dict(network.state_dict()))
    noise_BP = torch.randn(count, layout.num_params, generator=generator)
    return layout, params_P * (1 + 0.1 * noise_BP) + 0.02 * noise_BP.roll(1, dims=1).abs()


def plain_logits(network: nn.Module, layout: ParamLayout, params_BP: Tensor, inputs: Tensor) -> Tensor:
    network = copy.deepcopy(network).eval()
    answers = []
    with torch.no_grad():
        for b in range(len(params_BP)):
            state = {name: tensor[b] for name, tensor in layout.stack(params_BP).items()}
            network.load_state_dict(state, strict=False)
            answers.append(logits(network(inputs)))
    return torch.stack(answers)


def check(network: nn.Module, select: str | list[str], inputs: Tensor, count: int = 5) -> None:
    layout, params_BP = variants(network, select, count)
    frozen = layout.frozen_state(network.state_dict())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = predict_logits(network, layout, frozen, params_BP, inputs)
    expected = plain_logits(network, layout, params_BP, inputs)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-4  # the variants really differ
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any("forward" in vars(module) or module._forward_hooks for module in network.modules())


@pytest.fixture(params=["as chosen", "vmap", "loop"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How several networks run: as chosen from their sizes, or forced into vmap or a loop, in several chunks."""
    if request.param != "as chosen":
        sizes = (request.param == "vmap", 2, 3)
        monkeypatch.setattr(predictions, "_chunk_sizes", lambda *_: sizes)
    return str(request.param)


def images(count: int = 7, channels: int = 1, size: int = 8) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["mlp3", "convnet3"])
def test_named_networks_equal_one_after_another(way: str, name: str) -> None:
    network = build_network(resolve_network(name, in_channels=1, image_size=8, num_classes=10))
    check(network, "all", images())


@pytest.mark.parametrize("select", ["last_norms:1", "last_norms:2", "norms:1-1", "modules:blocks.2.*", "head", "all"])
def test_residual_network_equals_plain(way: str, select: str) -> None:
    torch.manual_seed(0)
    check(Residual(), select, images())


@pytest.mark.parametrize("route", ROUTES)
def test_traps_of_prefix_caching(way: str, route: str) -> None:
    torch.manual_seed(0)
    check(Tower(ROUTES[route]), "modules:norm" if way != "loop" else "last_norms:1", images())


def test_tied_weights_vary_together(way: str) -> None:
    torch.manual_seed(0)
    network = Tower(lambda t, x: t.c(t.tied(t.b(t.a(x)))))
    check(network, ["b.weight"], images())
    check(network, "head", images())  # here the tied weights are frozen


@pytest.mark.parametrize("select", ["last_norms:2", "modules:resnet.encoder.stages.1.*", "head"])
def test_transformers_resnet_equals_plain(way: str, select: str) -> None:
    check(_resnet(), select, images(5, 3, 16), count=3)


def test_what_the_plan_shares() -> None:
    torch.manual_seed(0)
    network = Residual().eval()
    kept, skipped = _plan(network, "last_norms:2", images(2))
    assert set(kept) == {"blocks.1", "blocks.2.conv1"}  # the block's input also goes around its convolutions
    assert set(skipped) == {"stem", "blocks.0"}
    assert _plan(network, "norms:1-1", images(2)) == ({"stem", "blocks.0.conv1"}, set())
    assert _plan(network, "all", images(2)) == (set(), set())
    kept, _ = _plan(_resnet().eval(), "last_norms:1", images(2, 3, 16))
    assert "resnet.encoder.stages.1.layers.1.layer.1.convolution" in kept


@pytest.mark.parametrize(
    "route",
    [
        "called twice, before and after",
        "owner called twice",
        "owner never called",
        "tensor read before its owner runs",
        "forward called directly",
    ],
)
def test_no_sharing_where_it_is_not_certain(route: str) -> None:
    torch.manual_seed(0)
    assert _plan(Tower(ROUTES[route]).eval(), "modules:norm", images(2)) == (set(), set())


def test_served_modules_do_not_run_and_are_restored_after_an_error() -> None:
    torch.manual_seed(0)
    network, inputs = Residual().eval(), images(2)
    layout = ParamLayout.from_module(network, "last_norms:1")
    state = {entry.name: network.state_dict()[entry.name] for entry in layout.entries}

    def forward(state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        answer: Tensor = torch.func.functional_call(network, dict(state), (inputs,))
        return answer

    with torch.no_grad():
        plan = plan_prefix(network, forward, state, inputs)
        shared = record(network, plan, forward, state, inputs)
        ran = []
        hook = network.get_submodule("blocks.0.conv1").register_forward_hook(lambda *_: ran.append(1))
        expected = network_of(network, inputs)
        ran.clear()

        def use_then_fail() -> None:
            with serve(network, shared):
                torch.testing.assert_close(forward(state, torch.full_like(inputs, torch.nan)), expected)
                assert not ran
                raise KeyError("stop")

        with pytest.raises(KeyError, match="stop"):
            use_then_fail()
        forward(state, inputs)
    assert ran
    hook.remove()
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize("most_bytes", [1 << 20, 0])
def test_what_sets_share_runs_for_the_first_if_there_is_room(
    way: str, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "_KEPT_BYTES", most_bytes)
    torch.manual_seed(0)
    network, inputs, labels, ran = Residual(), images(), torch.arange(7) % 3, []
    network.get_submodule("blocks.0.conv1").register_forward_hook(lambda *_: ran.append(1))
    layout, params_BP = variants(network, "last_norms:1", 4)
    frozen, kept = layout.frozen_state(network.state_dict()), predictions.Kept()
    for rows_BP in (params_BP, params_BP[:2] + 0.5):
        alone = evaluate(network, layout, frozen, rows_BP, inputs, labels, with_loss=True)
        ran.clear()
        found = evaluate(network, layout, frozen, rows_BP, inputs, labels, with_loss=True, kept=kept)
        assert found.loss_B is not None
        assert alone.loss_B is not None
        assert torch.equal(found.wrong_BN, alone.wrong_BN)
        assert torch.equal(found.loss_B, alone.loss_B)
    assert bool(ran) == (most_bytes == 0)


def test_networks_that_vmap_does_not_know_run_in_a_loop() -> None:
    torch.manual_seed(0)
    check(Tower(lambda t, x: t.c(t.norm(x)) * (1.0 if t.norm(x).sum().item() > 0 else 2.0)), "all", images())


def test_accuracy_and_wrong_predictions() -> None:
    network = build_network(resolve_network("mlp3", in_channels=1, image_size=8, num_classes=10))
    layout, params_BP = variants(network, "all", 4)
    params_BP[3, 0] = torch.nan
    inputs = images(30)
    answers = plain_logits(network, layout, params_BP, inputs).argmax(-1)
    labels_N = answers[0].clone()
    labels_N[:3] = (labels_N[:3] + 1) % 10
    result = evaluate(network, layout, layout.frozen_state(network.state_dict()), params_BP, inputs, labels_N)
    assert result.wrong_BN.dtype == torch.bool and result.accuracy_B.dtype == torch.float64
    assert torch.equal(result.wrong_BN[:3], answers[:3] != labels_N)
    assert result.accuracy_B[0] == pytest.approx(0.9) and result.accuracy_B[3] == 0.0
    assert result.wrong_BN[3].all()  # NaN counts as a wrong answer


def test_eval_mode_and_back() -> None:
    torch.manual_seed(0)
    network = Residual()  # in train mode, except for one module
    network.blocks[1].eval()
    check(network, "last_norms:1", images())
    modes = {name: module.training for name, module in network.named_modules()}
    assert modes[""] and modes["blocks.0.norm1"] and not modes["blocks.1.norm1"]


def test_a_split_is_normalised_slice_by_slice() -> None:
    images_NCHW = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    split = Split(images_NCHW, torch.zeros(7, dtype=torch.int64))
    task = Task({"name": "digits"}, 10, 1, 8, (0.3,), (0.2,), split, split, split)
    torch.manual_seed(0)
    network = Residual()
    layout, params_BP = variants(network, "head", 2)
    frozen = layout.frozen_state(network.state_dict())
    assert torch.equal(
        predict_logits(network, layout, frozen, params_BP, SplitImages(task, split)),
        predict_logits(network, layout, frozen, params_BP, task.inputs(split)),
    )


def test_bad_input() -> None:
    torch.manual_seed(0)
    network, inputs, labels = Residual(), images(), torch.zeros(7, dtype=torch.int64)
    layout, params_BP = variants(network, "head", 2)
    frozen = layout.frozen_state(network.state_dict())
    with pytest.raises(ValueError, match="at least one network"):
        evaluate(network, layout, frozen, params_BP[:0], inputs, labels)
    with pytest.raises(ValueError, match="no images"):
        evaluate(network, layout, frozen, params_BP, inputs[:0], labels[:0])
    with pytest.raises(ValueError, match=r"labels have shape \[6\]"):
        evaluate(network, layout, frozen, params_BP, inputs, labels[1:])
    with pytest.raises(ValueError, match="labels run from 0 to 10"):
        evaluate(network, layout, frozen, params_BP, inputs, labels + torch.tensor([10, 0, 0, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"lack 'stem.weight' \(1 missing\)"):
        predict_logits(network, layout, {k: v for k, v in frozen.items() if k != "stem.weight"}, params_BP, inputs)
    with pytest.raises(ValueError, match="expected"):
        predict_logits(network, layout, frozen, params_BP[:, 1:], inputs)
    with pytest.raises(ValueError, match="the network lacks it"):
        predict_logits(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), layout, frozen, params_BP, inputs)
    network.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"does not know the network's tensor 'extra.weight'"):
        predict_logits(network, layout, frozen, params_BP, inputs)


def network_of(network: nn.Module, inputs: Tensor) -> Tensor:
    answer: Tensor = network(inputs)
    return answer


def _plan(network: nn.Module, select: str, inputs: Tensor) -> tuple[set[str], set[str]]:
    layout = ParamLayout.from_module(network, select)
    state = {entry.name: network.state_dict()[entry.name] for entry in layout.entries}
    with torch.no_grad():
        plan = plan_prefix(
            network, lambda state, x: logits(torch.func.functional_call(network, dict(state), (x,))), state, inputs
        )
    return set(plan.kept), set(plan.skipped)


def _resnet() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=4
    )
    network: nn.Module = transformers.ResNetForImageClassification(config)
    for name, buffer in network.named_buffers():  # as after training: with fresh statistics the norms would do nothing
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return network
