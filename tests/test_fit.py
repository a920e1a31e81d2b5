"""Networks from a few labelled examples: the gradient is the true one, tasks are found, and bad examples are named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_asking import conditional, seeded
from test_conditions import DIGITS
from torch import Tensor, nn
from torch.func import functional_call

from pdiff_hub import PDiffPipeline
from pdiff_hub.networks import build_network, resolve_network
from pdiff_hub.pipeline import fitting
from pdiff_hub.pipeline.fitting import centers, conditions_and_latents, fit_latents, with_gradients
from pdiff_hub.training.diffusion import build_scheduler, build_unet
from pdiff_hub.travelling.conditioner import Conditioner
from pdiff_hub.travelling.param_autoencoder import ParamAutoencoder, ParamLayout

SPEC = {"name": "mlp3", "hidden": [8, 8], "in_channels": 1, "num_classes": 3, "image_size": 2}


@pytest.fixture(scope="module", params=[10**6, 37], ids=["one slice", "many slices"])
def pipe(request: pytest.FixtureRequest) -> PDiffPipeline:
    """A pipeline whose U-Net answers 0, so that it draws from a Gaussian."""
    torch.manual_seed(0)
    network = build_network(SPEC, seed=1)
    layout = ParamLayout.from_module(network)
    autoencoder = ParamAutoencoder(
        layout.to_dict(), num_components=6, latent_length=2, network=SPEC, slice_size=request.param
    )
    whole = 0.2 * torch.randn(6, layout.num_params, generator=seeded(2))
    for part, (start, stop) in zip(autoencoder.components, autoencoder.slices, strict=True):
        nn.init.zeros_(part).data += whole[:, start:stop]
    autoencoder.mean_P.copy_(3 * layout.flatten(network.state_dict()))  # so that it answers with every class
    unet = build_unet(4, 2, (16,), 1)
    for parameter in unet.out_block.final_conv1d_2.parameters():
        nn.init.zeros_(parameter)
    pipe = PDiffPipeline(autoencoder.eval(), unet.eval(), build_scheduler("v_prediction"), 5)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def answers(pipe: PDiffPipeline, params_P: Tensor, inputs: Tensor) -> Tensor:
    state = pipe.autoencoder.layout.unflatten(params_P)
    return functional_call(build_network(SPEC).eval(), state, (inputs,)).detach()


def examples(pipe: PDiffPipeline, num: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Images, and the labels that one network of the pipeline gives them."""
    latent = torch.randn(1, 4, 2, generator=seeded(11))
    inputs = torch.randn(num, 1, 2, 2, generator=seeded(seed))
    return inputs, answers(pipe, pipe.decode_latents(latent)[0], inputs).argmax(dim=1)


