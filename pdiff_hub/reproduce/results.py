"""A reproduced table or figure: measured beside published numbers, and which orderings of the paper held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pdiff_hub.evaluation.report import Figure, Section, Table


@dataclass(frozen=True)
class Ordering:
    """A claim of the form "this is more than that", whether it held here, and the numbers that show it.

    otherwise: a sentence that says why, where it did not hold.
    """

    claim: str
    held: bool
    numbers: str
    otherwise: str

    @property
    def why_not(self) -> str:
        """The sentence, if the claim did not hold; else empty."""
        return "" if self.held else self.otherwise


@dataclass(frozen=True)
class Reproduced:
    """One table or figure. measured: the numbers as JSON, for readers who want to compute with them."""

    name: str
    title: str
    text: str
    blocks: Sequence[Table | Figure] = ()
    orderings: Sequence[Ordering] = ()
    measured: dict[str, Any] = field(default_factory=dict)

    def section(self) -> Section:
        """The section of the report for this table or figure."""
        blocks = list(self.blocks)
        if self.orderings:
            blocks.append(orderings_table(self.orderings))
        return Section(self.title, self.text, blocks)


def orderings_table(orderings: Sequence[Ordering]) -> Table:
    """A table of the orderings, whether each held, and why not."""
    rows = [(each.claim, "held" if each.held else "NOT held", each.numbers, each.why_not) for each in orderings]
    return Table("Orderings of the paper", ("claim", "here", "numbers", "why not"), rows)


def percent(fraction: float) -> str:
    """0.9679 -> "96.79"."""
    return f"{100 * fraction:.2f}"


def published(value: float | None) -> str:
    """A published number in percent, or a dash if none was published."""
    return "-" if value is None else f"{value:.1f}"
