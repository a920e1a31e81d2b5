"""What is captured on a GPU does what PyTorch would do; here the capture itself is replaced by calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pdiff_hub.collect.finetune.config import FinetuneConfig
from pdiff_hub.collect.finetune.image_batches import ImageBatches
from pdiff_hub.collect.finetune.run import FinetuneRun
from pdiff_hub.networks import build_network, capturing, resolve_network
from pdiff_hub.networks.capturing import moments_of, warmed_up_for_nothing
from pdiff_hub.pipeline import on_gpus
from pdiff_hub.pipeline.on_gpus import DrawnAhead, ReplayedAsk, draw_steps
from pdiff_hub.tasks import load_task
from pdiff_hub.training.diffusion import build_scheduler
from pdiff_hub.training.loop import build_accelerator
from pdiff_hub.training.steps import CapturedStep, EagerStep, Training
from pdiff_hub.travelling.param_autoencoder import ParamLayout
from pdiff_hub.travelling.pipeline_pdiff import reverse_process


def called(
    run: Callable[[], None], device: torch.device, *, generators: Sequence[torch.Generator] = (), exclusive: bool = True
) -> Callable[[], None]:
    """As `capture`: warms up, and gives what repeats it."""
    run()
    run()
    return run


def refused(*_: Any, **__: Any) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing")


def training(device: str = "cpu") -> Training:
    """A small network that learns to answer with what it is given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        inputs_BC = torch.randn(5, 3, generator=generator, device=device)
        return (model(inputs_BC) - inputs_BC).square().mean()

    return Training(
        name="test",
        model=model,
        plain=model,
        loss_of=loss_of,
        optimizer=optimizer,
        schedule=get_cosine_schedule_with_warmup(optimizer, 3, 20),
        ema=EMAModel(model.parameters(), decay=0.9, foreach=True),
        accelerator=build_accelerator(),
        max_grad_norm=0.1,
        seed=7,
    )


@pytest.mark.parametrize("first", [0, 6], ids=["from the beginning", "resumed"])
def test_a_captured_step_is_a_step(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "capture", called)
    plain, captured = training(), training()
    eager, ahead = EagerStep(plain), EagerStep(captured)
    for done in range(first):
        eager(done)
        ahead(done)  # so that the optimiser has moments before the capture
    replayed = CapturedStep(captured)
    for done in range(first, 12):
        assert torch.allclose(replayed(done), eager(done), atol=1e-6)
        for own, expected in zip(
            [*captured.model.parameters(), *captured.ema.shadow_params],
            [*plain.model.parameters(), *plain.ema.shadow_params],
            strict=True,
        ):
            assert torch.allclose(own, expected, atol=1e-6)
    assert captured.ema.optimization_step == plain.ema.optimization_step == 12
    assert not any(average.requires_grad for average in captured.ema.shadow_params)  # else each step would be kept


def test_losses_of_captured_steps_stay_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "capture", called)
    step = CapturedStep(training())
    losses = [step(done) for done in range(3)]
    assert len({float(loss) for loss in losses}) == 3


def test_where_a_step_cannot_be_captured_it_is_taken_and_that_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "capture", refused)
    plain, other = training(), training()
    eager, step = EagerStep(plain), CapturedStep(other)
    with pytest.warns(UserWarning, match="train test: a step is not captured .* not permitted"):
        first = step(0)
    assert torch.equal(first, eager(0))
    assert torch.equal(step(1), eager(1))  # another warning would be an error
    assert all(map(torch.equal, other.model.parameters(), plain.model.parameters()))


@given(channels=st.integers(1, 6), length=st.integers(1, 9), steps=st.integers(1, 7))
def test_noise_drawn_ahead_is_that_of_each_step(channels: int, length: int, steps: int) -> None:
    own, others = ([torch.Generator().manual_seed(seed) for seed in range(3)] for _ in range(2))
    ahead_TNCL = draw_steps(own, (channels, length), steps, torch.float32)
    for drawn_NCL in ahead_TNCL:
        expected = torch.stack([torch.randn(channels, length, generator=each) for each in others])
        assert torch.equal(drawn_NCL, expected)


