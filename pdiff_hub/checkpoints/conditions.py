"""What the networks of a set can be asked for: one condition per checkpoint, of one kind for the whole set.

On disk, conditions are the column `condition` of data/ (a list of D numbers, null where there is none), and their
`ConditionSpec` is `conditions` in dataset.json.
Shapes: K checkpoints, D numbers of a condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pdiff_hub.errors import PdiffError, require_known
from pdiff_hub.travelling.conditioner import ConditionSpec

CONDITION_COLUMN = "condition"
CONDITION_TYPE = pa.list_(pa.float32())


def from_column(metadata: Sequence[Mapping[str, Any]], name: str) -> tuple[ConditionSpec, Tensor]:
    """The conditions that the metadata column `name` gives: a scalar if it holds numbers, a class if it holds texts.

    Rows without a value (None, NaN) have no condition. ValueError for an unknown column, and for one without two
    different values, which cannot tell networks apart.
    """
    require_known("metadata column", [name], dict.fromkeys(key for row in metadata for key in row))
    values = [row.get(name) for row in metadata]
    known = [each for each in values if each is not None and not (isinstance(each, float) and not isfinite(each))]
    if len(set(known)) < 2:
        raise PdiffError(
            f"metadata column {name!r} has {len(set(known))} different value(s) in {len(values)} rows; a condition "
            "needs at least 2."
        )
    if all(isinstance(each, str) for each in known):
        names = tuple(sorted(set(known)))
        spec = ConditionSpec(name, "class", len(names), names)
    else:
        numbers = [float(each) for each in known]
        spec = ConditionSpec(name, "scalar", 1, low=(min(numbers),), high=(max(numbers),))
    missing = torch.full((spec.size,), nan)
    there = set(known)
    return spec, torch.stack([spec.encode(each) if each in there else missing for each in values])


def checked_conditions(spec: ConditionSpec | None, conditions_KD: Tensor | None, num_rows: int) -> Tensor | None:
    """The conditions as float32 [K,D] on the CPU; ValueError if they do not fit the spec, or one is without the other.

    A row is either finite or all NaN, which means that the checkpoint has no condition.
    """
    if (spec is None) != (conditions_KD is None):
        raise PdiffError("conditions and conditions_KD go together; one of them is missing.")
    if spec is None or conditions_KD is None:
        return None
    if tuple(conditions_KD.shape) != (num_rows, spec.size) or not conditions_KD.is_floating_point():
        raise PdiffError(
            f"conditions_KD is {conditions_KD.dtype} {list(conditions_KD.shape)}, expected float "
            f"[{num_rows}, {spec.size}]: {spec.size} number(s) of {spec.name!r} for each checkpoint."
        )
    checked_KD = conditions_KD.detach().to("cpu", torch.float32).contiguous()
    wrong_K = ~(checked_KD.isfinite().all(dim=1) | checked_KD.isnan().all(dim=1))
    if bool(wrong_K.any()):
        row = int(wrong_K.nonzero()[0])
        raise PdiffError(
            f"checkpoint {row}: its condition {spec.name!r} is {checked_KD[row].tolist()}; expected finite numbers, or "
            "NaN in all places for no condition."
        )
    return checked_KD


def with_column(table: pa.Table, conditions_KD: Tensor | None) -> pa.Table:
    """The metadata table with the column of the conditions, if there are any."""
    if conditions_KD is None:
        return table
    values = [None if bool(row_D.isnan().any()) else row_D.tolist() for row_D in conditions_KD]
    return table.append_column(CONDITION_COLUMN, pa.array(values, CONDITION_TYPE))


def from_table(table: pa.Table, spec: ConditionSpec | None) -> tuple[pa.Table, Tensor | None]:
    """The metadata table without the column, and its conditions [K,D]; ValueError if it does not fit the spec."""
    if spec is None:
        return table, None
    if CONDITION_COLUMN not in table.column_names:
        raise PdiffError(f"there is no column {CONDITION_COLUMN!r}")
    rows = table.column(CONDITION_COLUMN).to_pylist()
    if any(row is not None and len(row) != spec.size for row in rows):
        raise PdiffError(f"the column {CONDITION_COLUMN!r} does not hold {spec.size} numbers in each row")
    conditions_KD = torch.tensor([[nan] * spec.size if row is None else row for row in rows], dtype=torch.float32)
    return table.drop_columns(CONDITION_COLUMN), conditions_KD


def joined(there: Mapping[str, Any] | None, here: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The spec of two sets together, which has seen what either has. ValueError if they cannot be joined."""
    if there is None and here is None:
        return None
    first, second = (None if each is None else ConditionSpec.from_dict(each) for each in (there, here))
    if first is None or second is None or _without_range(first) != _without_range(second):
        raise PdiffError(f"conditions: {_named(first)} there and {_named(second)} here")
    low = tuple(min(pair) for pair in zip(first.low, second.low, strict=True))
    high = tuple(max(pair) for pair in zip(first.high, second.high, strict=True))
    return replace(first, low=low, high=high).to_dict()


def _without_range(spec: ConditionSpec) -> ConditionSpec:
    nothing = (0.0,) * len(spec.low)
    return replace(spec, low=nothing, high=nothing)


def _named(spec: ConditionSpec | None) -> str:
    return "none" if spec is None else f"{spec.name!r} ({spec.kind}, {', '.join(spec.names) or spec.size})"
