"""What people see of long work: a bar in a terminal, lines elsewhere, nothing where it is short."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdiff_hub import progress
from pdiff_hub.progress import in_words, progress_bar


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def _work(clock: Clock, total: int, seconds: float, *, initial: int = 0, stop: int | None = None) -> None:
    """Steps of `seconds` each."""
    with progress_bar(total, "train diffusion", "step", initial=initial, at_most=stop is not None) as bar:
        for number in range(initial, total if stop is None else stop):
            clock.now += seconds
            bar.set_postfix(loss=f"{1 / (number + 1):.2f}")
            bar.update()


def test_short_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    _work(clock, 90, 0.1)  # 9 s
    assert capsys.readouterr().err == ""


def test_long_work_says_beforehand_how_long_then_every_half_minute_where_it_is(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    _work(clock, 1000, 0.125)
    assert capsys.readouterr().err.splitlines() == [
        "train diffusion: 16 of 1,000 steps, loss 0.06, 2 min 3 s left",
        "train diffusion: 256 of 1,000 steps, loss 0.00, 1 min 33 s left",
        "train diffusion: 496 of 1,000 steps, loss 0.00, 1 min 3 s left",
        "train diffusion: 736 of 1,000 steps, loss 0.00, 33 s left",
        "train diffusion: 976 of 1,000 steps, loss 0.00, 3 s left",
        "train diffusion: 1,000 steps, loss 0.00, done in 2 min 5 s",
    ]


def test_the_rate_is_that_of_this_process_and_a_bound_is_called_one(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    _work(clock, 1000, 1.0, initial=900, stop=920)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "train diffusion: 902 of at most 1,000 steps, loss 0.00, at most 1 min 38 s left"
    assert last == "train diffusion: 920 steps, loss 0.00, done in 20 s"


def test_a_slow_first_step_is_not_taken_for_the_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(100, "train", "step") as bar:
        for seconds in (20.0, *[0.5] * 99):
            clock.now += seconds
            bar.update()
    assert capsys.readouterr().err.splitlines()[0] == "train: 2 of 100 steps, 49 s left"


def test_work_that_turns_out_to_be_slow_is_noticed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(20, "judge", "set") as bar:
        for seconds in (*[0.3] * 10, *[5.0] * 10):
            clock.now += seconds
            bar.update()
    assert capsys.readouterr().err.splitlines()[0] == "judge: 12 of 20 sets, 9 s left"


def test_work_that_fails_does_not_say_that_it_is_done(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with progress_bar(100, "judge", "set") as bar:
            clock.now += 50
            bar.update()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "done" not in capsys.readouterr().err


def test_a_terminal_gets_a_bar_and_other_processes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 0.0)
    with progress_bar(3, "train", "step") as bar:
        bar.update(3)
    assert "train: 100%" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(3, "train", "step", shown=False) as bar:
        bar.update(3)
        bar.set_postfix(loss=1)
    assert sys.stderr.getvalue() == ""


@given(st.floats(0, 1e6))
def test_times_are_read_back(seconds: float) -> None:
    words = in_words(seconds).split()
    units = {"s": 1, "min": 60, "h": 3600}
    read = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(read - seconds) <= max(1, 60 * ("h" in words))