@pytest.mark.parametrize(
    "scheduler",
    [DDPMScheduler, DDIMScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler],
    ids=lambda each: each.__name__,
)
@pytest.mark.parametrize("most", [1 << 26, 150], ids=["at once", "in parts"])
def test_schedulers_take_what_was_drawn_ahead(scheduler: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpus, "_AHEAD", most)
    noise_NCL = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))

    def ask(sample_NCL: Tensor, times_N: Tensor) -> Tensor:
        return 0.1 * sample_NCL + times_N[:, None, None] / 1000

    def sample(ahead: bool) -> tuple[Tensor, list[Tensor]]:
        made = scheduler.from_config(build_scheduler().config)
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        if ahead:
            with DrawnAhead(generators, (4, 4), 7, torch.device("cpu")) as drawn:
                end = reverse_process(made, noise_NCL, 7, drawn.generators, ReplayedAsk(ask))
        else:
            end = reverse_process(made, noise_NCL, 7, generators, ask)
        return end, [each.get_state() for each in generators]

    monkeypatch.setattr(capturing, "capture", called)
    (drawn_ahead, states), (drawn, expected) = sample(ahead=True), sample(ahead=False)
    assert torch.equal(drawn_ahead, drawn)
    assert all(map(torch.equal, states, expected))  # so that a second call makes the same networks too


def test_a_call_that_cannot_be_captured_is_made_and_that_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "capture", refused)
    ask = ReplayedAsk(lambda sample, times: sample + times)
    with pytest.warns(UserWarning, match="not captured as a CUDA graph"):
        assert float(ask(torch.tensor(1.0), torch.tensor(2.0))) == 3
    assert float(ask(torch.tensor(1.0), torch.tensor(3.0))) == 4


def test_other_random_numbers_are_left_alone() -> None:
    with DrawnAhead([torch.Generator()], (4,), 2, torch.device("cpu")):
        drawn = torch.randn(4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, torch.randn(4, generator=torch.Generator().manual_seed(3)))


def finetuned(network: dict[str, Any], captured: bool, device: str = "cpu", precision: str = "no") -> FinetuneRun:
    """A few steps of both phases; in the first the learning rate changes from step to step."""
    task = load_task({"dataset": "digits", "train_size": 100})
    spec = resolve_network(network, in_channels=1, image_size=8, num_classes=10)
    module = build_network(spec, seed=0).to(device)
    images = ImageBatches(task, 20, 0, torch.empty(0, device=device).device)
    config = FinetuneConfig(epochs=1, mixed_precision=precision)
    run = FinetuneRun(module, ParamLayout.from_module(module), images, config, captured=captured)
    for _ in range(run.num_train_steps):
        run.take_step()
    run.begin("finetune")
    for _ in range(3):
        run.take_step()
    return run


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("network", [{"name": "mlp3", "hidden": [8, 8]}, {"name": "convnet3"}], ids=str)
def test_a_captured_fine_tune_is_a_fine_tune(
    network: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing, "capture", called)
    plain, captured = (finetuned(network, each, precision=precision).state() for each in (False, True))
    assert plain.info == captured.info
    assert plain.tensors.keys() == captured.tensors.keys()
    for name, tensor in plain.tensors.items():  # running statistics and moments too
        assert torch.allclose(captured.tensors[name].float(), tensor.float(), rtol=1e-4, atol=1e-5), name


def test_warming_up_leaves_running_statistics_and_moments_as_they_were() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with warmed_up_for_nothing(lambda: [*network.parameters(), *network.buffers(), *moments_of(optimizer)]):
        for _ in range(2):
            network(torch.randn(5, 3)).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert len(moments_of(optimizer)) == 12
    assert not any(map(torch.any, moments_of(optimizer)))


def test_a_fine_tune_that_cannot_be_captured_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "capture", refused)
    network = {"name": "mlp3", "hidden": [8, 8]}
    with pytest.warns(UserWarning, match="collect: a step is not captured"):
        captured = finetuned(network, captured=True)
    assert torch.allclose(captured.params(), finetuned(network, captured=False).params(), atol=1e-5)
