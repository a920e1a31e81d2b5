"""How far long work is, and how long it will still take: a bar in terminals and notebooks, lines elsewhere.

A log of a bar is a mess, and no word for an hour looks like a hang. So where nobody watches a terminal, work that takes
longer than a few seconds says beforehand how long it will take, by the rate of its first steps, and then every half
minute where it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self

from tqdm.auto import tqdm
from tqdm.std import tqdm as terminal_tqdm

_FIRST_SECONDS = 2.0  # work that is done by then says nothing; a rate that was measured for so long can be believed
_LEAST_SECONDS = 10.0  # work that takes less in all says nothing either
_EVERY_SECONDS = 30.0  # between lines


Listener = Callable[[str, int, int, Mapping[str, object]], None]
"""Called with the name of the work, the steps that are done, their number in all, and what is shown beside."""

_hidden = False


def hide() -> None:
    """Shows nothing in this process from now on: another one of the same run shows how far all are."""
    global _hidden
    _hidden = True


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Lets `listener` hear of every step of the work that this block does in its own thread; it may raise."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


class Bar(AbstractContextManager["Bar"], Protocol):
    """What a loop needs of tqdm's bars."""

    def update(self, n: int = 1, /) -> object:
        """`n` more steps are done."""

    def set_postfix(self, **values: object) -> None:
        """What to show beside the number of steps, such as the loss."""

    def close(self) -> None:
        """The work is done, or was given up."""


def progress_bar(
    total: int,
    what: str,
    unit: str,
    *,
    initial: int = 0,
    shown: bool = True,
    at_most: bool = False,
    scaled: bool = False,
) -> Bar:
    """The progress of work that takes `total` steps, on standard error.

    Args:
        what: names the work ("train diffusion").
        unit: what a step is, in the singular ("step").
        initial: steps that an earlier process did.
        shown: False shows nothing, for instance in all processes but one.
        at_most: the work may end before `total`.
        scaled: a bar shows "2.1M" for 2,100,000.
    """
    if _hidden or not shown:
        return tqdm(total=total, disable=True)
    bar = _bar(total, what, unit, initial, at_most, scaled)
    listener = _listener.get()
    return bar if listener is None else _Heard(bar, listener, total, what, initial)


def _bar(total: int, what: str, unit: str, initial: int, at_most: bool, scaled: bool) -> Bar:
    if sys.stderr.isatty() or tqdm.__mro__[1] is not terminal_tqdm:  # the second is so in notebooks only
        return tqdm(total=total, desc=what, unit=unit, initial=initial, unit_scale=scaled, delay=_FIRST_SECONDS)
    return _Lines(total, what, unit, initial, at_most)


class _Heard:
    """A bar whose steps are heard of."""

    def __init__(self, bar: Bar, listener: Listener, total: int, what: str, initial: int):
        self._bar, self._listener, self._total, self._what = bar, listener, total, what
        self._done, self._beside = initial, dict[str, object]()

    def update(self, n: int = 1, /) -> None:
        self._bar.update(n)
        self._done += n
        self._listener(self._what, self._done, self._total, self._beside)

    def set_postfix(self, **values: object) -> None:
        self._beside = values
        self._bar.set_postfix(**values)

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)


class _Lines:
    """The lines of one piece of work."""

    def __init__(self, total: int, what: str, unit: str, initial: int, at_most: bool):
        self._total, self._what, self._unit, self._initial = total, what, unit, initial
        self._bound = "at most " if at_most else ""
        self._done, self._beside = initial, ""
        self._began = time.monotonic()
        self._next = self._began + _FIRST_SECONDS
        self._first: tuple[float, int] | None = None  # when the first step was done, and how many there were then
        self._said = False

    def update(self, n: int = 1, /) -> None:
        self._done += n
        now = time.monotonic()
        if self._first is None:
            self._first = (now, self._done)
        if now < self._next:
            return
        # The first step takes longer than the others, which come after what is done once.
        since, before = self._first if self._done > self._first[1] else (self._began, self._initial)
        if since == self._began and now - self._began < _EVERY_SECONDS:
            return
        seconds = (now - since) / max(1, self._done - before) * (self._total - self._done)
        if not self._said and now - self._began + seconds < _LEAST_SECONDS:
            self._next = self._began + _LEAST_SECONDS  # unless it turns out to be slower
            return
        count = f"{self._done:,} of {self._bound}{self._total:,} {self._unit}s"
        self._say(f"{count}{self._beside}, {self._bound}{in_words(seconds)} left")
        self._next = now + _EVERY_SECONDS

    def set_postfix(self, **values: object) -> None:
        self._beside = "".join(f", {name} {value}" for name, value in values.items())

    def close(self) -> None:
        if self._said:
            self._say(f"{self._done:,} {self._unit}s{self._beside}, done in {in_words(time.monotonic() - self._began)}")
            self._said = False

    def _say(self, text: str) -> None:
        print(f"{self._what}: {text}", file=sys.stderr, flush=True)
        self._said = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


def in_words(seconds: float) -> str:
    """A time as people say it: "8 s", "1 min 20 s", "2 h 5 min"."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
