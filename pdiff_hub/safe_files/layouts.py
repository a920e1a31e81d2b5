"""What JSON may say of a layout of parameters (`ParamLayout.to_dict`), in a data set and in a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

MOST = 2**53  # what a number in JSON can hold exactly
Place = Annotated[int, Field(ge=0, le=MOST)]
_Shape = Annotated[list[Place], Field(max_length=64)]


@dataclass(frozen=True)
class FrozenFields:
    """A tensor that all networks share."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # what there is becomes an argument by its name

    name: str
    shape: _Shape
    dtype: str


@dataclass(frozen=True)
class EntryFields(FrozenFields):
    """A tensor that is generated."""

    start: Place
    stop: Place
    aliases: list[str]
    log: bool = False


@dataclass(frozen=True)
class LayoutFields:
    """A layout. Whether its tensors lie one after another, `ParamLayout.from_dict` says."""

    select: str | list[str]
    entries: list[EntryFields]
    frozen: list[FrozenFields]