def test_a_step_follows_the_plain_gradient(pipe: PDiffPipeline) -> None:
    inputs, labels = examples(pipe, 20)
    center_BCL = torch.randn(3, 4, 2, generator=seeded(0))
    network = pipe.build_network().requires_grad_(False)
    found = fit_latents(pipe.autoencoder, network, {}, inputs, labels, center_BCL, steps=3)
    assert not any(parameter.grad is not None for parameter in pipe.autoencoder.parameters())
    for row in range(3):
        latent = center_BCL[[row]].clone().requires_grad_()
        optimizer = torch.optim.Adam([latent], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            state = pipe.autoencoder.layout.unflatten(pipe.autoencoder.decode(latent)[0])
            loss = nn.functional.cross_entropy(functional_call(network, state, (inputs,)), labels, reduction="sum")
            (loss + 0.5 * (latent - center_BCL[[row]]).square().sum()).backward()
            optimizer.step()
        assert torch.allclose(found[row], latent.detach()[0], atol=1e-4)
    pipe.autoencoder.zero_grad()


def known_conditions(pipe: PDiffPipeline) -> Conditioner:
    conditioner = Conditioner(DIGITS.to_dict(), 4, 2, num_known=6, squared_length=8.0)
    conditioner.known_MD.copy_((torch.rand(6, 10, generator=seeded(4)) < 0.5).float())
    conditioner.weight_MCL.copy_(torch.randn(6, 4, 2, generator=seeded(5)))
    conditioner.std_CL.fill_(0.6)
    return conditioner


def test_a_step_follows_the_plain_gradient_where_a_condition_is_looked_for(pipe: PDiffPipeline) -> None:
    inputs, labels = examples(pipe, 20)
    latents_of = conditions_and_latents(known_conditions(pipe))
    center_BF = 0.5 * torch.randn(2, 10 + 8, generator=seeded(0))
    network = pipe.build_network().requires_grad_(False)
    found = fit_latents(pipe.autoencoder, network, {}, inputs, labels, center_BF, latents_of=latents_of, steps=3)
    for row in range(2):
        free = center_BF[[row]].clone().requires_grad_()
        optimizer = torch.optim.Adam([free], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            state = pipe.autoencoder.layout.unflatten(pipe.autoencoder.decode(latents_of(free))[0])
            loss = nn.functional.cross_entropy(functional_call(network, state, (inputs,)), labels, reduction="sum")
            (loss + 0.5 * (free - center_BF[[row]]).square().sum()).backward()
            optimizer.step()
        assert torch.allclose(found[row], latents_of(free).detach()[0], atol=1e-4)
    pipe.autoencoder.zero_grad()


def test_free_numbers_of_zero_are_the_latents_of_the_mean_condition(pipe: PDiffPipeline) -> None:
    conditioner = known_conditions(pipe)
    latent_BCL = conditions_and_latents(conditioner)(torch.zeros(1, 18))
    mean_1E = torch.cat([(2 * conditioner.known_MD - 1).mean(dim=0), torch.ones(1)])[None]
    assert torch.allclose(latent_BCL, conditioner.gaussian(mean_1E)[0], atol=1e-6)


def test_conditions_are_looked_for_beyond_the_known_ones(pipe: PDiffPipeline) -> None:
    conditioner = known_conditions(pipe)
    free = torch.cat([torch.ones(1, 10), torch.zeros(1, 8)], dim=1)
    known_MD = 2 * conditioner.known_MD - 1
    asked_1D = (known_MD.mean(dim=0) + 1.5 * known_MD.std(dim=0, correction=0))[None]
    expected = conditioner.gaussian(torch.cat([asked_1D, torch.ones(1, 1)], dim=1))[0]
    assert torch.allclose(conditions_and_latents(conditioner)(free), expected, atol=1e-6)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks=st.integers(1, 4), images=st.integers(1, 21))
def test_what_is_worked_on_together_changes_nothing(pipe: PDiffPipeline, networks: int, images: int) -> None:
    inputs, labels = examples(pipe, 20)
    center_BCL = torch.randn(3, 4, 2, generator=seeded(0))
    network = with_gradients(pipe.build_network())
    whole, parts = (
        fit_latents(pipe.autoencoder, network, {}, inputs, labels, center_BCL, steps=2, at_once=at_once)
        for at_once in ((3, 20), (networks, images))
    )
    assert torch.allclose(whole, parts, atol=1e-4)


def test_large_networks_take_turns_and_their_components_are_released(
    pipe: PDiffPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = examples(pipe, 20)
    wanted = pipe.fit(*labelled, num_models=3, num_steps=2, generator=seeded(0))
    seen: list[tuple[int, int]] = []
    released: list[int] = []
    real = fitting._differentiate

    def differentiate(*arguments: Any) -> None:
        seen.append(arguments[-1])
        real(*arguments)

    monkeypatch.setattr(fitting, "_differentiate", differentiate)
    monkeypatch.setattr(pipe.autoencoder, "release", lambda tensor: released.append(tensor.data_ptr()))
    for chunk, vmapped, expected in ((10**9, 10**9, (3, 20)), (10**9, 1, (1, 20)), (1, 1, (1, 1))):
        monkeypatch.setattr(fitting, "_CHUNK_BYTES", chunk)
        monkeypatch.setattr(fitting, "_VMAP_BYTES", vmapped)
        monkeypatch.setattr(fitting, "_MAPPED_BYTES", 0 if chunk == 1 else 10**9)
        found = pipe.fit(*labelled, num_models=3, num_steps=2, generator=seeded(0))
        assert seen[-1] == expected and torch.allclose(found.params, wanted.params, atol=1e-4)
    assert released == 2 * [part.data_ptr() for part in pipe.autoencoder.components]


def test_running_statistics_have_gradients() -> None:
    spec = {"name": "convnet3", "widths": [4, 4, 4], "norm": "batch"}
    spec = resolve_network(spec, in_channels=1, image_size=8, num_classes=3)
    plain, network = build_network(spec, seed=1).eval().double(), with_gradients(build_network(spec, seed=1).double())
    inputs = torch.randn(5, 1, 8, 8, generator=seeded(0), dtype=torch.float64)
    state = {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=seeded(2), dtype=torch.float64)
        for name, tensor in plain.state_dict().items()
        if tensor.is_floating_point()
    }
    assert torch.allclose(functional_call(network, state, (inputs,)), functional_call(plain, state, (inputs,)))
    names = [name for name in state if "running" in name]
    assert names
    for name in names:

        def answer(tensor: Tensor, name: str = name) -> Tensor:
            return functional_call(network, {**state, name: tensor}, (inputs,))

        assert torch.autograd.gradcheck(answer, state[name].clone().requires_grad_())


def test_a_network_with_running_statistics_is_fitted() -> None:
    spec = resolve_network({"name": "convnet3", "norm": "batch"}, in_channels=1, image_size=8, num_classes=3)
    network = build_network(spec)
    layout = ParamLayout.from_module(network)
    autoencoder = ParamAutoencoder(layout.to_dict(), num_components=8, latent_length=2, network=spec)
    nn.init.normal_(autoencoder.components[0], std=0.05)
    autoencoder.mean_P.copy_(autoencoder.to_log(layout.flatten(network.state_dict())[None], 0)[0])
    autoencoder.set_frozen_state(layout.frozen_state(network.state_dict()))
    pipe = PDiffPipeline(autoencoder.eval(), build_unet(4, 2, (16,), 1).eval(), build_scheduler(), 2)
    pipe.set_progress_bar_config(disable=True)
    out = pipe.fit(torch.randn(9, 1, 8, 8, generator=seeded(1)), torch.arange(9) % 3, 2, num_steps=3)
    for state in out.state_dicts:
        pipe.build_network(state)
    assert not torch.equal(out.params[0], autoencoder.decode(torch.zeros(1, 4, 2))[0])


def test_a_network_that_gives_the_labels_is_found(pipe: PDiffPipeline) -> None:
    out = pipe.fit(*examples(pipe, 100), num_models=4, generator=seeded(0))
    assert out.params.shape == (4, pipe.autoencoder.layout.num_params) and out.latents.shape == (4, 4, 2)
    inputs, labels = examples(pipe, 500, seed=4)
    found = [(answers(pipe, params_P, inputs).argmax(dim=1) == labels).float().mean() for params_P in out.params]
    assert torch.stack(found).mean() > 0.85  # 0.45 where the fit begins
    for state in out.state_dicts:
        pipe.build_network(state)


def test_few_labels_leave_more_open_than_many(pipe: PDiffPipeline) -> None:
    def spread(num: int) -> float:
        return float(pipe.fit(*examples(pipe, num), num_models=12, generator=seeded(0)).latents[1:].std(dim=0).mean())

    assert spread(12) > 2 * spread(400)


def test_the_first_is_the_most_probable_whatever_is_drawn(pipe: PDiffPipeline) -> None:
    labelled = examples(pipe, 30)
    alone = pipe.fit(*labelled, num_models=1, num_steps=20).params[0]
    three = pipe.fit(*labelled, num_models=3, num_steps=20, generator=seeded(5))
    assert torch.allclose(three.params[0], alone, atol=1e-5)
    again = pipe.fit(*labelled, num_models=3, num_steps=20, generator=seeded(5))
    assert torch.equal(again.params, three.params) and not torch.equal(three.params[1], three.params[2])


def test_a_condition_moves_the_middle() -> None:
    draws = torch.randn(5, 4, 2, generator=seeded(0))
    free, asked = centers(draws, conditional=False), centers(draws, conditional=True)
    assert not free[0].any() and torch.equal(free[1:], 0.5 * draws[1:])
    assert torch.allclose(asked[0], draws.mean(dim=0)) and torch.allclose(asked[2], (draws.mean(dim=0) + draws[2]) / 2)
    pipe = conditional()
    inputs, labels = torch.randn(9, 1, 2, 2, generator=seeded(1)), torch.arange(9) % 3
    out = pipe.fit(inputs, labels, 3, {"classes": [1, 2]}, seeded(0), num_steps=2)
    assert out.params is not None and len(out.params) == 3


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ((torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 2, 3])), "labels run from 0 to 3, expected 0 to 2"),
        ((torch.randn(4, 1, 2, 2), torch.tensor([0, -1, 2, 1])), "labels run from -1 to 2"),
        ((torch.randn(4, 1, 2, 2), torch.ones(4, dtype=torch.int64)), "all 4 labels are 1"),
        ((torch.randn(0, 1, 2, 2), torch.ones(0, dtype=torch.int64)), "number of labels is 0"),
        ((torch.randn(4, 1, 2, 2), torch.ones(4)), r"labels are torch.float32 \[4\], expected whole numbers \[4\]"),
        (
            (torch.randn(4, 1, 2, 2), torch.tensor([0, 1])),
            r"labels are torch.int64 \[2\], expected whole numbers \[4\]",
        ),
        ((torch.randn(4, 1, 2, 2), [0, 1, 2, 0]), "labels are list"),
        ((torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])), r"expected \['N', 1, 2, 2\]"),
        (
            (torch.randn(4, 1, 2, 2).double(), torch.tensor([0, 1, 2, 0])),
            "inputs are torch.float64, expected a float32",
        ),
        ((torch.ones(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 0])), "inputs are torch.uint8"),
        ((torch.full((4, 1, 2, 2), math.nan), torch.tensor([0, 1, 2, 0])), "NaN or Inf"),
    ],
)
def test_bad_examples(pipe: PDiffPipeline, examples: tuple[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe.fit(*examples)


def test_bad_arguments(pipe: PDiffPipeline) -> None:
    labelled = examples(pipe, 9)
    for options, message in (({"num_models": 0}, "num_models is 0"), ({"num_steps": 0}, "num_steps is 0")):
        with pytest.raises(ValueError, match=message):
            pipe.fit(*labelled, **options)
    with pytest.raises(ValueError, match="takes no condition"):
        pipe.fit(*labelled, condition={"classes": [1]})
