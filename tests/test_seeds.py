"""Random choices depend on a key only, and the learning rate on the step only, so a resumed run repeats nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pdiff_hub.collect.schedule import cosine_with_warm_up
from pdiff_hub.seeds import derived_seed, generator_of

KEYS = st.lists(st.integers(0, 2**40) | st.sampled_from(["order", "augment", "dropout"]), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(KEYS, KEYS)
def test_keys_have_streams_of_their_own(one: list[int | str], other: list[int | str]) -> None:
    seeds = derived_seed(*one), derived_seed(*other)
    assert (seeds[0] == seeds[1]) is (one == other) and 0 <= seeds[0] < 2**56
    # torch's generator on the CPU uses only the lowest 32 bits of a seed.
    assert (seeds[0] % 2**32 == seeds[1] % 2**32) is (one == other)


def test_a_generator_begins_at_the_seed_of_its_key() -> None:
    drawn = [torch.rand(3, generator=generator_of(*key)) for key in ((0, "order", 1), (0, "order", 1), (0, "order", 2))]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert derived_seed(0, "frontier") == 68223770119748740  # must never change, because results depend on it


@pytest.mark.parametrize(("num_steps", "stopped"), [(40, 0), (40, 3), (40, 17), (40, 39), (5, 1), (1, 0)])
def test_a_schedule_goes_on_where_it_was_stopped(num_steps: int, stopped: int) -> None:
    def rates(begin: int, end: int) -> list[float]:
        optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=0.5)
        schedule, found = cosine_with_warm_up(optimizer, num_steps, done=begin), []
        for _ in range(begin, end):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    warm_up = round(0.1 * num_steps) if num_steps >= 15 else 0
    expected = [
        0.5 * step / warm_up
        if step < warm_up
        else 0.25 * (1 + math.cos(math.pi * (step - warm_up) / (num_steps - warm_up)))
        for step in range(num_steps)
    ]
    assert rates(0, num_steps) == pytest.approx(expected, abs=1e-12)
    assert rates(0, stopped) + rates(stopped, num_steps) == rates(0, num_steps)
