"""What a set of checkpoints must hold: finite numbers, the frozen tensors of its layout, descriptions in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pdiff_hub.checkpoints.rows import Rows
from pdiff_hub.errors import PdiffError
from pdiff_hub.travelling.param_autoencoder import ParamLayout


class CheckedRows:
    """Rows from files. Each rectangle is checked for NaN and Inf when it is read, until its rows were checked whole."""

    def __init__(self, rows: Rows, layout: ParamLayout):
        self._rows, self._layout = rows, layout
        self.num_rows, self.num_params = rows.num_rows, rows.num_params
        self._are_finite = bytearray(rows.num_rows)

    def read(self, first: int, last: int, start: int, stop: int) -> Tensor:
        params_RS = self._rows.read(first, last, start, stop)
        if not all(self._are_finite[first:last]):
            check_finite(self._layout, params_RS, first, start)
            if params_RS.shape[1] == self.num_params:
                self._are_finite[first:last] = bytes([True] * len(params_RS))
        return params_RS


def check_finite(layout: ParamLayout, params_RS: Tensor, first: int = 0, start: int = 0) -> None:
    """ValueError names checkpoint and tensor if params_RS, which begins at (`first`, `start`), has NaN or Inf."""
    # An extreme is not finite exactly if some number is not; finding the extremes takes one pass and no memory.
    if params_RS.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(params_RS)):
        return
    row, column = (~torch.isfinite(params_RS)).nonzero()[0].tolist()
    _, entry = layout.overlapping(start + column, start + column + 1)[0]
    raise PdiffError(f"checkpoint {first + row}: tensor {entry.name!r} holds NaN or Inf; expected finite numbers.")


def check_frozen(layout: ParamLayout, frozen: Mapping[str, Tensor]) -> None:
    """ValueError names the first tensor that is missing from `frozen`, or is not what `layout` expects."""
    expected = {entry.name: f"{entry.dtype} {list(entry.shape)}" for entry in layout.frozen}
    found = {name: f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}" for name, each in frozen.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise PdiffError(
                f"frozen tensor {name!r} is {found.get(name, 'missing')}, and the layout expects "
                f"{expected.get(name, 'no such tensor')}; give what layout.frozen_state returns."
            )
        if frozen[name].dtype.is_floating_point and bool(torch.isnan(frozen[name]).any()):  # infinity may be a mask
            raise PdiffError(f"frozen tensor {name!r} holds NaN; expected numbers.")


def json_able(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `value` as it comes back from JSON; ValueError if it cannot be written."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PdiffError(f"{name} cannot be written as JSON: {error}.") from error
    return copy
