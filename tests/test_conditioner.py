"""What a condition says of the latents: a regression that can be checked by hand, and a denoiser that is exact."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from test_asking import conditional, seeded
from test_conditions import ACCURACY, DIGITS, SPECS
from torch import Tensor, nn

from pdiff_hub import PDiffPipeline
from pdiff_hub.training.diffusion import build_scheduler
from pdiff_hub.travelling.conditioner import Conditioner, ConditionError, ConditionSpec


def conditions_of(spec: ConditionSpec, num: int) -> Tensor:
    values_KD = torch.rand(num, spec.size, generator=seeded(1))
    return values_KD.round() if spec.kind in ("bits", "class") else values_KD


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_networks_of_known_conditions_are_found_again(spec: ConditionSpec) -> None:
    condition_TD = torch.unique(conditions_of(spec, 30), dim=0)
    own = 0.05
    center_TCL = torch.randn(len(condition_TD), 2, 3, generator=seeded(2))
    latent_KCL = center_TCL.repeat_interleave(8, 0) + own * torch.randn(
        8 * len(condition_TD), 2, 3, generator=seeded(3)
    )
    conditioner = Conditioner.fit(spec, condition_TD.repeat_interleave(8, 0), latent_KCL)
    mean_TCL, std_TCL = conditioner.gaussian(spec.channels(condition_TD))
    # How far each is from its own center, in units of the distance between two of them.
    if spec.kind in ("bits", "class"):  # on a line, 30 points at random heights are smoothed, as they should be
        assert float((mean_TCL - center_TCL).square().mean()) < 0.1
    assert torch.allclose(std_TCL.mean(), torch.tensor(own), atol=0.02)


def test_a_trend_is_carried_on_and_noise_is_told_from_it() -> None:
    accuracy_K1 = torch.linspace(0.5, 0.9, 60)[:, None]
    latent_K11 = 5 * (accuracy_K1 - 0.7)[:, :, None] + 0.2 * torch.randn(60, 1, 1, generator=seeded(0))
    spec = ConditionSpec("validation_accuracy", "scalar", 1, (), (0.5,), (0.9,))
    conditioner = Conditioner.fit(spec, accuracy_K1, latent_K11)
    mean_N11, std_N11 = conditioner.gaussian(spec.channels(torch.tensor([[0.5], [0.7], [0.9], [0.95]])))
    assert torch.allclose(mean_N11.flatten(), torch.tensor([-1.0, 0, 1, 1.25]), atol=0.3)
    assert 0.15 < float(std_N11.mean()) < 0.25


def test_no_condition_is_the_normal_distribution_of_all() -> None:
    conditioner = conditional().conditioner
    mean_NCL, std_NCL = conditioner.gaussian(torch.zeros(3, DIGITS.size + 1))
    assert not mean_NCL.any() and bool((std_NCL == 1).all())
    noisy = torch.randn(3, 4, 4, generator=seeded(0))
    for kind in ("v_prediction", "epsilon"):
        added = conditioner.prediction(noisy, torch.tensor(0.3), mean_NCL, std_NCL, kind)
        assert float(added.abs().max()) < 1e-6


def test_rows_without_a_condition_are_left_out_and_some_must_have_one() -> None:
    condition_KD, latent_KCL = conditions_of(DIGITS, 40), torch.randn(40, 2, 2, generator=seeded(0))
    holes = condition_KD.clone()
    holes[::2] = torch.nan
    found, wanted = (
        Conditioner.fit(DIGITS, holes, latent_KCL),
        Conditioner.fit(DIGITS, condition_KD[1::2], latent_KCL[1::2]),
    )
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    with pytest.raises(ConditionError, match="no network has a condition 'classes'"):
        Conditioner.fit(DIGITS, torch.full((4, 10), torch.nan), latent_KCL[:4])


def test_many_conditions_are_thinned_evenly() -> None:
    condition_K1 = torch.linspace(0.5, 0.9, 3000)[:, None]
    conditioner = Conditioner.fit(ACCURACY, condition_K1, 5 * (condition_K1[:, :, None] - 0.7))
    assert conditioner.known_MD.shape == (1024, 1)
    mean_N11, _ = conditioner.gaussian(ACCURACY.channels(torch.tensor([[0.6]])))
    assert float(mean_N11) == pytest.approx(-0.5, abs=0.02)


@given(
    std=st.floats(0.01, 1.0),
    mean=st.floats(-3, 3),
    alpha=st.floats(1e-4, 0.999),
    noisy=st.floats(-4, 4),
)
def test_the_added_velocity_is_the_posterior_mean(std: float, mean: float, alpha: float, noisy: float) -> None:
    numbers = [torch.tensor(each, dtype=torch.float64) for each in (noisy, alpha, mean, std)]
    velocity, noise = (float(Conditioner.prediction(*numbers, kind)) for kind in ("v_prediction", "epsilon"))
    # By precisions: those of the normal distribution and of what was seen through noise add.
    clean = (mean / std**2 + noisy * alpha**0.5 / (1 - alpha)) / (1 / std**2 + alpha / (1 - alpha))
    expected = (noisy - alpha**0.5 * clean) / (1 - alpha) ** 0.5
    assert velocity == pytest.approx(alpha**0.5 * expected - (1 - alpha) ** 0.5 * clean, abs=1e-6)
    # N(0, I) expects the noise sqrt(1 - alpha) noisy.
    assert noise == pytest.approx(expected - (1 - alpha) ** 0.5 * noisy, abs=1e-6)


@pytest.mark.parametrize("scheduler", [DDPMScheduler, EulerDiscreteScheduler])
def test_where_the_unet_adds_nothing_the_normal_distribution_is_sampled(scheduler: type) -> None:
    pipe = conditional()
    spec = pipe.conditions
    alone = PDiffPipeline(pipe.autoencoder, pipe.unet, build_scheduler(), 40, conditioner=pipe.conditioner)
    alone.scheduler = scheduler.from_config(alone.scheduler.config)
    for parameter in alone.unet.out_block.final_conv1d_2.parameters():
        nn.init.zeros_(parameter)
    alone.set_progress_bar_config(disable=True)
    asked = spec.encode([1, 2])
    mean_NCL, std_NCL = pipe.conditioner.gaussian(spec.channels(asked[None]))
    out = alone(200, condition=asked, generator=seeded(0), output_type="latent").latents
    assert torch.allclose(out.mean(0), mean_NCL[0], atol=0.2)
    assert torch.allclose(out.std(0), std_NCL[0].expand(4, 4), atol=0.15)
