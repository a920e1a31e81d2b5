"""Pipelines are opened, and networks built and sampled, by many threads at once; each gets what it gets alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

from pdiff_hub import PDiffPipeline
from pdiff_hub.networks import build_network
from pdiff_hub.networks.building import sketching

SHIPPED = Path(__file__).parent.parent / "pipelines" / "digits-mlp3"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Another thread does `work` again and again; yields what it got."""
    ended, results = Event(), []

    def again() -> None:
        while not ended.is_set():
            results.append(work())

    thread = Thread(target=again)
    thread.start()
    try:
        yield results
    finally:
        ended.set()
        thread.join()


def test_openings_leave_torch_as_it_was() -> None:
    before = {name: getattr(nn.Module, name) for name in ("register_parameter", "register_buffer", "__setattr__")}
    initialisers = {name: getattr(nn.init, name) for name in dir(nn.init)}
    with meanwhile(lambda: nn.Linear(40, 3).weight.detach()) as weights, ThreadPoolExecutor(8) as pool:
        pipes = list(pool.map(lambda _: PDiffPipeline.from_pretrained(SHIPPED), range(24)))
    assert {name: getattr(nn.Module, name) for name in before} == before
    assert {name: getattr(nn.init, name) for name in initialisers} == initialisers
    assert torch.utils._device.CURRENT_DEVICE is None and torch.get_default_dtype() == torch.float32
    # What was built meanwhile was built whole: on the CPU, and initialised, within torch's bound for a linear layer.
    assert len(weights) > 1 and all(weight.device.type == "cpu" for weight in weights)
    assert all(0 < float(weight.abs().max()) <= 40**-0.5 for weight in weights)
    first = pipes[0].unet.state_dict()
    for pipe in pipes:
        assert all(torch.equal(tensor, first[name]) for name, tensor in pipe.unet.state_dict().items())
        assert not any(tensor.is_meta for tensor in pipe.autoencoder.state_dict().values())


def test_networks_of_one_seed_are_equal_whoever_builds_meanwhile() -> None:
    pipe = PDiffPipeline.from_pretrained(SHIPPED)
    spec = dict(pipe.autoencoder.config.network)
    alone = build_network(spec, seed=5).state_dict()
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda number: build_network(spec, seed=5 + number % 2).state_dict(), range(60)))
    for network in built[::2]:
        assert all(torch.equal(tensor, alone[name]) for name, tensor in network.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_one_pipeline_is_called_by_many_threads() -> None:
    pipe = PDiffPipeline.from_pretrained(SHIPPED)
    pipe.set_progress_bar_config(disable=True)

    def call(steps: int) -> torch.Tensor:
        found: torch.Tensor = pipe(2, steps, seeded(steps), output_type="params").params
        return found

    for kind in (DDPMScheduler, DPMSolverMultistepScheduler):
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        alone = {steps: call(steps) for steps in (3, 5, 8)}
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(call, [3, 5, 8] * 6))
        for number, params in enumerate(together):
            assert torch.equal(params, alone[(3, 5, 8)[number % 3]])


def test_a_constructor_that_goes_on_and_on_is_ended() -> None:
    with pytest.raises(ValueError, match="many more layers than the 3 tensors"), sketching(3):
        nn.Sequential(*(nn.Linear(2, 2) for _ in range(10**9)))
    with sketching(3):
        assert nn.Linear(10**9, 10**9).weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta
